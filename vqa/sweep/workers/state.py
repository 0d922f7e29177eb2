"""What each worker is doing: it keeps one small file up to date, which the live table reads."""

import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from vqa.machine.files import is_locked, replace_text, try_lock
from vqa.results.folder import StudyFolder

WRITE_EVERY_S = 1.0


@dataclass(frozen=True)
class WorkerState:
    """What one worker is doing.

    Args:
        slot: Which worker of the study it is.
        host: Its machine.
        pid: Its process there.
        trial: What it runs; None between two trials.
        text: The part of the trial that it works on, for instance "fold 2 of 3".
        done: Finished pieces of that part.
        total: All pieces of that part; 0 = not known.
        memory_gib: Peak memory, GiB: of the GPU; without a GPU, of the process.
        since: When the trial was taken up, `time.time()`.
        seen: When this was written, `time.time()`.
    """

    slot: int
    host: str
    pid: int
    trial: int | None = None
    text: str = ""
    done: int = 0
    total: int = 0
    memory_gib: float = 0.0
    since: float = 0.0
    seen: float = 0.0


def lock_slot(locks: Path, slot: int) -> IO[str] | None:
    """Become worker `slot` for as long as the file is open; None when another process is that worker."""
    for _ in range(10):  # is_locked() holds the lock for an instant
        if (lock := try_lock(locks / f"worker_{slot}")) is not None:
            return lock
        time.sleep(0.05)
    return None


def lock_free_slot(locks: Path) -> tuple[int, IO[str]]:
    """Become the first worker whose slot is free."""
    slot = 0
    while (lock := lock_slot(locks, slot)) is None:
        slot += 1
    return slot, lock


class StateWriter:
    """Keeps the file of one worker up to date, at most once a second."""

    def __init__(self, folder: Path, slot: int) -> None:
        self.path = StudyFolder(folder).workers / f"{slot}.json"
        self.state = WorkerState(slot, socket.gethostname(), os.getpid())

    def begin(self, trial: int | None) -> None:
        """Say which trial is taken up; None = none."""
        now = time.time()
        self.state = replace(self.state, trial=trial, text="", done=0, total=0, since=now)
        self._write(now)

    def progress(self, text: str, done: int, total: int) -> None:
        """Say how far it is; a sink for `vqa.progress.progress_to`."""
        self.state = replace(self.state, text=text, done=done, total=total)
        now = time.time()
        if now - self.state.seen >= WRITE_EVERY_S:
            self._write(now)

    def _write(self, now: float) -> None:
        self.state = replace(self.state, memory_gib=round(memory_gib(), 3), seen=now)
        self.path.parent.mkdir(exist_ok=True)
        replace_text(self.path, json.dumps(asdict(self.state)) + "\n", durable=False)


def memory_gib() -> float:
    """Peak memory of this process, GiB: on its GPU once it uses one, else in main memory."""
    if (torch := sys.modules.get("torch")) is None:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    from vqa.machine.device import peak_memory_gib

    return peak_memory_gib(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))


def read_states(folder: Path) -> list[WorkerState]:
    """Read what the workers that are alive are doing, by slot."""
    study = StudyFolder(folder)
    paths = sorted(study.workers.glob("*.json"), key=lambda path: int(path.stem))
    alive = [path for path in paths if is_locked(study.locks / f"worker_{path.stem}")]
    states = [_read_state(path) for path in alive]
    return [state for state in states if state is not None]


def _read_state(path: Path) -> WorkerState | None:
    """What a worker said last; None where a power loss emptied the file of the slot's earlier worker."""
    try:
        return WorkerState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None


def seconds_left(seconds: list[float], trials_left: int, workers: int) -> float | None:
    """Estimate the seconds until the study is done from the mean time of a trial; None before the first.

    Args:
        seconds: Time of each trial that has ended, pruned ones too.
        trials_left: Trials that have not ended.
        workers: Workers that share them.
    """
    if not seconds:
        return None
    return sum(seconds) / len(seconds) * trials_left / max(1, min(workers, trials_left))
