"""The address of an MLflow store: is anybody there, and where do its artifacts go."""

import hashlib
import os
import socket
import ssl
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


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


def client_uri(uri: str) -> str:
    """Return the address as MLflow should get it: SQLite's made absolute and patient.

    MLflow keeps one connection pool per address, so a relative one would go on meaning the first working
    folder. SQLite shall wait 60 s for another worker's write, not 5.
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
    """Return a lock that this user's processes on this machine share for one store."""
    from filelock import FileLock

    where = hashlib.sha256(f"{os.getuid()}:{client_uri(uri)}".encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"vqa-tracking-{where}.lock")
