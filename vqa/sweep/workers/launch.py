"""Workers that one of Hydra's launchers starts: `hydra/launcher=submitit_slurm|submitit_local|joblib|ray`.

One launched job is one worker: it runs this command again, which takes trials from the shared study until
none is left. Each worker is a launch of its own, so that one that dies is started again while the others
work. The command itself keeps the study's results and the final run.

A launcher names programs and files of its own (`setup`, `python`, `runtime_env`), so its choice and all its
keys come from the command line, never from a file.
"""

import copy
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any, Self

from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vqa.errors import UserError
from vqa.machine.files import is_locked
from vqa.results.folder import StudyFolder
from vqa.sweep.multirun import hydra_overrides
from vqa.sweep.study import SharedStudy
from vqa.sweep.workers.pool import (
    WorkerProcess,
    log_file,
    share_out,
    shared_deadline,
    visible_gpus,
    worker_environment,
)

log = logging.getLogger(__name__)

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's default: no launcher was chosen
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
TARGETS = {
    "submitit_slurm": f"{SUBMITIT}.SlurmLauncher",
    "submitit_local": f"{SUBMITIT}.LocalLauncher",
    "joblib": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "ray": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
}
HERE = ("submitit_local", "joblib")  # they start processes of this machine, whose GPUs we share out
POLL_S = 0.5
LAST_WORDS_S = 10.0  # how long a launcher may take to hear of a worker's end


def chosen_launcher(config: DictConfig) -> str | None:
    """Return which launcher places the workers; None = Hydra's default, which places none.

    Args:
        config: The composed configuration of the sweep.

    Raises:
        UserError: A study has no use for the launcher, or a file chose or set it.
    """
    node = config.hydra.launcher
    if node._target_ == BASIC:
        return None
    name = str(config.hydra.runtime.choices.get("hydra/launcher", node._target_))
    if TARGETS.get(name) != node._target_:
        raise UserError(
            f"hydra/launcher must be one of {', '.join(TARGETS)} for a study, got {name}. Or leave it out: "
            "hydra.sweeper.n_workers and hydra.sweeper.worker_command place the workers too."
        )
    given = dict(_given(hydra_overrides(config)))
    if "hydra/launcher" not in given:
        raise UserError(
            "hydra/launcher starts programs, so it must be given on the command line, not in a file. "
            f"If that is meant: hydra/launcher={name}"
        )
    default = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
    before = dict(_leaves("hydra.launcher", OmegaConf.to_container(default, resolve=False)))
    for key, value in _leaves("hydra.launcher", OmegaConf.to_container(node, resolve=False)):
        if key not in given and (key not in before or before[key] != value):
            raise UserError(
                f"{key} can start programs, so it must be given on the command line, not in a file; "
                f"got {value!r}. If that is meant: {key}={value!r}"
            )
    _refuse_control_characters(node)
    return name


def _given(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Every key that the command line sets, down to the keys within a mapping, and its value."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        yield from _leaves(override.key_or_group, override.value())


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _refuse_control_characters(node: DictConfig) -> None:
    """Refuse what would be a line of its own in a launcher's shell script."""
    try:
        plain = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.launcher cannot be resolved: {error}") from error
    for key, value in _leaves("hydra.launcher", plain):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isprintable():
                raise UserError(f"{key} must hold no line break or other control character, got {text!r}.")


@dataclass(frozen=True)
class LaunchedWorker:
    """What a launched job runs: one worker, as a process of its own.

    The model is in that process. Where it is killed, the job ends with its exit code, and a launcher that
    keeps several jobs in one pool of processes, as joblib does, loses no other job.

    Args:
        arguments: Of the job's own Python.
        environment: What the worker's has beyond the job's.
        folder: Where the command was given.
        log: Takes what the worker prints.
        wanted: Exists until the worker is asked to end.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    wanted: Path

    def __call__(self, config: DictConfig) -> int:
        """Run the worker; returns its exit code."""
        if not self.wanted.exists():  # the sweep ended while this job waited for a machine
            return 0
        with _without_interrupts(), self.log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, *self.arguments],
                env=os.environ | self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            try:
                while (code := process.poll()) is None:
                    if not self.wanted.exists():
                        process.terminate()
                    time.sleep(POLL_S)
            finally:  # the launcher ends the job, which is out of time
                if process.poll() is None:
                    process.terminate()
                process.wait()
        return code


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Leave a Ctrl-C to the command, which asks the worker to end: one in its pool stops joblib for good."""
    if threading.current_thread() is not threading.main_thread():  # joblib with n_jobs=1
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Launch:
    """A worker that was handed to a launcher.

    Args:
        end: The launch, which ends with the worker.
        lock: Held by the worker while it is up.
        wanted: Removed to ask it to end.
    """

    def __init__(self, end: "AsyncResult[int]", lock: Path, wanted: Path) -> None:
        self._end = end
        self._lock = lock
        self._wanted = wanted

    def poll(self) -> int | None:
        """Its exit code; 1 where the launcher lost it. None while it is up, or waits for a machine."""
        if not self._end.ready():
            return None
        return self._end.get() if self._end.successful() else 1

    def is_queued(self) -> bool:
        """Whether it waits for a machine, or is about to end."""
        return self.poll() is None and not is_locked(self._lock)

    def terminate(self) -> None:
        """Ask it to keep what it has and to end; one that waits for a machine ends when it gets one."""
        self._wanted.unlink(missing_ok=True)

    def kill(self) -> None:
        """Do nothing more: only the launcher's own machines could end it at once."""

    def wait(self) -> None:
        """Wait for its end, unless it waits for a machine."""
        while self.poll() is None and not self.is_queued():
            time.sleep(POLL_S)
        self._end.wait(timeout=LAST_WORDS_S)


class Launches:
    """Starts the workers of a study through a launcher of Hydra's. A context manager.

    Args:
        shared: The study.
        context: Hydra's own.
        config: The configuration of the sweep itself.
        name: Which launcher.
        command: Of a worker.
        deadline: `time.time()` after which no trial starts.
    """

    def __init__(
        self,
        shared: SharedStudy,
        context: HydraContext,
        config: DictConfig,
        name: str,
        command: Sequence[str],
        deadline: float,
    ) -> None:
        self.shared = shared
        self.context = replace(context, callbacks=Callbacks())  # a job is told of by its worker alone
        self.name = name
        self.arguments = tuple(command[1:])
        self.until = shared_deadline(shared.folder, deadline)
        self.gpus = share_out(visible_gpus(), shared.settings.n_workers)
        token = secrets.token_hex(8)
        self.wanted = StudyFolder(shared.folder).workers / f"{token}.wanted"
        self.own_files = shared.folder / ".submitit" / token  # new and unguessable: it holds pickled objects
        self.config = _with_own_files(config, self.own_files) if name.startswith("submitit") else config
        self.threads = ThreadPool(shared.settings.n_workers)  # daemons: a launch that waits keeps nobody
        self._launched: list[AsyncResult[int]] = []

    def __enter__(self) -> Self:
        """Make what the launched jobs need."""
        self.wanted.parent.mkdir(exist_ok=True)
        self.wanted.touch()
        if self.name.startswith("submitit"):
            self.own_files.parent.mkdir(mode=0o700, exist_ok=True)  # pickled settings may hold a password
        if self.name == "ray":
            from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

            start_ray(self.config.hydra.launcher.ray.init)  # before threads do
        return self

    def __exit__(self, *unused: object) -> None:
        """Tell workers that wait for a machine that they are wanted no more."""
        self.wanted.unlink(missing_ok=True)
        if all(end.ready() and end.successful() for end in self._launched):
            shutil.rmtree(self.own_files, ignore_errors=True)  # what a launcher wrote of failures is kept
            with suppress(OSError):  # another launch's files are in it, or there is none
                self.own_files.parent.rmdir()

    def __call__(self, slot: int) -> WorkerProcess:
        """Launch the worker of a slot."""
        path = log_file(self.shared.folder, slot)
        task = LaunchedWorker(
            self.arguments,
            worker_environment(slot, self.gpus, self.until, elsewhere=self.name not in HERE),
            Path.cwd(),
            path,
            self.wanted,
        )
        launcher = Plugins.instance().instantiate_launcher(self.context, task, self.config)
        end = self.threads.apply_async(_launch, (launcher, slot, self.overrides), error_callback=_tell(slot))
        self._launched.append(end)
        return Launch(end, self.shared.locks / f"worker_{slot}", self.wanted)

    @property
    def overrides(self) -> list[str]:
        """Those of a launched job: the sweep's own, or Hydra would see another sweep, and a folder."""
        return [*self.shared.space.fixed, "hydra.sweep.subdir=workers", "hydra.output_subdir=null"]


def _with_own_files(config: DictConfig, folder: Path) -> DictConfig:
    """The sweep's configuration with the folder of submitit's files, as if the command line had set it."""
    key = "hydra.launcher.submitit_folder"
    changed = copy.deepcopy(config)
    with read_write(changed.hydra), open_dict(changed.hydra):
        changed.hydra.launcher.submitit_folder = f"{folder}/%j"
        others = [given for given in hydra_overrides(config) if not given.startswith(f"{key}=")]
        changed.hydra.overrides.hydra = [*others, f"{key}='{folder}/%j'"]
    return changed


def _launch(launcher: Launcher, slot: int, overrides: Sequence[str]) -> int:
    """Launch one job and wait for its end; returns the worker's exit code."""
    [job] = launcher.launch([list(overrides)], initial_job_idx=slot)
    return int(job.return_value)


def _tell(slot: int) -> Callable[[BaseException], None]:
    """Give what says why a launcher lost a worker."""

    def tell(error: BaseException) -> None:
        text = " ".join(str(error).split())
        log.warning(f"worker {slot}: its launcher says {type(error).__name__}: {text[:200]}")

    return tell
