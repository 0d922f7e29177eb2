"""A full disk for tests: without root, and for libraries in C++ and Rust too."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_up_to(room: int) -> Iterator[None]:
    """No file of this process grows beyond `room` bytes inside the block: a write of more fails with EFBIG.

    Python ignores the signal that comes with it, so that the system's error reaches every library alike.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
