"""The connection to an MLflow store: a quick check that it answers, one client per process."""

import atexit
import functools
import hashlib
import logging
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from vqa.errors import UserError
from vqa.machine.retry import Outbox, chain_of, reason_of
from vqa.machine.safe_text import mask_secrets

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
OF_A_SERVER = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME")
SENT = {"http": OF_A_SERVER, "https": OF_A_SERVER, "postgresql": ("PGPASSWORD",), "mysql": ("MYSQL_PWD",)}
CREDENTIALS = Path(".mlflow", "credentials")  # in the home folder; MLflow sends them as the variables


def probe(uri: str) -> None:
    """Fail within seconds where MLflow itself would retry an unreachable host for minutes."""
    parts = urlsplit(uri)
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if parts.scheme in ("http", "https"):
        address = parts._replace(
            netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/") + "/health"
        )
        try:
            urlopen(address.geturl(), timeout=10).close()
        except HTTPError:
            return  # it answers; whether we may use it is MLflow's to say
        except URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # MLflow has its own certificate settings
                raise
    elif port and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or port), timeout=10).close()


def refuse_to_send_a_password(uri: str) -> None:
    """Refuse a server that a setting names, maybe a stranger's, where it would be sent a password.

    MLflow and the databases' drivers send what the environment holds to whatever server they are told to.
    MLFLOW_TRACKING_URI says which one is meant.

    Raises:
        UserError: Names what would be sent.
    """
    names = SENT.get(urlsplit(uri).scheme.partition("+")[0], ())
    held = [name for name in names if os.environ.get(name)]
    if names == OF_A_SERVER and (file := Path.home() / CREDENTIALS).is_file():
        held.append(str(file))
    if held:
        raise UserError(
            f"tracking.uri={mask_secrets(uri)} would be sent what {held[0]} holds; if that is meant: "
            f"export MLFLOW_TRACKING_URI={mask_secrets(uri)}, or go without: tracking=none"
        )


def client_uri(uri: str) -> str:
    """The address as MLflow should get it: SQLite's made absolute, with a longer timeout.

    MLflow keeps one connection pool per address, so a relative one would go on meaning the first working
    folder. SQLite waits 60 s for another worker's write instead of 5.
    """
    prefix, _, database = uri.partition(":///")
    if prefix != "sqlite" or "?" in database or not database:
        return uri
    return f"{prefix}:///{Path(database).absolute()}?timeout=60"


def artifact_location(uri: str, experiment: str) -> str | None:
    """Put artifacts beside an SQLite database, not wherever the command happened to run."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    database = make_url(uri).database or ""
    return str(Path(database).resolve().parent / "mlruns" / quote(experiment, safe=""))


def store_lock(uri: str) -> AbstractContextManager[object]:
    """A lock that this user's processes on this machine share for one store."""
    from filelock import FileLock

    where = hashlib.sha256(f"{os.getuid()}:{client_uri(uri)}".encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"vqa-tracking-{where}.lock")


SETTLE_S = 30.0  # how long a finished run still tries to reach its store
# MLflow's own retries would hold up the training for minutes; `vqa.machine.retry` retries beside it.
RETRY_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
AWAY_CODES = (
    "TEMPORARILY_UNAVAILABLE",
    "INTERNAL_ERROR",
    "REQUEST_LIMIT_EXCEEDED",
)  # 5xx and 429 of a server


class Store:
    """This process's connection to one MLflow store; every fold of every trial asks for it."""

    def __init__(self, uri: str) -> None:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self.uri = uri
        self._client: Any = None
        kinds = (MlflowException, SQLAlchemyError, OSError)
        self.outbox = Outbox(f"MLflow ({mask_secrets(uri)})", kinds, _is_away)
        atexit.register(self.outbox.settle, SETTLE_S)

    @property
    def connected(self) -> bool:
        """Whether the store has answered once."""
        return self._client is not None

    def client(self) -> Any:
        """The `mlflow.MlflowClient`, made when it is first asked for."""
        if self._client is None:
            with store_lock(self.uri):  # of parallel workers one makes the database, the others wait
                self._client = _connect(self.uri)
        return self._client


open_store = functools.cache(Store)


def _connect(uri: str) -> Any:
    import mlflow

    probe(uri)
    # a page of INFO lines while the database is made, and of every error that is raised to us anyway
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name, value in RETRY_LIMITS.items():
        os.environ.setdefault(name, value)
    client = mlflow.MlflowClient(uri)
    client.search_experiments(max_results=1)  # now, not later, it makes the database
    return client


def _is_away(error: Exception) -> bool:
    """Whether an error means that the store does not answer just now."""
    code = getattr(error, "error_code", "")
    return code in AWAY_CODES or any(isinstance(cause, OSError) for cause in chain_of(error))


@contextmanager
def store_trouble(uri: str) -> Iterator[None]:
    """Turn trouble with a store into a message that says what to do.

    Raises:
        UserError: The block could not use the store.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: a missing driver
        reason = mask_secrets(reason_of(error))
        raise UserError(
            f"tracking.uri {mask_secrets(uri)}: the MLflow store cannot be used: {reason}; mend it, point "
            "MLFLOW_TRACKING_URI or tracking.uri at another store, or go without: tracking=none"
        ) from error
