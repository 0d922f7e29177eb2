"""One process at a time works in a run's folder; the second is told who is there, and changes nothing."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

import pytest

from vqa.errors import UserError
from vqa.machine.files import NoLocksError, try_lock
from vqa.results import work
from vqa.results.folder import RUN_LOCK
from vqa.results.work import at_work


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TRIES", 2)


def test_the_second_is_told_process_and_machine_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "out/final"
    with at_work(folder):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with (
            pytest.raises(
                UserError,
                match=rf"final is in use by process {os.getpid()} of {socket.gethostname()}, since 2.* UTC. "
                "Nothing was changed: wait for its end",
            ),
            at_work(folder),
        ):
            pytest.fail("two are at work")
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with at_work(folder):
        pass


def test_a_dead_holders_lock_is_taken_over(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        at_work(tmp_path).__enter__()
        os._exit(9)
    os.waitpid(child, 0)
    assert str(child) in (tmp_path / RUN_LOCK).read_text()
    with at_work(tmp_path):
        assert str(os.getpid()) in (tmp_path / RUN_LOCK).read_text()


@pytest.mark.hostile
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\x00", b"x" * 10_000])
def test_what_stands_in_the_file_decides_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RUN_LOCK).write_bytes(content)
    with at_work(tmp_path):
        pass
    lock = try_lock(tmp_path / RUN_LOCK)
    assert lock is not None
    (tmp_path / RUN_LOCK).write_bytes(content)
    with lock, pytest.raises(UserError, match=r"is in use by .") as raised, at_work(tmp_path):
        pass
    assert len(str(raised.value)) < 1000


def test_a_complete_run_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with at_work(tmp_path), at_work(tmp_path):
        assert not (tmp_path / RUN_LOCK).exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(NoLocksError, match=r"without locks .* a sweep needs them: take another one"):
        try_lock(tmp_path / "lock")
    with caplog.at_level(logging.WARNING), at_work(tmp_path):
        pass
    assert "do not start the same command twice at once" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "final").write_text("a file")
    with (
        pytest.raises(UserError, match=r"final cannot be written .* set VQA_OUTPUT="),
        at_work(tmp_path / "final"),
    ):
        pass
