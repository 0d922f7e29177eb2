"""The one error type that means "the user can mend this": exit code 2, message only, no traceback."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, the largest file allowed
# a full, broken or read-only disk, missing rights, a file in the way, a name that is too long
NOT_OURS = (
    *(*FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors words an error of the system


class UserError(Exception):
    """A mistake in configuration, data or machine set-up.

    The message says what is wrong, where (file, row, key) and what to do next. The command line prints it
    as it is and leaves with exit code 2; every other exception is a bug and keeps its traceback.
    """


class DoesNotFitError(UserError):
    """The device's memory does not suffice for the smallest piece of work; other trials may fit."""


class InUseError(UserError):
    """Another process is at work in a folder; what it does there is not lost."""


def require(ok: bool, key: str, rule: str, value: object) -> None:
    """Refuse a configured value that breaks its rule.

    Raises:
        UserError: `ok` is false; the message is "<key> must be <rule>, got <value>".
    """
    if not ok:
        raise UserError(f"{key} must be {rule}, got {value!r}")


def mendable(error: OSError) -> UserError | None:
    """What to tell the user of a full disk, missing rights or a file in the way; None: of another error."""
    if error.errno not in NOT_OURS:
        return None
    where = error.filename or "writing results"
    advice = "mend it, or set VQA_OUTPUT=/a/writable/folder; the same command goes on from here"
    return UserError(f"{where}: {error.strerror}; {advice}")


def system_error(error: Exception, where: object) -> OSError | None:
    """The error of the system behind a library's own: safetensors keeps its number in the text alone.

    Args:
        error: What the library raised.
        where: The file or folder it was about.
    """
    found = _RUST.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(where)) if found else None


def problems_of(*tasks: Callable[[], object]) -> list[str]:
    """Run every task and list the messages of those that the user has to mend; empty when there are none."""
    problems = []
    for task in tasks:
        try:
            task()
        except UserError as error:
            problems.append(str(error))
    return problems


def refuse_no_adapter(folder: Path) -> None:
    """Refuse a folder without an adapter.

    Raises:
        UserError: No adapter_config.json lies there.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"adapter={folder}: no adapter_config.json there; "
            "train one with stage=final, or give adapter=FOLDER"
        )
