"""What the sweeper itself costs: idle workers, time per trial, time to the first trial. On the CPU.

Trials that only sleep for 2 to 30 s show how much of their time several workers spend waiting; beside it
stands a loop in batches, as the stock sweeper makes, computed from the very same durations without any cost
of its own. Trials of no time at all show what the sweeper spends on one. The last row is a real sweep.

    python -m benchmarks.sweeper --out FILE
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import optuna

from benchmarks.record import add_output_arguments, write_rows

TOY = Path(__file__).parents[1] / "tests" / "toy_app" / "app.py"
PARTS = 9  # a toy trial sleeps `pause_s` so often
COMMON = ["hydra.sweeper.final=false", "hydra/sweeper/pruner=none", "hydra/sweeper/sampler=random"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_toy(folder: Path, *overrides: str) -> list[optuna.trial.FrozenTrial]:
    """Run a toy sweep in an empty folder; returns its trials."""
    folder.mkdir()
    command = [sys.executable, str(TOY), "-m", "+sweep=toy", "hydra.sweeper.enqueue=[]", *COMMON, *overrides]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=ENVIRONMENT)
    storage = f"sqlite:///{folder / 'multirun/toy/study.db'}"
    return optuna.load_study(study_name="toy", storage=storage).get_trials()


def start_of(trial: optuna.trial.FrozenTrial) -> float:
    """When a trial was handed out, seconds since the epoch."""
    if not isinstance(trial.datetime_start, datetime):
        raise TypeError(f"trial {trial.number} has no start")
    return trial.datetime_start.timestamp()


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


def measure_idle(folder: Path, trials: int, workers: int) -> dict[str, Any]:
    """Trials of 2 to 30 s."""
    done = run_toy(
        folder,
        *(f"hydra.sweeper.n_trials={trials}", f"hydra.sweeper.n_workers={workers}"),
        f"pause_s=interval({2 / PARTS}, {30 / PARTS})",
    )
    seconds = [PARTS * trial.params["pause_s"] for trial in done]
    return {
        "what": "idle share of workers, trials of 2 to 30 s",
        "trials": trials,
        "workers": workers,
        "idle_share": round(idle_share([start_of(trial) for trial in done], seconds, workers), 4),
        "batches_idle_share": round(batch_idle_share(seconds, workers), 4),
    }


def measure_overhead(folder: Path, trials: int, storage: str) -> dict[str, Any]:
    """Trials of no time, one worker in the process itself."""
    address = [] if storage == "sqlite" else ["hydra.sweeper.storage=journal:${hydra.sweep.dir}/study.log"]
    folder.mkdir()
    command = [sys.executable, str(TOY), "-m", "+sweep=toy", f"hydra.sweeper.n_trials={trials}", *COMMON]
    subprocess.run([*command, *address], cwd=folder, check=True, capture_output=True, env=ENVIRONMENT)
    trials_at = folder / "multirun/toy/trials"
    # the log of a trial is written once, while its job runs
    made = [(trials_at / f"{number:03d}" / "run.log").stat().st_mtime for number in range(trials)]
    gaps = [after - before for before, after in pairwise(made)]
    return {
        "what": f"seconds per trial that does nothing, {storage}",
        "trials": trials,
        "median_s": round(median(gaps), 4),
        "last_quarter_median_s": round(median(gaps[-trials // 4 :]), 4),
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


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--empty", type=int, default=60, help="trials that do nothing")
    add_output_arguments(parser)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for storage in ("sqlite", "journal"):
            rows.append(measure_overhead(folder / storage, given.empty, storage))
            print(json.dumps(rows[-1]), flush=True)
        rows.append(measure_start(folder / "start"))
        print(json.dumps(rows[-1]), flush=True)
        rows.append(measure_idle(folder / "idle", given.trials, given.workers))
        print(json.dumps(rows[-1]), flush=True)
    write_rows(given.out, "sweeper", rows, given.machine, append=False)


if __name__ == "__main__":
    main()
