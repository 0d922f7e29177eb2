"""A study whose workers are killed and whose database is restarted again and again: is anything lost?

The study runs with several workers; at random instants one of them gets a kill -9, or is stopped (SIGSTOP),
loses the lock of its trial, which another worker then takes up, and is woken (SIGCONT); the database is
stopped and started in between. Then every trial is looked at, and the winner's final run is compared with a
direct run of the same configuration. On the embedded model, or with `--app toy` on trials without training.

    python -m benchmarks.endurance.chaos --storages postgresql sqlite --out FILE
    python -m benchmarks.endurance.chaos --app toy --search promote --zombies 4 --out FILE
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import optuna
from omegaconf import OmegaConf

from benchmarks.endurance.own_postgresql import OwnPostgresql
from benchmarks.endurance.study_damage import damage
from benchmarks.harness.record import add_output_arguments, write_rows
from vqa.sweep.storage import open_storage

TOY = Path(__file__).parents[2] / "tests" / "helpers" / "toy_app" / "app.py"
APPS = {
    "toy": [str(TOY), "pause_s=0.25"],
    "vqa": ["-m", "vqa.run", "tracking=none", "budget=smoke", "budget.folds=3", "budget.subsample=150",
            "data.train_size=300", "data.test_size=20", "env.threads=1"],
}  # fmt: skip

SEARCHES = {
    "default": [],
    "promote": ["hydra/sweeper/sampler=thompson", "hydra/sweeper/pruner=promote"],
}


@dataclass(frozen=True)
class Attack:
    """What is done to a study.

    Args:
        kills: Workers to kill.
        spacing_s: Mean seconds between two kills.
        restarts: Restarts of the database, evenly among the kills; PostgreSQL only.
        seed: Of the random instants and workers.
        zombies: Workers to stop and to wake again, evenly among the kills.
        stopped_s: Seconds for which each is stopped.
    """

    kills: int
    spacing_s: float
    restarts: int
    seed: int
    zombies: int = 0
    stopped_s: float = 60.0


@dataclass
class Study:
    """One study under attack.

    Args:
        app: "toy" or "vqa".
        storage: `hydra.sweeper.storage`; None = the default, SQLite in the study's folder.
        trials: Trials of the study.
        workers: Workers that share it.
        folder: An empty working directory.
        search: "default" or "promote".
    """

    app: str
    storage: str | None
    trials: int
    workers: int
    folder: Path
    search: str = "default"
    kills: list[float] = field(default_factory=list)  # seconds lost by each
    struck: dict[int, tuple[float, float]] = field(
        default_factory=dict
    )  # slot -> when killed, when it stopped
    killed: int = 0
    asleep: dict[int, float] = field(default_factory=dict)  # pid of a stopped worker -> when it is woken
    woken: int = 0

    @property
    def name(self) -> str:
        """The study's name."""
        return "toy" if self.app == "toy" else "lora"

    @property
    def place(self) -> Path:
        """The study's folder."""
        return self.folder / "multirun" / self.name

    def command(self) -> list[str]:
        """The command line of the sweep."""
        storage = [] if self.storage is None else [f"hydra.sweeper.storage={self.storage}"]
        sweep = ["-m", f"+sweep={self.name}", f"hydra.sweeper.n_trials={self.trials}", *storage]
        more = [f"hydra.sweeper.n_workers={self.workers}", "hydra.sweeper.max_retries=50"]
        search = SEARCHES[self.search] or (["hydra/sweeper/pruner=none"] if self.app == "toy" else [])
        return [sys.executable, *APPS[self.app], *search, *sweep, *more]

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the sweep; its output goes to `sweep.log`."""
        with (self.folder / "sweep.log").open("ab") as log:
            return subprocess.Popen(
                self.command(), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=_environment()
            )

    def states(self) -> dict[int, dict[str, Any]]:
        """What each worker said last, by slot."""
        files = (self.place / "workers").glob("*.json")
        return {int(file.stem): json.loads(file.read_text()) for file in files}

    def strike(self, sweep: int, chance: random.Random) -> bool:
        """Kill one of the workers of process `sweep`; False when none is up."""
        if not (slots := self.awake(sweep)):
            return False
        pid = chance.choice(sorted(slots))
        state = self.states().get(slots[pid])
        os.kill(pid, signal.SIGKILL)
        self.killed += 1
        at_work = state is not None and state["pid"] == pid and state["trial"] is not None
        stopped = time.time()
        if at_work and state is not None:  # what it did since the last finished fold is done again
            folds = self.place / "trials" / f"{state['trial']:03d}" / "folds.csv"
            stopped = max(state["since"], folds.stat().st_mtime if folds.exists() else 0.0)
        before = self.struck.get(slots[pid])
        self.struck[slots[pid]] = (time.time(), stopped if before is None else before[1])
        return True

    def awake(self, sweep: int) -> dict[int, int]:
        """The workers of process `sweep` that nobody stopped: process id -> slot."""
        children = Path(f"/proc/{sweep}/task/{sweep}/children").read_text().split()
        slots = {int(pid): slot for pid in children if (slot := _slot_of(int(pid))) is not None}
        return {pid: slot for pid, slot in slots.items() if pid not in self.asleep}

    def stop(self, sweep: int, chance: random.Random, seconds: float) -> bool:
        """Stop a worker that is at a trial, and take that trial's lock away; False when none is."""
        states = self.states()
        at_work = [
            pid
            for pid, slot in sorted(self.awake(sweep).items())
            if slot in states and states[slot]["pid"] == pid and states[slot]["trial"] is not None
        ]
        if not at_work:
            return False
        pid = chance.choice(at_work)
        os.kill(pid, signal.SIGSTOP)
        trial = self.states()[_slot_of(pid) or 0]["trial"]
        if trial is not None:  # None: it went on to the next one in that instant
            (self.place / ".locks" / str(trial)).unlink(missing_ok=True)
        self.asleep[pid] = time.time() + seconds
        return True

    def wake(self, everybody: bool = False) -> None:
        """Wake the workers whose time it is, or all of them."""
        for pid, when in list(self.asleep.items()):
            if everybody or time.time() >= when:
                os.kill(pid, signal.SIGCONT)
                del self.asleep[pid]
                self.woken += 1

    def notice(self) -> None:
        """Note which of the killed workers are at work again."""
        for slot, state in self.states().items():
            killed, stopped = self.struck.get(slot, (float("inf"), 0.0))
            if state["since"] >= killed and state["trial"] is not None:
                self.kills.append(state["since"] - stopped)
                del self.struck[slot]


def _slot_of(pid: int) -> int | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended in between
        return None
    slots = [variable[11:] for variable in variables if variable.startswith(b"VQA_WORKER=")]
    return int(slots[0]) if slots else None


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def attack(study: Study, plan: Attack, server: OwnPostgresql | None) -> float:
    """Run the sweep to its end under attack; one that is over too soon has been killed less often.

    Returns:
        Seconds it took, the final run included.
    """
    chance = random.Random(plan.seed)
    began = time.time()
    sweep = study.start()
    shares = range(1, (plan.restarts if server else 0) + 1)
    after = [round(plan.kills * share / (plan.restarts + 1)) for share in shares]
    stops = [round(plan.kills * share / (plan.zombies + 1)) for share in range(1, plan.zombies + 1)]
    next_kill = 0.0
    while sweep.poll() is None:
        time.sleep(0.05)
        study.notice()
        study.wake()
        if not study.states():
            continue  # nobody is at work yet
        if server is not None and after and study.killed >= after[0]:
            after.pop(0)
            server.stop("fast" if len(after) % 2 else "immediate")
            time.sleep(3)
            server.start()
        if stops and study.killed >= stops[0] and study.stop(sweep.pid, chance, plan.stopped_s):
            stops.pop(0)
        if study.killed < plan.kills and time.time() >= next_kill and study.strike(sweep.pid, chance):
            next_kill = time.time() + chance.uniform(0, 2 * plan.spacing_s)
    study.wake(everybody=True)
    if sweep.returncode != 0:
        raise RuntimeError(f"the sweep ended with {sweep.returncode}; see {study.folder / 'sweep.log'}")
    return time.time() - began


def trials_of(study: Study) -> list[optuna.trial.FrozenTrial]:
    """Every trial on record."""
    storage = open_storage(study.storage or f"sqlite:///{study.place / 'study.db'}", 60)
    return optuna.load_study(study_name=study.name, storage=storage).get_trials()


def same_as_direct(study: Study) -> bool:
    """Whether the winner's final run left the very files of a direct run of the same configuration."""
    final = study.place / "final"
    overrides = [str(text) for text in OmegaConf.load(final / ".hydra" / "overrides.yaml")]
    app = APPS[study.app][:1] if study.app == "toy" else APPS[study.app][:2]
    command = [sys.executable, *app, *overrides, "hydra.run.dir=direct"]
    subprocess.run(command, cwd=study.folder, check=True, env=_environment(), capture_output=True)
    direct = study.folder / "direct"
    if study.app == "toy":
        return (final / "metrics.json").read_bytes() == (direct / "metrics.json").read_bytes()
    files = ["adapter/adapter_model.safetensors", "valid_predictions.csv", "test_predictions.csv"]
    return all((final / name).read_bytes() == (direct / name).read_bytes() for name in files)


def retries(study: Study) -> int:
    """How often a trial was taken up again."""
    return sum(trial.user_attrs.get("deaths", 0) for trial in trials_of(study))


def measure(
    kind: str, app: str, trials: int, workers: int, plan: Attack, folder: Path, search: str = "default"
) -> dict[str, Any]:
    """One study on one kind of storage; the figures of a row.

    Args:
        kind: "sqlite", "journal" or "postgresql".
        app: "toy" or "vqa".
        trials: Trials of the study.
        workers: Workers that share it.
        plan: What is done to it.
        folder: Where its working directory is made.
        search: "default" or "promote".
    """
    folder.mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if kind == "postgresql":
        with OwnPostgresql() as server:
            study = Study(app, server.url, trials, workers, folder, search)
            return _figures(study, kind, attack(study, plan, server), plan.restarts)
    journal = f"journal:{folder.absolute() / 'study.log'}"
    study = Study(app, journal if kind == "journal" else None, trials, workers, folder, search)
    return _figures(study, kind, attack(study, plan, None), 0)


def _figures(study: Study, kind: str, seconds: float, restarts: int) -> dict[str, Any]:
    row = {
        "storage": kind,
        "app": study.app,
        "trials": study.trials,
        "workers": study.workers,
        "search": study.search,
        "kills": study.killed,
        "zombies": study.woken,
        "database_restarts": restarts,
        "retries": retries(study),
        "seconds_lost_per_kill_median": round(median(study.kills), 2),
        "seconds_lost_per_kill_mean": round(fmean(study.kills), 2),
        "damage": damage(study.place, trials_of(study), study.trials),
        "final_same_as_direct": same_as_direct(study),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Parse the command line, attack one study per storage, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storages", nargs="+", default=["postgresql", "sqlite"])
    parser.add_argument("--app", choices=sorted(APPS), default="vqa")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--spacing", type=float, default=10.0, help="mean seconds between two kills")
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--zombies", type=int, default=0, help="workers to stop and wake")
    parser.add_argument("--stopped", type=float, default=60.0, help="seconds for which each is stopped")
    parser.add_argument("--search", choices=sorted(SEARCHES), default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the studies; default: a temporary one")
    add_output_arguments(parser)
    given = parser.parse_args()
    plan = Attack(given.kills, given.spacing, given.restarts, given.seed, given.zombies, given.stopped)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        rows = [
            measure(kind, given.app, given.trials, given.workers, plan, folder / kind, given.search)
            for kind in given.storages
        ]
    write_rows(given.out, "chaos", rows, given.machine, append=False)


if __name__ == "__main__":
    main()
