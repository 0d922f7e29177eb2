"""What better read-outs gain and cost: cyclic orders, PriDe, batch and contextual calibration.

The adapters are those of `shifts.adaptation train`, the rows clean and shifted ones that no adapter saw. All
read-outs of a cell are timed in one process by turns. Beside the cyclic one stand four separate passes with
one order each, which is what averaging over the orders costs without sharing prefix and picture.

    python -m benchmarks.shifts.adaptation train --work WORK --seeds 3 --processes 6
    python -m benchmarks.shifts.readouts --work WORK --seeds 3 --processes 8 --out FILE
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness.cells import Cell, Result, finished, run_cells
from benchmarks.harness.paired import holm, interval, sign_flip_p_value
from benchmarks.harness.process import composed
from benchmarks.harness.record import add_output_arguments, write_rows
from benchmarks.shifts.adaptation import adapter_folder, training
from benchmarks.shifts.rows import CLEAN, NEW_STYLE, rows

LETTERS = "letters"
READOUTS = (LETTERS, "cyclic", "pride", "batch_calibration", "contextual")
SEPARATE = "four separate passes"
PLACES = (("emoji_quiz", CLEAN), ("emoji_quiz", NEW_STYLE), ("easy_vqa", CLEAN), ("easy_vqa", "blur"))


def evaluate(work: Path, cell: Cell) -> Result:
    """Answer the questions of one cell in every way, `repeats` times by turns."""
    from vqa.answer.readout import read_letters
    from vqa.model.adapter import loaded
    from vqa.model.base import load_base
    from vqa.model.encode import Encoder
    from vqa.results.metrics import mcnemar_p_value, per_question_nll

    made = {
        name: composed([*training(cell["dataset"], cell["seed"], work), f"inference={name}"])
        for name in READOUTS
    }
    settings = made[LETTERS]
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    questions = rows(cell["dataset"], cell["shift"], cell["rows"], work)
    size = settings.budget.eval_batch_size
    ways: dict[str, Callable[[], Any]] = {
        name: partial(read_letters, encoder, questions, size, one.inference) for name, one in made.items()
    }
    ways[SEPARATE] = partial(_separately, encoder, questions, size)
    with loaded(encoder.base, adapter_folder(cell["dataset"], cell["seed"], work) / "adapter"):
        encoder.look(questions)
        found = {name: way() for name, way in ways.items()}  # and warms up
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(cell["repeats"]):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                seconds[name].append((time.perf_counter() - began) / len(questions))
    answers = {name: found[name] for name in READOUTS}
    return {
        "ids": [q.id for q in questions],
        "right": {name: [int(p.answer == p.gold) for p in ps] for name, ps in answers.items()},
        "nll": {name: list(per_question_nll(ps).values()) for name, ps in answers.items()},
        "mcnemar_p": {name: mcnemar_p_value(answers[LETTERS], ps) for name, ps in answers.items()},
        "seconds_per_row": seconds,
    }


def _separately(encoder: Any, questions: Sequence[Any], size: int) -> None:
    from vqa.answer.debias import cyclic
    from vqa.answer.score import option_scores

    for order in cyclic(4):
        option_scores(encoder, questions, size, [order])


def compared(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per place and read-out over the seeds, and the cost of cyclic orders against separate passes.

    p values: of accuracy, per seed exactly (McNemar) and over the seeds by flipping signs of the questions'
    mean differences, the latter corrected (Holm) over all rows; of NLL by flipping signs too.
    """
    table = []
    for dataset, shift in dict.fromkeys((r["dataset"], r["shift"]) for r in results):
        mine = [r for r in results if (r["dataset"], r["shift"]) == (dataset, shift)]
        table += [{"dataset": dataset, "shift": shift} | _row(mine, name) for name in READOUTS]
        table.append({"dataset": dataset, "shift": shift} | _sharing(mine))
    tested = [row for row in table if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return table


def _row(results: Sequence[Result], name: str) -> dict[str, Any]:
    right = np.array([r["right"][name] for r in results], dtype=float)  # (S, Q)
    nll = np.array([r["nll"][name] for r in results])
    row: dict[str, Any] = {
        "readout": name,
        "seeds": len(right),
        "n": right.shape[1],
        "accuracy": float(right.mean()),
        "ci95": list(interval(right)),
        "nll": float(nll.mean()),
        "seconds_per_row": median(t for r in results for t in r["seconds_per_row"][name]),
    }
    if name == LETTERS:
        return row
    before = np.array([r["right"][LETTERS] for r in results], dtype=float)
    nll_before = np.array([r["nll"][LETTERS] for r in results])
    return row | {
        "gain": float((right - before).mean()),
        "nll_gain": float((nll - nll_before).mean()),
        "p": sign_flip_p_value((right - before).mean(0).tolist()),
        "p_nll": sign_flip_p_value((nll - nll_before).mean(0).tolist()),
        "mcnemar_p_by_seed": [r["mcnemar_p"][name] for r in results],
        "cost": _ratio(results, name, LETTERS)[0],
    }


def _ratio(results: Sequence[Result], name: str, other: str) -> list[float]:
    """Median, lowest and highest ratio of the seconds of two ways, turn by turn."""
    turns = [r["seconds_per_row"] for r in results]
    ratios = [a / b for turn in turns for a, b in zip(turn[name], turn[other], strict=True)]
    return [median(ratios), min(ratios), max(ratios)]


def _sharing(results: Sequence[Result]) -> dict[str, Any]:
    ratio = _ratio(results, SEPARATE, "cyclic")
    return {"readout": SEPARATE, "times_cyclic": ratio[0], "times_cyclic_range": ratio[1:]}


def printed(table: Sequence[dict[str, Any]]) -> str:
    """The rows as markdown."""
    lines = [
        "| rows | read-out | accuracy | gain, points | p (Holm) | NLL | x letters' seconds |",
        "|---" * 7 + "|",
    ]
    for row in table:
        place = f"{row['dataset']}, {row['shift']}"
        if row["readout"] == SEPARATE:
            low, high = row["times_cyclic_range"]
            times = f"{row['times_cyclic']:.2f} x cyclic ({low:.2f}-{high:.2f})"
            lines.append(f"| {place} | {SEPARATE} | | | | | {times} |")
            continue
        low, high = row["ci95"]
        scores = f"{100 * row['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
        gain = f"{100 * row['gain']:+.1f} | {row['p_holm']:.3f}" if "gain" in row else "|"
        cost = f"{row.get('cost', 1.0):.2f}"
        lines.append(f"| {place} | {row['readout']} | {scores} | {gain} | {row['nll']:.3f} | {cost} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, answer in parallel, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    add_output_arguments(parser)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    cells = [
        {
            "dataset": dataset,
            "shift": shift,
            "seed": seed,
            "rows": arguments.rows,
            "repeats": arguments.repeats,
        }
        for dataset, shift in PLACES
        for seed in range(arguments.seeds)
    ]
    for cell in cells:  # pictures are made once, before processes could make the same ones at once
        rows(cell["dataset"], cell["shift"], cell["rows"], work)
    path = work / "readouts.jsonl"
    failures = run_cells(cells, partial(evaluate, work), path, arguments.processes, math.inf)
    table = compared([r for r in finished(path) if any(cell.items() <= r.items() for cell in cells)])
    print(printed(table))
    write_rows(arguments.out, "readouts", table, arguments.machine, append=False)
    if failures:
        raise SystemExit(f"{len(failures)} cells failed; the same command tries them again")


if __name__ == "__main__":
    main()
