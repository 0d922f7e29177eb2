"""The connection to an MLflow store: one per process; what cannot be used is refused with a way out."""

import atexit
import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vqa.errors import UserError
from vqa.manifest import mask_secrets
from vqa.outbox import Outbox
from vqa.patience import chain_of, reason_of
from vqa.store_address import probe, store_lock

SETTLE_S = 30.0  # how long a run that is over goes on trying to reach its store
# MLflow's own way of waiting would keep training waiting for minutes; `vqa.outbox` waits better.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
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
    for name, value in PATIENCE.items():
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
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = mask_secrets(reason_of(error))
        raise UserError(
            f"tracking.uri {mask_secrets(uri)}: the MLflow store cannot be used: {reason}; mend it, point "
            "MLFLOW_TRACKING_URI or tracking.uri at another store, or go without: tracking=none"
        ) from error
