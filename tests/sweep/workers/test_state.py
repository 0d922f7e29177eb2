"""What workers say of themselves."""

import json
import os
from pathlib import Path

import pytest

from vqa.sweep.workers.state import (
    StateWriter,
    lock_free_slot,
    lock_slot,
    memory_gib,
    read_states,
    seconds_left,
)


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    folder = tmp_path / ".locks"
    folder.mkdir()
    return folder


def test_only_workers_that_are_alive_are_listed(tmp_path: Path, locks: Path) -> None:
    for slot in (10, 2):
        StateWriter(tmp_path, slot).begin(slot + 1)
    lock = lock_slot(locks, 2)
    assert lock is not None
    [state] = read_states(tmp_path)
    assert (state.slot, state.trial, state.pid) == (2, 3, os.getpid())
    lock.close()
    assert read_states(tmp_path) == []


def test_progress_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("vqa.sweep.workers.state.time.time", lambda: now)
    writer = StateWriter(tmp_path, 0)
    writer.begin(4)
    writer.progress("fold 1 of 3", 1, 9)
    path = tmp_path / "workers/0.json"
    assert json.loads(path.read_text())["done"] == 0
    now = 101.5
    writer.progress("fold 1 of 3", 2, 9)
    said = json.loads(path.read_text())
    assert (said["text"], said["done"], said["total"], said["trial"]) == ("fold 1 of 3", 2, 9, 4)
    assert (said["since"], said["seen"]) == (100.0, 101.5)


def test_a_worker_that_joins_takes_the_first_free_slot(locks: Path) -> None:
    first, held = lock_free_slot(locks)
    second, other = lock_free_slot(locks)
    assert (first, second) == (0, 1)
    assert lock_slot(locks, 1) is None
    held.close()
    third, again = lock_free_slot(locks)
    assert third == 0
    other.close()
    again.close()


def test_memory_is_that_of_the_process_without_a_gpu() -> None:
    assert 0.01 < memory_gib() < 100


def test_time_left_is_shared_by_the_workers() -> None:
    assert seconds_left([2.0, 4.0], trials_left=8, workers=4) == 6.0
    assert seconds_left([2.0, 4.0], trials_left=1, workers=4) == 3.0
    assert seconds_left([2.0], trials_left=3, workers=0) == 6.0
    assert seconds_left([], trials_left=8, workers=4) is None
