"""Does the learning rate that short trials prefer suit the long final run? On the embedded model, on the CPU.

For every seed: out-of-fold NLL of short K-fold trials over a grid of learning rates, and held-out NLL of the
full-length final run over the same grid. Then the short trials' favourite as it is, the same lowered for the
longer run with each exponent, and the best of the full-length grid are compared.

    python -m benchmarks.search.lr_horizon --first-seed 3 --seeds 5 --processes 8 --out FILE

With `--read FILE:PASSES ...` nothing is run: of earlier results, whose trials saw so many passes, every two
exponents are tried at full length and the better on the held-out questions is kept.

    python -m benchmarks.search.lr_horizon --read FILE:400 FILE:300 --out FILE
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.harness.record import add_output_arguments, write_rows

RATES = (5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3)
RANK = ("lora.r=16", "lora.lora_alpha=32")
EXPONENTS = (0.0, 0.1, 0.2, 0.32)  # the third: conf/budget/final.yaml; the last: Bjorck et al. 2024
DEVICE = os.environ.get("VQA_BENCHMARK_DEVICE", "cpu")
TRIAL_PASSES, FINAL_PASSES = 300, 7200  # 450 questions in 3 folds; 2,400 questions x 3 epochs


def command(kind: str, seed: int, rate: float, folder: Path) -> list[str]:
    """The command line of one short K-fold trial or one full-length final run."""
    common = [
        f"optimizer.lr={rate}",
        f"seed={seed}",
        *RANK,
        "tracking=none",
        "env.threads=1",
        f"env.device={DEVICE}",
    ]
    where = f"hydra.run.dir={folder / f'{kind}-{seed}-{rate}'}"
    stage = ["stage=trial", "budget=trial"] if kind == "short" else ["stage=final", "winner=none"]
    return [sys.executable, "-m", "vqa.run", *stage, *common, where]


def run(job: tuple[str, int, float], folder: Path) -> dict[str, Any]:
    """Run one job and read its scores."""
    kind, seed, rate = job
    subprocess.run(
        command(kind, seed, rate, folder),
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    done = folder / f"{kind}-{seed}-{rate}"
    row: dict[str, Any] = {"kind": kind, "seed": seed, "lr": rate}
    if kind == "short":
        with (done / "folds.csv").open(newline="") as file:
            folds = list(csv.DictReader(file))
        n = sum(int(f["n_valid"]) for f in folds)
        row |= {
            name: sum(float(f[name]) * int(f["n_valid"]) for f in folds) / n for name in ("nll", "accuracy")
        }
    else:
        metrics = json.loads((done / "metrics.json").read_text())
        row |= {
            "nll": metrics["nll"],
            "accuracy": metrics["accuracy"],
            "test_accuracy": metrics["test"]["accuracy"],
        }
        row |= {"test_nll": metrics["test"]["nll"], "seconds_per_1000": 1000 / metrics["train_samples_per_s"]}
    print(json.dumps(row), flush=True)
    return row


def nearest(rate: float) -> float:
    """The grid's rate that is nearest on a log scale."""
    return min(RATES, key=lambda r: abs(math.log(r / rate)))


def compare(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Held-out and test scores of each exponent's choice and of the grid's best, for one seed."""
    short = {r["lr"]: r for r in rows if r["kind"] == "short" and r["seed"] == seed}
    long = {r["lr"]: r for r in rows if r["kind"] == "long" and r["seed"] == seed}
    favourite = min(short, key=lambda rate: short[rate]["nll"])
    ratio = TRIAL_PASSES / FINAL_PASSES
    chosen = {f"exponent {e}": nearest(favourite * ratio**e) for e in EXPONENTS}
    chosen["best of grid"] = min(long, key=lambda rate: long[rate]["nll"])
    keys = ("nll", "accuracy", "test_nll", "test_accuracy")
    scores = {name: {"lr": rate} | {key: long[rate][key] for key in keys} for name, rate in chosen.items()}
    return {"kind": "choice", "seed": seed, "favourite": favourite} | scores


def two_rates(results: list[tuple[list[dict[str, Any]], int]]) -> list[dict[str, Any]]:
    """Scores of one full-length run for each exponent, and of the better of two; differences to one at 0.2.

    Args:
        results: Rows of a grid of short and long runs, and the passes of its short trials.
    """
    chosen: dict[str, list[dict[str, Any]]] = {}
    for rows, passes in results:
        for seed in sorted({r["seed"] for r in rows if r["kind"] == "long"}):
            short = {r["lr"]: r["nll"] for r in rows if r["kind"] == "short" and r["seed"] == seed}
            long = {r["lr"]: r for r in rows if r["kind"] == "long" and r["seed"] == seed}
            favourite = min(short, key=lambda rate: short[rate])
            runs = {e: long[nearest(favourite * (passes / FINAL_PASSES) ** e)] for e in EXPONENTS}
            for e in EXPONENTS:
                chosen.setdefault(f"{e}", []).append(runs[e])
            for one, other in combinations(EXPONENTS, 2):
                better = min(runs[one], runs[other], key=lambda run: run["nll"])
                chosen.setdefault(f"{one} or {other}", []).append(better)
    return [_row(name, runs, chosen["0.2"]) for name, runs in chosen.items()]


def _row(name: str, runs: list[dict[str, Any]], default: list[dict[str, Any]]) -> dict[str, Any]:
    gains = [d["test_nll"] - run["test_nll"] for run, d in zip(runs, default, strict=True)]
    row: dict[str, Any] = {"kind": "two_rates", "exponents": name, "seeds": len(runs)}
    row |= {key: fmean(run[key] for run in runs) for key in ("nll", "test_nll", "test_accuracy")}
    row |= {"worst_nll": max(run["nll"] for run in runs), "gain_over_0.2": fmean(gains)}
    return row | {"gain_se": stdev(gains) / math.sqrt(len(gains))}


def main() -> None:
    """Parse the command line, run the grid in parallel, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--read", nargs="+", help="FILE:PASSES of earlier results; runs nothing")
    add_output_arguments(parser)
    arguments = parser.parse_args()
    if arguments.read:
        read = [name.rsplit(":", 1) for name in arguments.read]
        earlier = [(json.loads(Path(name).read_text())["rows"], int(passes)) for name, passes in read]
        rows = two_rates(earlier)
        print(*map(json.dumps, rows), sep="\n")
        write_rows(arguments.out, "lr_horizon", rows, arguments.machine, append=False)
        return
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [(kind, seed, rate) for seed in seeds for kind in ("long", "short") for rate in RATES]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.processes) as pool:
        rows = list(pool.map(lambda job: run(job, Path(folder)), jobs))
    rows += [compare(rows, seed) for seed in seeds]
    write_rows(arguments.out, "lr_horizon", rows, arguments.machine, append=False)


if __name__ == "__main__":
    main()
