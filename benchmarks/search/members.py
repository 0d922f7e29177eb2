"""What several adapters, averaged and calibrated, gain over one of them, and what they cost.

A repetition is one final run with `final.members`: its own seed, so its own split and trainings. The first
member is what the run without members would have given. Test questions are the same in all repetitions.

    python -m benchmarks.search.members run --work WORK --repetitions 5 --out FILE
    python -m benchmarks.search.members table FILE
"""

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.cells import Cell, Result, finished, run_cells
from benchmarks.harness.paired import Table, interval, sign_flip_p_value
from benchmarks.harness.process import composed
from benchmarks.harness.record import add_output_arguments, write_rows

DATASETS = {
    "easy_vqa": ("data=easy_vqa", "data.seed=0"),
    "emoji_quiz": ("data=emoji_quiz", "data.seed=0", "prompt=direct_ko"),
}
WAYS = ("single", "single_calibrated", "average", "average_calibrated")
DIGITS = 5


def cells_of(datasets: Sequence[str], repetitions: int, members: str, sizes: Sequence[str]) -> list[Cell]:
    """One cell a dataset and repetition; the datasets take turns."""
    return [
        {"dataset": name, "seed": seed, "members": members, "sizes": list(sizes)}
        for seed in range(repetitions)
        for name in datasets
    ]


def evaluate(work: Path, cell: Cell) -> Result:
    """Make one final run and keep the scores of each question, of one member and of the average."""
    from vqa.results.calibration import held_out_calibrated, tempered
    from vqa.results.folder import RunFolder
    from vqa.results.predictions import read_predictions
    from vqa.stages.final import run_final

    settings = composed(
        [
            *DATASETS[cell["dataset"]],
            *cell["sizes"],
            *(f"seed={cell['seed']}", f"final.members={cell['members']}"),
            *("tracking=none", "env.threads=1", "env.device=cpu", "winner=none"),
            f"env.output_root={work}",
        ]
    )
    folder = work / f"{cell['dataset']}-{cell['seed']}-{cell['members']}"
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    metrics = run.metrics() if run.complete else run_final(settings, folder)
    first = run.member(0)
    temperatures = {"single": first.metrics()["temperature"], "average": metrics["temperature"]}
    found: Result = {
        "temperature": temperatures,
        "seconds": [member["seconds"] for member in metrics["members"]],
        "members_nll": [member["nll"] for member in metrics["members"]],
    }
    for name, one in (("single", first), ("average", run)):
        valid, test = read_predictions(one.valid_predictions), read_predictions(one.test_predictions)
        found[name] = {"held_out": _scores(valid), "test": _scores(test)}
        found[f"{name}_calibrated"] = {
            "held_out": _scores(held_out_calibrated(valid, "auto")),
            "test": _scores(tempered(test, temperatures[name])),
        }
    return found


def _scores(predictions: Sequence[Any]) -> dict[str, Any]:
    from vqa.results.metrics import calibration_error, calibration_error_by_chance, per_question_nll

    return {
        "nll": [round(value, DIGITS) for value in per_question_nll(predictions).values()],
        "right": "".join(str(int(p.answer == p.gold)) for p in predictions),
        "ece": calibration_error(predictions),
        "ece_by_chance": calibration_error_by_chance(predictions),
    }


def compared(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a dataset, part and way: scores, and the differences from the single member."""
    rows = []
    for dataset in dict.fromkeys(result["dataset"] for result in results):
        own = [result for result in results if result["dataset"] == dataset]
        for part in ("held_out", "test"):
            rows += [_row(dataset, part, way, own) for way in WAYS]
    return rows


def _row(dataset: str, part: str, way: str, results: Sequence[Result]) -> dict[str, Any]:
    mean_nll = [float(np.mean(result[way][part]["nll"])) for result in results]
    row: dict[str, Any] = {
        "dataset": dataset,
        "part": part,
        "way": way,
        "repetitions": len(results),
        "questions": len(results[0][way][part]["nll"]),
        "nll": float(np.mean(mean_nll)),
        "accuracy": float(np.mean([_right(result, way, part).mean() for result in results])),
        "ece": float(np.mean([result[way][part]["ece"] for result in results])),
        "ece_by_chance": float(np.mean([result[way][part]["ece_by_chance"] for result in results])),
        "nll_by_repetition": mean_nll,
        "ece_by_repetition": [result[way][part]["ece"] for result in results],
    }
    if way != "single":
        together = np.stack if part == "test" else np.hstack  # each repetition holds other questions out
        nll = np.atleast_2d(together([result[way][part]["nll"] for result in results]))
        base = np.atleast_2d(together([result["single"][part]["nll"] for result in results]))
        more = [_right(result, way, part) - _right(result, "single", part) for result in results]
        right = np.atleast_2d(together(more))
        row |= {"nll_gain": _difference(nll - base), "accuracy_gain": _difference(right)}
        row["nll_share"] = float((nll.mean() - base.mean()) / base.mean())
    seconds = np.array([result["seconds"] for result in results])
    row["seconds"] = float(seconds.sum(1).mean() if way.startswith("average") else seconds[:, 1].mean())
    return row


def _right(result: Result, way: str, part: str) -> Table:
    return np.array([float(character) for character in result[way][part]["right"]])


def _difference(differences: Table) -> list[float]:
    """Mean, both ends of its interval, and p, of (S, Q) differences."""
    low, high = interval(differences)
    return [float(differences.mean()), low, high, sign_flip_p_value(differences.mean(0).tolist())]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| data | questions | answer of | NLL | accuracy | ECE (by chance) "
        "| NLL gain | accuracy gain, points | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gains = ["", ""]
        if "nll_gain" in row:
            nll, right = row["nll_gain"], row["accuracy_gain"]
            gains = [
                f"{nll[0]:+.4f} ({nll[1]:+.4f} to {nll[2]:+.4f}), {100 * row['nll_share']:+.1f} %",
                f"{100 * right[0]:+.2f} ({100 * right[1]:+.2f} to {100 * right[2]:+.2f})",
            ]
        asked = f"{row['part'].replace('_', ' ')}, {row['questions']}"
        scores = f"{row['nll']:.4f} | {row['accuracy']:.4f} | {row['ece']:.4f}"
        scores += f" ({row['ece_by_chance']:.4f})" if "ece_by_chance" in row else ""
        scores += f" | {gains[0]} | {gains[1]} | {row['seconds']:.0f}"
        way = row["way"].replace("_", ", ")
        lines.append(f"| {row['dataset']} | {asked} | {way} | {scores} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running, printing = commands.add_parser("run"), commands.add_parser("table")
    running.add_argument(
        "--work", type=Path, required=True, help="a finished member in it is not trained again"
    )
    running.add_argument("--repetitions", type=int, default=5)
    running.add_argument("--members", default="3", help="final.members")
    running.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    running.add_argument("--processes", type=int, default=1)
    running.add_argument("--sizes", nargs="*", default=[], help="overrides such as data.train_size=2000")
    add_output_arguments(running)
    printing.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "table":
        print(markdown(json.loads(given.file.read_text(encoding="utf-8"))["rows"]))
        return
    work = given.work.absolute()
    cells, path = (
        cells_of(given.datasets, given.repetitions, given.members, given.sizes),
        work / "cells.jsonl",
    )
    failures = run_cells(cells, partial(evaluate, work), path, given.processes, math.inf)
    results = [r for r in finished(path) if any(cell.items() <= r.items() for cell in cells)]
    rows = compared(results)
    print(markdown(rows))
    write_rows(given.out, "members", rows, given.machine, append=False)
    if failures:
        raise SystemExit(f"{len(failures)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
