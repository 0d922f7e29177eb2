"""Files that several processes share, and locks that say who is alive.

A file is never seen half written, also after a kill, a full disk or a power loss.

The kernel drops a lock the moment its holder dies.

The locks are our own and not filelock's. Here a lock is an open file, so that `with` and `close` end it. A
filelock counts its entries: once acquired, it stays held when a `with` block around it ends. Where the file
system has no flock, filelock falls back to marker files, and a marker outlives the process that died.
"""

import errno
import fcntl
import hashlib
import io
import logging
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

from vqa.errors import UserError

log = logging.getLogger(__name__)

POLL_S = 0.02
PARTIAL = ".partial"
MOST_TEXT_BYTES = 2**30  # predictions of a million questions are 200 MB
LONGEST_NAME = 255  # bytes; of Linux
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # such as Lustre mounted without it
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP)  # a file system that has no such thing, such as some mounted drives


class NoLocksError(UserError):
    """The file system knows no locks, so nobody can tell who is at work."""


@contextmanager
def replacing(path: Path, mode: int | None = None, durable: bool = True) -> Iterator[Path]:
    """Write a file in one step: whoever reads `path` finds the old content or the new, never a part.

    The block writes to the path that it is given. At its end the content is brought to the disk, takes its
    place, and the folder's entry is brought to the disk too: what a later file claims is then there, even
    after a power loss. Where the block fails, the old file stays and the unfinished one is removed.

    Args:
        path: Its folder must exist.
        mode: Who may read and write it; None = as usual.
        durable: False where a loss does no harm, and for one of many files: it is not brought to the disk at
            once, and the folder is not searched for what killed processes left.

    Yields:
        Where to write; beside `path`, under a hidden name.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    partial = _unfinished(path, search=durable)
    try:
        if mode is not None:
            partial.touch(mode=mode)
        yield partial
        if durable:
            to_disk(partial)
        partial.replace(path)
    except BaseException:
        remove(partial)  # a full disk needs the room
        raise
    if durable:
        to_disk(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder in one step, like `replacing`; a folder that is there is replaced as a whole.

    Yields:
        An empty folder beside `path`, under a hidden name.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    partial, old = _unfinished(path, search=True), path.with_name(f".{path.name}.old")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in sorted(partial.rglob("*")):
            to_disk(file)
        to_disk(partial)
        remove(old)
        if path.exists():
            path.replace(old)
        partial.replace(path)
    except BaseException:
        remove(partial)
        raise
    to_disk(path.parent)
    remove(old)


def replace_text(path: Path, text: str, mode: int | None = None, durable: bool = True) -> None:
    """Write `text` to `path` in one step; a file that has this text already is not touched.

    Args:
        path: Its folder must exist.
        text: The whole content.
        mode: Who may read and write it; None = as usual.
        durable: As for `replacing`.

    Raises:
        OSError: As for `replacing`.
    """
    data = text.encode("utf-8", "surrogateescape")  # names of files in a folder need not be UTF-8
    if path.is_file() and path.read_bytes() == data:
        return
    with replacing(path, mode, durable) as partial:
        partial.write_bytes(data)


def _unfinished(path: Path, search: bool) -> Path:
    """The hidden path beside `path` that this process writes to.

    Args:
        path: What it becomes.
        search: Remove the unfinished files that killed processes of this machine left.
    """
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME // 2:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    here = f".{name}.{socket.gethostname()[:40]}-"
    if search and path.parent.is_dir():
        for entry in os.scandir(path.parent):
            if entry.name.startswith(here) and entry.name.endswith(PARTIAL):
                import psutil  # only after a kill

                pid = entry.name.removeprefix(here).removesuffix(PARTIAL)
                if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
                    remove(Path(entry.path))
    return path.with_name(f"{here}{os.getpid()}{PARTIAL}")


def to_disk(path: Path) -> None:
    """Bring a file's content, or a folder's entries, to the disk.

    Raises:
        OSError: The disk is full or broken.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            error.filename = str(path)
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def try_lock(path: Path) -> IO[str] | None:
    """Take an exclusive lock that lasts until the file is closed or the process ends.

    Args:
        path: Lock file; created when missing, never removed.

    Returns:
        The open file; None when another holds the lock.

    Raises:
        UserError: The folder of the locks is gone. A new one would let two processes hold the same lock.
        NoLocksError: The file system has no locks.
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
    except OSError as error:
        file.close()
        if error.errno not in NO_FLOCK:
            raise
        raise NoLocksError(
            f"{path.parent} lies on a file system without locks ({error.strerror}); a sweep needs them: take "
            "another one for the results (env.output_root=...), or have it mounted with flock"
        ) from error
    return file


def wait_for_lock(path: Path, say_every_s: float = 60.0) -> IO[str]:
    """Wait for the lock, and take it; name its holder now and then.

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
                f"waiting for {path} for {(now - began) / 60:.0f} min: it is held by {holder(path)}. "
                "If that process hangs, end it: this one then goes on."
            )
        time.sleep(POLL_S)
    return lock


def holder(path: Path) -> str:
    """The process that holds a lock in words, as far as this machine knows it.

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


def clock_ahead_s(folder: Path) -> float:
    """Seconds by which this machine's clock is ahead of the one that dates the files of a folder.

    Machines that share a folder over a network see the server's clock there, so that they can agree on an
    instant although their own clocks differ.

    Args:
        folder: An existing one, where a file can be made.

    Raises:
        OSError: The folder cannot be written.
    """
    stamp = folder / f".clock.{socket.gethostname()[:40]}-{os.getpid()}"
    try:
        stamp.touch()
        return time.time() - stamp.stat().st_mtime
    finally:
        stamp.unlink(missing_ok=True)


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


def read_text(path: Path) -> str:
    """Read a text file that may be a stranger's: never a device, or a pipe, which would wait.

    Line ends stay as they are; a byte order mark goes.

    Raises:
        OSError: As for `read_regular`, with `MOST_TEXT_BYTES`.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_regular(path, MOST_TEXT_BYTES).decode("utf-8-sig")


def _refuse_irregular(path: Path) -> NoReturn:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
