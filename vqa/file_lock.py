"""Who is alive: a lock on a file, which the kernel drops the moment its holder dies."""

import fcntl
from pathlib import Path
from typing import IO


def try_lock(path: Path, wait: bool = False) -> IO[str] | None:
    """Take an exclusive lock that lasts until the file is closed or the process ends.

    Args:
        path: Lock file; created when missing, never removed.
        wait: Wait for the present holder.

    Returns:
        The open file; None when another holds the lock and `wait` is off.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock."""
    lock = try_lock(path)
    if lock is not None:
        lock.close()
    return lock is None
