"""A lock lasts exactly as long as its holder."""

import os
from pathlib import Path

from vqa.machine.files import is_locked, try_lock


def test_a_lock_keeps_others_out_until_it_is_closed(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    assert is_locked(tmp_path / "lock")
    lock.close()
    assert not is_locked(tmp_path / "lock")


def test_the_kernel_drops_the_lock_of_a_dead_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try_lock(tmp_path / "lock")
        os._exit(9)
    os.waitpid(child, 0)
    assert try_lock(tmp_path / "lock") is not None
