"""Several workers: copies of the very command, one per GPU, watched by the first process.

Workers are plain processes. Each loads its own model once and takes trials from the shared study, so none
waits for another. A worker that dies is started again within a second. `worker_command` puts a launcher such
as srun in front of the copies, which then run wherever it places them.
"""

import logging
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig

from vqa.errors import UserError, mendable
from vqa.machine.files import clock_ahead_s, is_locked, replace_text
from vqa.machine.notification import asked_for
from vqa.results.folder import StudyFolder
from vqa.sweep.study import SharedStudy

log = logging.getLogger(__name__)

SLOT = "VQA_WORKER"  # in a worker's environment: its slot, a whole number of its own, or auto
AUTO: Final = "auto"  # the first slot that is free
DEADLINE = "VQA_DEADLINE"  # by the clock that dates the study's files: those of the machines may differ
POLL_S = 0.5
BLOCK = 4096  # bytes; what a file takes at least
LONGEST_PAUSE_S = 60.0  # before a worker that keeps dying is started again


def own_slot() -> int | Literal["auto"] | None:
    """Which worker this process is; None in the process that the user started.

    Raises:
        UserError: The variable holds neither a slot nor auto.
    """
    slot = os.environ.get(SLOT)
    if slot is None:
        return None
    if slot == AUTO:
        return AUTO
    if not (slot.isascii() and slot.isdigit()):
        raise UserError(f"{SLOT} must be a whole number >= 0 of this worker's own, or auto, got {slot!r}.")
    return int(slot)


def own_deadline(study_folder: Path) -> float:
    """When the whole sweep has to stop, in a worker process (`time.time()`); started by hand: never."""
    deadline = float(os.environ.get(DEADLINE, "inf"))
    return deadline if deadline == float("inf") else deadline + clock_ahead_s(study_folder)


def shared_deadline(study_folder: Path, deadline: float) -> float:
    """Turn a `time.time()` of this machine into what `own_deadline` reads on another one."""
    return deadline if deadline == float("inf") else deadline - clock_ahead_s(study_folder)


def refusal_file(study_folder: Path, slot: int) -> Path:
    """Where a worker leaves the UserError that ended it."""
    return StudyFolder(study_folder).workers / f"{slot}.refused"


def log_file(study_folder: Path, slot: int) -> Path:
    """Where goes what the workers of a slot print."""
    return StudyFolder(study_folder).workers / f"{slot}.log"


def visible_gpus() -> list[str]:
    """List the GPUs to share out, without starting CUDA in this process."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu not in ("", "-1")]
    count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return [str(index) for index in range(count)]


def share_out(gpus: list[str], workers: int) -> list[str]:
    """What each worker sees: one GPU, or several where there are fewer workers than GPUs.

    Returns:
        Values of CUDA_VISIBLE_DEVICES, to be taken in turn.
    """
    return gpus if workers >= len(gpus) else [",".join(gpus[i::workers]) for i in range(workers)]


def worker_environment(slot: int, gpus: list[str], deadline: float, elsewhere: bool) -> dict[str, str]:
    """Give what a copy's environment has beyond this one's: its GPUs, or one CPU thread.

    Args:
        slot: Which worker.
        gpus: This machine's, as shared out.
        deadline: When no further trial starts, as of `shared_deadline`.
        elsewhere: Whether another program, which knows its own machines, places the worker.
    """
    extra = {SLOT: str(slot), DEADLINE: repr(deadline)}
    if elsewhere:
        return extra
    if gpus:
        extra["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    else:
        extra["OMP_NUM_THREADS"] = "1"
    return extra


class JobCallback(Callback):
    """A user's Hydra callback in a worker: it hears of jobs, and the first process alone of the multirun.

    Args:
        of: The callback's class, as in its `_target_`.
        **arguments: Its arguments.
    """

    def __init__(self, of: str, **arguments: Any) -> None:
        self.callback = instantiate({"_target_": of}, **arguments)  # if the command trusts it

    def on_job_start(self, config: DictConfig, **more: Any) -> None:
        """Pass it on."""
        self.callback.on_job_start(config, **more)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **more: Any) -> None:
        """Pass it on."""
        self.callback.on_job_end(config, job_return=job_return, **more)


def own_command(callbacks: Mapping[str, Any]) -> list[str]:
    """Give this process's command line for a copy, whose callbacks hear of jobs only."""
    target = f"{JobCallback.__module__}.{JobCallback.__qualname__}"
    overrides = [
        f"{key}={value}"
        for name, node in callbacks.items()
        for key, value in (
            (f"+hydra.callbacks.{name}.of", node["_target_"]),
            (f"hydra.callbacks.{name}._target_", target),
        )
    ]
    return [sys.executable, *asked_for(sys.orig_argv[1:])[1], *overrides]  # a worker tells nobody


class WorkerProcess(Protocol):
    """A worker that somebody started."""

    def poll(self) -> int | None:
        """Its exit code; None while it is up, or waits for a machine."""

    def is_queued(self) -> bool:
        """Whether it still waits for a machine."""

    def terminate(self) -> None:
        """Ask it to keep what it has and to end."""

    def kill(self) -> None:
        """End it at once, where that can be done."""

    def wait(self) -> None:
        """Wait for its end; one that still waits for a machine is not waited for."""


class LocalWorker:
    """A copy of the command, as a process of this machine or behind `worker_command`.

    Args:
        command: What to run.
        environment: All of it.
        log: Takes what the copy prints.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as out:
            self._process = subprocess.Popen(  # its own group: a Ctrl-C reaches it once, through the pool
                list(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.poll = self._process.poll
        self.terminate = self._process.terminate

    def is_queued(self) -> bool:
        """Never: it runs."""
        return False

    def kill(self) -> None:
        """End it, and wait until it is gone and its memory is free: a large process takes a moment."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()


def start_here(
    shared: SharedStudy, command: Sequence[str], deadline: float
) -> Callable[[int], WorkerProcess]:
    """Give what starts the worker of a slot on this machine, or behind `hydra.sweeper.worker_command`.

    Args:
        shared: The study.
        command: Of a worker.
        deadline: `time.time()` after which no trial starts.
    """
    launcher = shlex.split(shared.settings.worker_command or "")
    gpus = share_out(visible_gpus(), shared.settings.n_workers)
    until = shared_deadline(shared.folder, deadline)

    def start(slot: int) -> WorkerProcess:
        environment = os.environ | worker_environment(slot, gpus, until, bool(launcher))
        return LocalWorker([*launcher, *command], environment, log_file(shared.folder, slot))

    return start


class WorkerPool:
    """Keeps the workers of one study up until nothing is left for them.

    Args:
        shared: The study.
        start: Starts the worker of a slot.
        deadline: `time.time()` after which no trial starts.
        on_poll: Called twice a second, to draw the table.
    """

    def __init__(
        self,
        shared: SharedStudy,
        start: Callable[[int], WorkerProcess],
        deadline: float,
        on_poll: Callable[[], None],
    ) -> None:
        self.shared = shared
        self.start = start
        self.deadline = deadline
        self.on_poll = on_poll
        self.folder = StudyFolder(shared.folder).workers
        self.up: dict[int, WorkerProcess] = {}
        self.deaths: Counter[int] = Counter()  # by slot, since the last trial that ended well
        self.idle: Counter[int] = Counter()  # by slot: ends without a trial, one after another
        self._before: dict[int, bytes] = {}  # what the slot's last worker had said when this one started
        self._not_before: dict[int, float] = {}  # time.monotonic() of the slot's next start

    def run(self) -> None:
        """Start the workers, and start those again that die, until all is done or time is up.

        Raises:
            UserError: A worker refused its configuration or data, the disk is full, or the workers die and
                get nowhere.
        """
        self.folder.mkdir(exist_ok=True)
        for slot in range(self.shared.settings.n_workers):
            refusal_file(self.shared.folder, slot).unlink(missing_ok=True)
        well = 0
        try:
            while True:
                tally = self.shared.tally()
                if tally.done - tally.failed > well:  # one that died too often is no progress
                    well = tally.done - tally.failed
                    self.deaths.clear()
                self._collect()
                over = self.shared.is_over() or self.shared.too_many_failures()
                if over or time.time() >= self.deadline:
                    if all(process.is_queued() for process in self.up.values()):
                        return
                else:
                    self._fill()
                self.on_poll()
                time.sleep(POLL_S)
        finally:
            self._stop()

    def _collect(self) -> None:
        """Take note of workers that have ended."""
        for slot, process in list(self.up.items()):
            code = process.poll()
            if code is None:
                continue
            del self.up[slot]
            refusal = refusal_file(self.shared.folder, slot)
            if refusal.exists():
                raise UserError(refusal.read_text(encoding="utf-8"))
            if code != 0:
                self._refuse_full_disk()
                self.deaths[slot] += 1
                log.warning(f"worker {slot} died ({code}); see {log_file(self.shared.folder, slot)}")
            self.idle[slot] = 0 if self._said(slot) != self._before[slot] else self.idle[slot] + 1
            if code == 0 and self.idle[slot] and self._has_trials_left():
                self.deaths[slot] += 1
                log.warning(
                    f"worker {slot} ended without taking a trial, although some are left; see "
                    f"{log_file(self.shared.folder, slot)}. Does hydra.sweeper.worker_command start this "
                    "command?"
                )
            ends = max(self.deaths[slot] - 1, self.idle[slot])
            self._not_before[slot] = time.monotonic() + min(LONGEST_PAUSE_S, POLL_S * 2.0 ** min(ends, 10))

    def _refuse_full_disk(self) -> None:
        """Say what a worker that died could not: on a full disk its refusal and its log find no room.

        Raises:
            UserError: Nothing can be written in the study's folder.
        """
        try:
            replace_text(self.folder / "room", "." * BLOCK)
            (self.folder / "room").unlink()
        except OSError as error:
            error.filename = str(self.folder)
            if (refusal := mendable(error)) is None:
                raise
            raise refusal from error

    def _said(self, slot: int) -> bytes:
        """What the slot's worker has last written of itself; each trial that it takes changes that."""
        path = self.folder / f"{slot}.json"
        return path.read_bytes() if path.exists() else b""

    def _has_trials_left(self) -> bool:
        """Whether a worker could have started a trial."""
        left = self.shared.has_more() and time.time() < self.deadline
        return left and not self.shared.too_many_failures()

    def _fill(self) -> None:
        """Start a worker in each empty slot that has work to do."""
        slots = range(self.shared.settings.n_workers)
        allowed = [slot for slot in slots if self.deaths[slot] <= self.shared.settings.max_retries]
        if not allowed and not self.up:
            raise UserError(
                f"every worker died more than max_retries={self.shared.settings.max_retries} times without "
                f"finishing a trial. See {self.folder}/*.log; the same command goes on from here."
            )
        for slot in allowed:
            if time.monotonic() < self._not_before.get(slot, 0.0):
                continue
            if slot not in self.up and self._work_for_another() and not self._is_taken(slot):
                self._before[slot] = self._said(slot)
                self.up[slot] = self.start(slot)

    def _work_for_another(self) -> bool:
        tally = self.shared.tally()
        return len(self.up) < tally.running or self.shared.has_more()

    def _is_taken(self, slot: int) -> bool:
        """Whether a worker of an earlier run is still at it."""
        return is_locked(self.shared.locks / f"worker_{slot}")

    def _stop(self) -> None:
        for process in self.up.values():
            process.terminate()  # srun passes TERM on to the worker, but not INT
        try:
            for process in self.up.values():
                process.wait()
        except KeyboardInterrupt:
            log.warning("stopped at once; what the workers were at goes on with the next run")
            for process in self.up.values():
                process.kill()
            raise
        finally:
            self.up.clear()


def note_refusal(study_folder: Path, slot: int, error: UserError) -> None:
    """Leave a worker's UserError where the pool finds it."""
    replace_text(refusal_file(study_folder, slot), str(error), durable=False)
