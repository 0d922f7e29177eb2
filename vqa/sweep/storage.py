"""The study's storage: SQLite, a journal file or PostgreSQL. It survives restarts and killed writers.

A call that a database cuts off is repeated until the database answers again. The first call may have been
stored although its answer was lost. That does no harm: a value is stored under its key, a trial may be told
twice, and a trial created twice is a running trial that nobody holds, which the next worker adopts.
"""

import functools
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import TrialState
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from vqa.errors import UserError
from vqa.machine.files import wait_for_lock
from vqa.machine.retry import Answer, GoneError, Retry, chain_of, reason_of

# What waiting does not mend. CANTOPEN: the journal beside the database finds no room or no right to be there.
UNWRITABLE = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
}
OTHER_TABLES = re.compile(r"no such (column|table): |has no column named ")  # SQLite's words for them
DISK_FULL = "53100"  # PostgreSQL's sqlstate
SQLITE_WAIT_S = 60  # for another worker's write to end
# Few connections per worker, since there may be many; each is tried before use, so that one from before a
# restart is replaced; and a server that vanished without a word is noticed after a minute, not after hours.
POSTGRESQL: dict[str, Any] = {
    "pool_size": 1,
    "max_overflow": 2,
    "pool_pre_ping": True,
    "pool_recycle": 1800,
    "connect_args": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    },
}
REPEATED = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "_create_new_trial",
    "_set_trial_param",
    "_get_best_trial_id",
    "_get_trials",
)


class RetryingStorage(RDBStorage):
    """A database storage whose calls are repeated while the database is away.

    Args:
        url: SQLAlchemy's address of the database.
        wait_s: Seconds to wait for it once it has been opened.
        engine: Arguments of `sqlalchemy.create_engine`.
        **more: Arguments of `optuna.storages.RDBStorage`.
    """

    def __init__(self, url: str, wait_s: float, engine: dict[str, Any], **more: Any) -> None:
        self.retry = retry_for(url, wait_s)
        self.shown = shown_address(url)
        super().__init__(url, engine_kwargs=engine, **more)

    def repeated(self, attempt: Callable[[], Answer]) -> Answer:
        """Call the database, again and again while it is away.

        Raises:
            GoneError: It stayed away, or its disk is full or broken.
        """
        try:
            return self.retry.call(attempt)
        except (StorageInternalError, SQLAlchemyError) as error:
            if _is_foreign(error):
                raise GoneError(
                    f"hydra.sweeper.storage {self.shown} holds no study of Optuna: {reason_of(error)}. "
                    "Move it away, or name another study (study=other) or storage."
                ) from error
            if not _cannot_write(error):
                raise
            raise GoneError(
                f"hydra.sweeper.storage {self.shown} cannot be written: {reason_of(error)}. "
                "Free some space or mend the disk; the same command goes on from here."
            ) from error

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """End a trial. Where the first answer got lost, the trial has this state already: that is success."""
        tries = 0

        def attempt() -> bool:
            nonlocal tries
            tries += 1
            try:
                return super(RetryingStorage, self).set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if tries == 1 or self.get_trial(trial_id).state != state:
                    raise
                return True

        return self.repeated(attempt)


def _repeated(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def call(storage: RetryingStorage, *arguments: Any, **named: Any) -> Any:
        return storage.repeated(lambda: method(storage, *arguments, **named))

    return call


for _name in REPEATED:
    setattr(RetryingStorage, _name, _repeated(_name))


def retry_for(url: str, wait_s: float) -> Retry:
    """Return what waits for the database at `url`."""
    kinds = (StorageInternalError, SQLAlchemyError)
    return Retry(f"hydra.sweeper.storage {shown_address(url)}", wait_s, kinds, _is_away)


def _is_away(error: BaseException) -> bool:
    away = any(isinstance(cause, OperationalError | InterfaceError) for cause in chain_of(error))
    return away and not _cannot_write(error) and not _is_foreign(error)


def _is_foreign(error: BaseException) -> bool:
    """Whether the database has tables that are not Optuna's, which waiting does not mend either."""
    return any(OTHER_TABLES.search(str(cause)) for cause in chain_of(error))


def _cannot_write(error: BaseException) -> bool:
    """Whether the disk is full, broken or read-only, which waiting does not mend."""
    causes = chain_of(error)
    codes = {getattr(cause, "sqlite_errorcode", 0) & 0xFF for cause in causes}  # the rest gives details
    return bool(codes & UNWRITABLE) or any(getattr(c, "sqlstate", None) == DISK_FULL for c in causes)


class JournalLock(BaseJournalFileLock):
    """Locks the journal by a kernel lock: after a death Optuna's own lock makes all others wait 30 s."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._held: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock, then cut off the half line that a killed writer may have left."""
        self._held = wait_for_lock(self.journal.with_name(self.journal.name + ".lock"))
        with self.journal.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end and _byte_at(file, end - 1) != b"\n":
                end -= 1
            file.truncate(end)
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._held is not None:
            self._held.close()
            self._held = None


def _byte_at(file: IO[bytes], place: int) -> bytes:
    file.seek(place)
    return file.read(1)


def open_storage(url: str, wait_s: float, begun: bool = False) -> BaseStorage:
    """Open the storage of `hydra.sweeper.storage`, creating its tables or file when missing.

    Args:
        url: `sqlite:///path`, `journal:path` or `postgresql+psycopg://...`.
        wait_s: Seconds to wait for a database that goes away later on.
        begun: Whether it was open before: a failure then means that it is away for the moment.

    Raises:
        UserError: It cannot be reached, or its driver is not installed.
    """
    try:
        if url.startswith("journal:"):
            path = Path(url.removeprefix("journal:"))
            return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))
        engine = {"connect_args": {"timeout": SQLITE_WAIT_S}} if url.startswith("sqlite:") else POSTGRESQL
        opening = retry_for(url, wait_s if begun else 0)
        return opening.call(lambda: RetryingStorage(url, wait_s, engine))
    except RuntimeError as error:  # how Optuna says that another version of it made the tables
        raise UserError(
            f"hydra.sweeper.storage {shown_address(url)!r} was made by another version of Optuna: "
            f"{reason_of(error)} Or move the study's folder away and begin it anew (study=other)."
        ) from error
    except (SQLAlchemyError, StorageInternalError, ImportError, OSError) as error:
        reason = reason_of(error)
        raise UserError(
            f"hydra.sweeper.storage {shown_address(url)!r} cannot be opened: {reason}. "
            "Check the address, that the server runs, and that its driver (psycopg) is installed."
        ) from error


def open_storage_to_read(url: str) -> BaseStorage:
    """Open a storage that exists; SQLite so that nothing can be written.

    Raises:
        UserError: It is not there, cannot be reached, or is a server that a password may not be sent to.
    """
    in_a_file = url.startswith(("journal:", "sqlite:///"))
    path = Path(url.removeprefix("journal:").removeprefix("sqlite:///"))
    if in_a_file and not path.exists():
        raise UserError(f"hydra.sweeper.storage {url!r} does not exist; has the study been started?")
    if url.startswith("journal:"):
        return open_storage(url, 0)
    if not in_a_file:
        refuse_to_send_a_password(url)
        return open_storage(url, 0)
    engine = {"connect_args": {"timeout": SQLITE_WAIT_S}}
    address = f"sqlite:///file:{path.absolute()}?mode=ro&uri=true"
    return RetryingStorage(address, 0, engine, skip_table_creation=True, skip_compatibility_check=True)


def storage_problem(url: str, study_folder: Path) -> str | None:
    """Why the storage of a sweep could not be opened; makes and changes nothing.

    Args:
        url: As `open_storage` takes it.
        study_folder: The sweep makes this folder when it is missing.
    """
    in_a_file = url.startswith(("journal:", "sqlite:///"))
    path = Path(url.removeprefix("journal:").removeprefix("sqlite:///")).absolute()
    if in_a_file and not path.exists():
        if path.is_relative_to(study_folder) or (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            return None
        return (
            f"hydra.sweeper.storage {url!r} cannot be opened: {path.parent} is no folder that can be "
            "written. Make it, or name another place."
        )
    try:
        if url.startswith("postgresql"):
            create_engine(url, **POSTGRESQL).connect().close()
        else:
            open_storage_to_read(url).get_all_studies()
    except UserError as error:
        return str(error)
    except (SQLAlchemyError, StorageInternalError, ImportError, OSError) as error:
        return (
            f"hydra.sweeper.storage {shown_address(url)!r} cannot be opened: {reason_of(error)}. "
            "Check the address, that the server runs, and that its driver (psycopg) is installed."
        )
    return None


def is_within(url: str, folder: Path) -> bool:
    """Whether a storage is a file in that folder."""
    if not url.startswith(("journal:", "sqlite:///")):
        return False
    path = os.path.abspath(url.removeprefix("journal:").removeprefix("sqlite:///"))
    return Path(path).is_relative_to(os.path.abspath(folder))


def refuse_to_send_a_password(url: str) -> None:
    """Refuse a server that a study's folder names, maybe a stranger's, where it could be sent a password.

    libpq sends PGPASSWORD to whatever server it is told to. PGHOST beside it says which one it is meant for.
    The passwords in ~/.pgpass are each for a named host.

    Raises:
        UserError: PGPASSWORD is set for no such host, or the address leads to another host than it says.
    """
    parts = make_url(url)
    detours = sorted({"hostaddr", "service", "servicefile", "passfile"} & parts.query.keys())
    host = parts.query.get("host") or parts.host or ""
    if detours:
        raise UserError(
            f"the study's folder names the storage {shown_address(url)!r}, whose {detours[0]} could have a "
            "password sent to another server; look at it with Optuna's own tools if it is yours"
        )
    if "PGPASSWORD" in os.environ and host != os.environ.get("PGHOST"):
        raise UserError(
            f"the study's folder names the storage {shown_address(url)!r}, and PGPASSWORD would be sent "
            f"there. If that is meant: export PGHOST={host}, or keep the password in ~/.pgpass"
        )


def shown_address(url: str) -> str:
    """Return an address without its password."""
    return url if url.startswith("journal:") else make_url(url).render_as_string(hide_password=True)


def without_password(url: str) -> str:
    """Return an address to be kept in a file: PostgreSQL's without its password."""
    if not url.startswith("postgresql"):
        return url
    parts = make_url(url)
    kept = parts.drivername, parts.username, None, parts.host, parts.port, parts.database, parts.query
    return URL.create(*kept).render_as_string(hide_password=False)
