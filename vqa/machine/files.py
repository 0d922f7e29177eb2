"""Files that several processes share: texts never seen half written, and locks that say who is alive.

The kernel drops a lock the moment its holder dies.

The locks are our own and not filelock's. Here a lock is an open file, so that `with` and `close` end it. A
filelock counts its entries: once acquired, it stays held when a `with` block around it ends. Where the file
system has no flock, filelock falls back to marker files, and a marker outlives the process that died.
"""

import errno
import fcntl
import io
import logging
import os
import stat
import time
from pathlib import Path
from typing import IO, NoReturn

from vqa.errors import UserError

log = logging.getLogger(__name__)

POLL_S = 0.02


def replace_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write `text` to `path` in one step; a file that has this text already is not touched.

    Args:
        path: Its folder must exist.
        text: The whole content.
        mode: Who may read and write it; None = as usual.
    """
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    partial = path.with_name(f".{path.name}.partial")
    if mode is not None:
        partial.touch(mode=mode)
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)


def try_lock(path: Path) -> IO[str] | None:
    """Take an exclusive lock that lasts until the file is closed or the process ends.

    Args:
        path: Lock file; created when missing, never removed.

    Returns:
        The open file; None when another holds the lock.

    Raises:
        UserError: The folder of the locks is gone. A new one would let two processes hold the same lock.
    """
    try:
        file = path.open("a")
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} was removed while it was in use, so nobody knows any more who is at work. "
            "End all processes of this study, then repeat the command."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def wait_for_lock(path: Path, say_every_s: float = 60.0) -> IO[str]:
    """Take the lock as soon as its present holder lets go; name the holder now and then.

    Args:
        path: As for `try_lock`.
        say_every_s: Seconds between two messages.

    Raises:
        UserError: As `try_lock`.
    """
    began = said_at = time.monotonic()
    while (lock := try_lock(path)) is None:
        now = time.monotonic()
        if now - said_at >= say_every_s:
            said_at = now
            log.warning(
                f"waiting for {path} for {(now - began) / 60:.0f} min: it is held by {_holder(path)}. "
                "If that process hangs, end it: this one then goes on."
            )
        time.sleep(POLL_S)
    return lock


def _holder(path: Path) -> str:
    """Describe the process that holds a lock, as far as this machine knows.

    Source: proc_locks(5): `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`.
    """
    import psutil  # not at every start

    inode = os.stat(path).st_ino
    table = Path("/proc/locks")
    lines = table.read_text(encoding="ascii").splitlines() if table.exists() else []
    for fields in (line.split() for line in lines if " -> " not in line):
        if fields[5].rpartition(":")[2] == str(inode):
            try:
                process = psutil.Process(int(fields[4]))
                return f"process {process.pid} ({process.name()}, {process.status()}) of this machine"
            except psutil.Error:  # it has just ended, or lives in another container
                continue
    return "a process that this machine does not see, such as one of another machine"


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock; nobody does where the folder of the locks is gone."""
    if not path.parent.exists():
        return False
    lock = try_lock(path)
    if lock is not None:
        lock.close()
    return lock is None


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file that a stranger's list names for reading: never a device, or a pipe, which would wait.

    Args:
        path: Links are followed.

    Raises:
        OSError: It is missing, no regular file, or cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        _refuse_irregular(path)
    # O_NONBLOCK: it may have become a pipe since; O_NOCTTY: or a terminal
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        _refuse_irregular(path)
    return file


def read_regular(path: Path, limit_bytes: int) -> bytes:
    """Read such a file whole, when it is no larger than the limit.

    Raises:
        OSError: As for `open_regular`, or it is too large.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit_bytes:
            text = f"{size / 2**30:.1f} GiB, the limit is {limit_bytes / 2**30:.1f}"
            raise OSError(errno.EFBIG, text, str(path))
        return file.read()


def _refuse_irregular(path: Path) -> NoReturn:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
