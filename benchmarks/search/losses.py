"""Which loss learns best: over the vocabulary at the answer, over the four letters, or over every token?

Equal questions and passes through the product's final run, several seeds, the embedded model, both datasets.
Each loss may have its own learning rate: the one with the best held-out NLL, the mean over the seeds. Losses
are then compared on the test rows, which chose nothing, question by question.

    python -m benchmarks.search.losses --work WORK --seeds 3 --processes 16 --out FILE
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.cells import Cell, Result, finished, run_cells
from benchmarks.harness.paired import holm, sign_flip_p_value
from benchmarks.harness.process import one_thread
from benchmarks.harness.record import add_output_arguments, write_rows

LOSSES = ("full", "answer_only", "choice_ce")  # the dear one first
RATES = (7.5e-4, 1.5e-3, 3e-3)  # around the embedded model's own
DATA = {"emoji_quiz": ("data=emoji_quiz", "prompt=direct_ko"), "easy_vqa": ("data=easy_vqa",)}
DEVICE = os.environ.get("VQA_BENCHMARK_DEVICE", "cpu")


def folder_of(cell: Cell, work: Path) -> Path:
    """The folder of a cell's run."""
    return work / "losses" / "-".join(str(cell[name]) for name in ("dataset", "loss", "lr", "seed"))


def evaluate(work: Path, more: Sequence[str], cell: Cell) -> Result:
    """Train one adapter and read its scores."""
    folder = folder_of(cell, work)
    settings = (f"loss={cell['loss']}", f"optimizer.lr={cell['lr']}", f"seed={cell['seed']}")
    machine = ("tracking=none", "env.threads=1", f"env.device={DEVICE}", f"env.output_root={work}")
    overrides = [*DATA[cell["dataset"]], *settings, *machine, *more, f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "vqa.run", "stage=final", "winner=none", *overrides]
    done = subprocess.run(command, env=one_thread(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(overrides)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    metrics = json.loads((folder / "metrics.json").read_text())
    if not metrics["train_samples_per_s"]:  # taken up after its last step
        raise RuntimeError(
            f"{folder}: an earlier call trained it, so its speed is not known; delete the folder"
        )
    return {
        "nll": metrics["nll"],
        "accuracy": metrics["accuracy"],
        "test_nll": metrics["test"]["nll"],
        "test_accuracy": metrics["test"]["accuracy"],
        "option_mass": metrics["test"]["option_mass"],
        "seconds_per_1000": 1000 / metrics["train_samples_per_s"],
    }


def best_rate(results: Sequence[Result], dataset: str, loss: str) -> float:
    """The rate with the lowest held-out NLL, the mean over seeds."""
    mine = [r for r in results if (r["dataset"], r["loss"]) == (dataset, loss)]
    rates = {r["lr"] for r in mine}
    return float(min(rates, key=lambda lr: float(np.mean([r["nll"] for r in mine if r["lr"] == lr]))))


def summarised(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Scores of each loss at its best rate, means over the seeds and by seed."""
    rows = []
    for dataset, loss in dict.fromkeys((r["dataset"], r["loss"]) for r in results):
        rate = best_rate(results, dataset, loss)
        mine = [r for r in results if (r["dataset"], r["loss"], r["lr"]) == (dataset, loss, rate)]
        names = [name for name in mine[0] if name not in ("dataset", "loss", "lr", "seed")]
        row = {"kind": "loss", "dataset": dataset, "loss": loss, "lr": rate, "seeds": len(mine)}
        row |= {name: float(np.mean([r[name] for r in mine])) for name in names}
        rows.append(row | {"test_nll_by_seed": [r["test_nll"] for r in mine]})
    return rows


def compared(losses: Sequence[dict[str, Any]], work: Path, seeds: int) -> list[dict[str, Any]]:
    """Every two losses on the same test questions.

    p values: of NLL a paired t-test, of accuracy McNemar's, for each seed; over the seeds by flipping signs
    of the questions' mean differences, corrected (Holm) over all pairs and both scores.
    """
    rows = []
    for one, other in combinations(losses, 2):
        if one["dataset"] == other["dataset"]:
            rows.append(_pair(one, other, work, seeds))
    flat = [(row, name) for row in rows for name in ("p_nll", "p_accuracy")]
    for (row, name), p in zip(flat, holm([row[name] for row, name in flat]), strict=True):
        row[f"{name}_holm"] = p
    return rows


def _pair(one: dict[str, Any], other: dict[str, Any], work: Path, seeds: int) -> dict[str, Any]:
    from vqa.results.metrics import mcnemar_p_value, paired_p_value, per_question_nll
    from vqa.results.predictions import read_predictions

    by_seed: dict[str, list[float]] = {"p_nll_by_seed": [], "p_accuracy_by_seed": []}
    nll, right = [], []
    for seed in range(seeds):
        a, b = (
            read_predictions(folder_of(row | {"seed": seed}, work) / "test_predictions.csv")
            for row in (one, other)
        )
        nll_a, nll_b = per_question_nll(a), per_question_nll(b)
        by_seed["p_nll_by_seed"].append(paired_p_value(nll_a, nll_b))
        by_seed["p_accuracy_by_seed"].append(mcnemar_p_value(a, b))
        nll.append([nll_a[p.id] - nll_b[p.id] for p in a])
        right.append([(p.answer == p.gold) - (q.answer == q.gold) for p, q in zip(a, b, strict=True)])
    return {
        "kind": "pair",
        "dataset": one["dataset"],
        "losses": [one["loss"], other["loss"]],
        "nll_difference": float(np.mean(nll)),
        "accuracy_difference": float(np.mean(right)),
        "p_nll": sign_flip_p_value(np.mean(nll, axis=0).tolist()),
        "p_accuracy": sign_flip_p_value(np.mean(right, axis=0).tolist()),
        **by_seed,
    }


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as two tables."""
    lines = ["| data | loss | lr | held-out NLL, accuracy | test NLL, accuracy | option mass | s/1000 |"]
    lines.append("|---" * 7 + "|")
    for r in rows:
        if r["kind"] == "loss":
            scores = f"{r['nll']:.4f}, {r['accuracy']:.3f} | {r['test_nll']:.4f}, {r['test_accuracy']:.3f}"
            end = f"{r['option_mass']:.3f} | {r['seconds_per_1000']:.1f} |"
            lines.append(f"| {r['dataset']} | {r['loss']} | {r['lr']:g} | {scores} | {end}")
    lines += ["", "| data | losses | test NLL | p (Holm) | accuracy, points | p (Holm) |", "|---" * 6 + "|"]
    for r in rows:
        if r["kind"] == "pair":
            nll = f"{r['nll_difference']:+.4f} | {r['p_nll_holm']:.3f}"
            points = f"{100 * r['accuracy_difference']:+.2f} | {r['p_accuracy_holm']:.3f}"
            lines.append(f"| {r['dataset']} | {' - '.join(r['losses'])} | {nll} | {points} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, train in parallel, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--datasets", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--override", nargs="*", default=[], help="further overrides, e.g. budget.epochs=1")
    add_output_arguments(parser)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    cells = [
        {"dataset": dataset, "loss": loss, "lr": rate, "seed": seed}
        for loss in LOSSES
        for dataset in arguments.datasets
        for rate in arguments.rates
        for seed in range(arguments.seeds)
    ]
    path = work / "losses.jsonl"
    job = partial(evaluate, work, arguments.override)
    failures = run_cells(cells, job, path, arguments.processes, math.inf)
    if failures:
        raise SystemExit(f"{len(failures)} runs failed; the same command tries them again")
    results = [r for r in finished(path) if any(cell.items() <= r.items() for cell in cells)]
    losses = summarised(results)
    rows = [*losses, *compared(losses, work, arguments.seeds)]
    print(printed(rows))
    write_rows(arguments.out, "losses", rows, arguments.machine, append=False)


if __name__ == "__main__":
    main()
