"""What pruning saves and costs: the same study with different pruners, on the embedded model, on the CPU.

python -m benchmarks.search.pruning --out FILE
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness.record import add_output_arguments, write_rows

PRUNERS = ("none", "hyperband", "successive_halving", "median", "wilcoxon")
FOLDS = 3
QUESTIONS_PER_FOLD = 150  # conf/budget/trial.yaml: 450 in 3 folds


def run(pruner: str, seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """One study without its final run; the share of folds is counted in reports (thirds of a fold)."""
    root = folder / f"{pruner}-{seed}"
    overrides = [
        *("-m", "+sweep=lora", f"hydra/sweeper/pruner={pruner}", f"hydra.sweeper.n_trials={trials}"),
        *(
            "hydra.sweeper.final=false",
            "tracking=none",
            "env.threads=1",
            f"seed={seed}",
            f"env.output_root={root}",
        ),
    ]
    began = time.time()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "vqa.run", *overrides], check=True, capture_output=True, env=environment
    )
    import optuna

    study = optuna.load_study(study_name="lora", storage=f"sqlite:///{root / 'lora' / 'study.db'}")
    with (root / "lora" / "leaderboard.csv").open(newline="") as file:
        board = list(csv.DictReader(file))
    row = {
        "pruner": pruner,
        "seed": seed,
        "trials": len(board),
        "pruned": sum(r["state"] == "PRUNED" for r in board),
        "share_of_folds": round(sum(_folds_run(t) for t in study.trials) / (FOLDS * len(board)), 3),
        "best_nll": float(board[0]["nll"]),
        "best_nll_se": float(board[0]["nll_se"]),
        "best_accuracy": float(board[0]["accuracy"]),
        "best_lr": float(board[0]["optimizer.lr"]),
        "tied_with_best": sum(r["tied_with_best"] == "true" for r in board),
        "seconds": round(time.time() - began, 1),
    }
    print(json.dumps(row), flush=True)
    return row


def _folds_run(trial: Any) -> float:
    if trial.state.name == "COMPLETE":
        return FOLDS
    last = max(trial.intermediate_values, default=0)
    by_question = len(trial.intermediate_values) > 3 * FOLDS  # wilcoxon reports after whole folds
    return len(trial.intermediate_values) / QUESTIONS_PER_FOLD if by_question else last / 3


def main() -> None:
    """Parse the command line, run the studies in parallel, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pruners", nargs="+", default=PRUNERS)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    add_output_arguments(parser)
    arguments = parser.parse_args()
    jobs = [(pruner, seed) for seed in range(arguments.seeds) for pruner in arguments.pruners]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.processes) as pool:
        rows = list(pool.map(lambda job: run(job[0], job[1], arguments.trials, Path(folder)), jobs))
    write_rows(arguments.out, "pruning", rows, arguments.machine, append=False)


if __name__ == "__main__":
    main()
