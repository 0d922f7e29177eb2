"""What the sweeper itself costs: idle workers, time per trial, time to the first trial. On the CPU.

Trials that only sleep for 2 to 30 s show how much of their time several workers spend waiting; beside them
stands a loop in batches, computed from the very same durations without any cost of its own. With --stock
hydra-optuna-sweeper's own sweeper really runs the same trials, through its basic launcher, which has one
worker, and through hydra-joblib-launcher, which has to be installed for it and is no dependency. Trials of no
time at all show what the sweeper spends on one. One row is a real sweep.

    python -m benchmarks.search.sweeper --out FILE
    python -m benchmarks.search.sweeper idle --stock joblib basic --scale 0.1 --out FILE
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.record import add_output_arguments, write_rows

TOY = Path(__file__).parents[2] / "tests" / "helpers" / "toy_app" / "app.py"
PARTS = 9  # a toy trial sleeps `pause_s` so often
COMMON = ["hydra.sweeper.final=false", "hydra/sweeper/pruner=none", "hydra/sweeper/sampler=random"]
CLOCKED_TOY = """
import json, sys, time
sys.path.insert(0, {root!r})
from tests.helpers.toy_app import app
clock, whole = [], app.run_trial
def run_trial(cfg, folder):
    clock.append(time.process_time())
    return whole(cfg, folder) if {reports} else app.question_nll(cfg, 0)
app.run_trial = run_trial
app.main()
open("clock.json", "w").write(json.dumps(clock))
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start_of(trial_folder: Path) -> float:
    """When a trial's job began, seconds since the epoch: its log is written once, at the start."""
    return (trial_folder / "run.log").stat().st_mtime


def idle_share(starts: Sequence[float], seconds: Sequence[float], workers: int) -> float:
    """Share of the workers' time that was no trial's, until the last trial was handed out.

    It counts from the first trial of the last worker to start.

    Args:
        starts: When each trial was handed out, s; in order.
        seconds: How long its own work took.
        workers: Workers that share the trials.
    """
    first, last = starts[workers - 1], starts[-1]
    spans = [(max(a, first), min(a + s, last)) for a, s in zip(starts, seconds, strict=True)]
    busy = sum(max(0.0, end - begin) for begin, end in spans)
    return 1 - busy / (workers * (last - first))


def batch_idle_share(seconds: Sequence[float], workers: int) -> float:
    """The same of a loop that hands out as many trials as there are workers and waits for the slowest."""
    batches = [seconds[i : i + workers] for i in range(0, len(seconds) - workers, workers)]
    return 1 - sum(map(sum, batches)) / (workers * sum(map(max, batches)))


def durations(trials: int, scale: float) -> list[float]:
    """Seconds of each trial: 2 to 30, times the scale; the same every time."""
    drawn = random.Random(0)
    return [scale * drawn.uniform(2, 30) for _ in range(trials)]


def sweeper_overrides(name: str, trials: int, workers: int) -> list[str]:
    """What makes the toy app run that many trials with one of the sweepers."""
    if name == "ours":
        size = [f"hydra.sweeper.n_trials={trials}", f"hydra.sweeper.n_workers={workers}"]
        return ["+sweep=toy", "hydra.sweeper.enqueue=[]", *COMMON, *size]
    stock = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", f"hydra.sweeper.n_trials={trials}"]
    stock += ["stage=trial", "hydra.sweep.subdir=trials/${hydra.job.num}", f"hydra.sweeper.n_jobs={workers}"]
    joblib = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"] if workers > 1 else []
    return [*stock, *joblib, "lr=tag(log, interval(1e-5, 1e-1))"]


def measure_idle(folder: Path, name: str, seconds: Sequence[float], workers: int) -> dict[str, Any]:
    """Trials that sleep so long each, handed out by one of the sweepers."""
    folder.mkdir()
    given = ",".join(f"{duration / PARTS:.6f}" for duration in seconds)
    command = [sys.executable, str(TOY), "-m", f"pauses_s=[{given}]"]
    command += sweeper_overrides(name, len(seconds), workers)
    began = time.time()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=ENVIRONMENT)
    wall = time.time() - began
    trials = sorted((folder / "multirun/toy/trials").glob("*/"), key=lambda trial: int(trial.name))
    begun = sorted(zip(map(start_of, trials), seconds, strict=True))
    return {
        "what": f"idle share of workers, trials of {min(seconds):.2g} to {max(seconds):.2g} s, {name}",
        "trials": len(seconds),
        "workers": workers,
        "idle_share": round(idle_share([s for s, _ in begun], [s for _, s in begun], workers), 4),
        "batches_idle_share": round(batch_idle_share(seconds, workers), 4),
        "wall_s": round(wall, 1),
    }


def measure_overhead(folder: Path, trials: int, storage: str) -> dict[str, Any]:
    """Trials of no time, one worker in the process itself."""
    address = [] if storage == "sqlite" else ["hydra.sweeper.storage=journal:${hydra.sweep.dir}/study.log"]
    folder.mkdir()
    command = [sys.executable, str(TOY), "-m", "+sweep=toy", f"hydra.sweeper.n_trials={trials}", *COMMON]
    subprocess.run([*command, *address], cwd=folder, check=True, capture_output=True, env=ENVIRONMENT)
    trials_at = folder / "multirun/toy/trials"
    made = [start_of(trials_at / f"{number:03d}") for number in range(trials)]
    gaps = [after - before for before, after in pairwise(made)]
    return {
        "what": f"seconds per trial that does nothing, {storage}",
        "trials": trials,
        "median_s": round(median(gaps), 4),
        "last_quarter_median_s": round(median(gaps[-trials // 4 :]), 4),
    }


def measure_cpu(folder: Path, trials: int, reports: bool) -> dict[str, Any]:
    """CPU time from one trial's start to the next, one worker in the process itself, SQLite.

    Other work on the machine moves it less than the wall time of `measure_overhead`.

    Args:
        folder: Where to work.
        trials: Trials of the study.
        reports: Whether a trial reports and writes its folds; else it returns its score at once.
    """
    folder.mkdir()
    code = CLOCKED_TOY.format(root=str(TOY.parents[3]), reports=reports)
    command = [sys.executable, "-c", code, "-m", "+sweep=toy", f"hydra.sweeper.n_trials={trials}", *COMMON]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=ENVIRONMENT)
    clock = json.loads((folder / "clock.json").read_text())
    gaps = [after - before for before, after in pairwise(clock)]
    trial = "of eight reports and three folds" if reports else "without its function"
    return {
        "what": f"CPU seconds per trial {trial}, sqlite",
        "trials": trials,
        "median_cpu_s": round(median(gaps), 4),
        "last_quarter_median_cpu_s": round(median(gaps[-trials // 4 :]), 4),
        "start_cpu_s": round(clock[0], 2),
    }


def measure_start(folder: Path) -> dict[str, Any]:
    """A real sweep on the embedded model: from the command to its first trial."""
    folder.mkdir()
    command = [sys.executable, "-m", "vqa.run", "-m", "+sweep=lora", "budget=smoke", "data.train_size=60"]
    began = time.time()
    with (folder / "log").open("wb") as log:
        sweep = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
        while not (state := folder / "multirun/lora/workers/0.json").exists():
            if sweep.poll() is not None:
                raise RuntimeError(f"the sweep ended with {sweep.returncode}: {(folder / 'log').read_text()}")
            time.sleep(0.05)
        since = json.loads(state.read_text())["since"]
        while not (folder / "multirun/lora/trials/000/folds.csv").exists():
            time.sleep(0.05)
        first_fold = time.time()
        sweep.terminate()
        sweep.wait()
    return {
        "what": "seconds from the command to the first trial, and to its first finished fold",
        "first_trial_s": round(since - began, 2),
        "first_fold_s": round(first_fold - began, 2),
    }


def measurements(given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Make what was asked for, one after the other."""
    if given.what in ("all", "cost"):
        for storage in ("sqlite", "journal"):
            yield measure_overhead(folder / storage, given.empty, storage)
        for reports in (False, True):
            yield measure_cpu(folder / f"cpu_{reports}", given.empty, reports)
        yield measure_start(folder / "start")
    if given.what in ("all", "idle"):
        seconds = durations(given.trials, given.scale)
        yield measure_idle(folder / "ours", "ours", seconds, given.workers)
        for launcher in given.stock:
            workers = 1 if launcher == "basic" else given.workers
            yield measure_idle(folder / launcher, f"stock sweeper, {launcher} launcher", seconds, workers)


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["all", "cost", "idle"], default="all")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="of the trials' 2 to 30 s")
    parser.add_argument(
        "--stock", nargs="*", default=[], choices=["joblib", "basic"], help="hydra-optuna-sweeper's own too"
    )
    parser.add_argument("--empty", type=int, default=60, help="trials that do nothing")
    add_output_arguments(parser)
    given = parser.parse_args()
    if "joblib" in given.stock and not find_spec("hydra_plugins.hydra_joblib_launcher"):
        parser.error("--stock joblib needs: pip install --pre hydra-joblib-launcher")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for row in measurements(given, Path(temporary)):
            print(json.dumps(row), flush=True)
            rows.append(row)
    write_rows(given.out, "sweeper", rows, given.machine, append=False)


if __name__ == "__main__":
    main()
