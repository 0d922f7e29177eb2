"""Files that several processes share: texts never seen half written, and locks that say who is alive.

The kernel drops a lock the moment its holder dies.
"""

import fcntl
from pathlib import Path
from typing import IO


def replace_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write `text` to `path` in one step; a file that says the same already is not touched.

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
