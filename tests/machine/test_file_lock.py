"""A lock lasts exactly as long as its holder, and whoever waits for it says for whom."""

import os
import threading
from pathlib import Path

import pytest

from vqa.errors import UserError
from vqa.machine.files import is_locked, try_lock, wait_for_lock


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


def test_whoever_waits_names_the_holder_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = try_lock(tmp_path / "study")
    assert held is not None
    threading.Timer(0.35, held.close).start()
    with wait_for_lock(tmp_path / "study", say_every_s=0.1):
        pass
    said = [record.getMessage() for record in caplog.records]
    assert len(said) in (2, 3)
    assert said[0].startswith(f"waiting for {tmp_path / 'study'} for 0 min: it is held by ")
    if f":{(tmp_path / 'study').stat().st_ino} " in Path("/proc/locks").read_text():
        assert f"process {os.getpid()} (" in said[0]


def test_a_lock_whose_folder_is_gone_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.locks was removed while it was in use(?s:.*)repeat the command"):
        try_lock(tmp_path / ".locks" / "study")
    assert not is_locked(tmp_path / ".locks" / "study")
