"""What is each configuration of the grid worth at full length, and what would its short trial say again?

`run` makes the final run of every configuration that `benchmarks.search.samplers grid` tried in short trials,
as the product would after a sweep: its learning rate is lowered for the longer run; `train_seed` is 0, 1, ...
With `--trial-seeds` it trains the grid's trials again too, with `train_seed` 1, 2, ...: 0 stands in the grid.
Split, folds and test questions are the grid's, the same in all. A run on file is not repeated.

    python -m benchmarks.search.finals run --grid GRID --work WORK --seeds 1 --processes 16 --out FILE
    python -m benchmarks.search.finals run --grid GRID --work WORK --seeds 4 --trial-seeds 4 --out FILE
"""

import argparse
import json
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.cells import Cell, Result, finished, run_cells
from benchmarks.harness.process import composed
from benchmarks.harness.record import add_output_arguments, write_rows

SCORES = ("nll", "accuracy")
DIGITS = 4  # of a question's NLL, nats


def cells_of(points: list[dict[str, Any]], seeds: int, trial_seeds: int) -> list[Cell]:
    """The runs, seed by seed, so that a part of them is a table already; the dearest of a seed first."""
    own = sorted(
        (point["params"] for point in points),
        key=lambda params: (-params["lora.r"], params["lora.lora_alpha"], params["optimizer.lr"]),
    )
    return [
        {"kind": kind, "train_seed": seed, **params}
        for turn in range(max(seeds, trial_seeds))
        for kind, seed, count in (("final", turn, seeds), ("trial", turn + 1, trial_seeds))
        if turn < count
        for params in own
    ]


def evaluate(points: list[dict[str, Any]], more: list[str], cell: Cell) -> Result:
    """Make one trial or one final run in this process, which keeps the base model for the next."""
    folds, questions = len(points[0]["per_fold"]), sum(points[0]["per_fold"])
    sizes = {"subsample": questions, "folds": folds, "epochs": 1}
    stage = {
        "trial": ["stage=trial", "budget=trial", *(f"budget.{name}={n}" for name, n in sizes.items())],
        "final": ["stage=final", *(f"budget.lr_tuned.{name}={n}" for name, n in sizes.items())],
    }[cell["kind"]]
    values = [f"{key}={value}" for key, value in cell.items() if key != "kind"]
    machine = ["winner=none", "tracking=none", "env.threads=1", "env.device=cpu"]
    settings = composed([*stage, *values, *machine, *more])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = (_trial if cell["kind"] == "trial" else _final)(settings, Path(folder))
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _trial(settings: Any, folder: Path) -> Result:
    from vqa.results.folder import RunFolder
    from vqa.results.metrics import per_question_nll
    from vqa.results.predictions import read_fold_predictions
    from vqa.stages.trial import run_trial

    value = run_trial(settings, folder)
    nll = per_question_nll([p for p, _ in read_fold_predictions(RunFolder(folder).out_of_fold)])
    return {"value": value, "nll": [round(v, DIGITS) for v in nll.values()]}


def _final(settings: Any, folder: Path) -> Result:
    from vqa.stages.final import run_final

    metrics = run_final(settings, folder)
    found: Result = {name: metrics[name] for name in SCORES}
    return (
        found | {f"test_{name}": metrics["test"][name] for name in SCORES} | {"epoch": metrics["best_epoch"]}
    )


def main() -> None:
    """Parse the command line, run what is missing, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("run",))
    parser.add_argument("--grid", type=Path, required=True, help="what the grid of short trials wrote")
    parser.add_argument("--seeds", type=int, default=1, help="final runs of each configuration")
    parser.add_argument("--trial-seeds", type=int, default=0, help="trials of each, beside the grid's own")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=math.inf, help="after that no further run starts")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of results; a run on file is not repeated"
    )
    parser.add_argument("--override", nargs="*", default=[], help="further overrides, e.g. seed=0")
    add_output_arguments(parser)
    given = parser.parse_args()
    points = json.loads(given.grid.read_text())["rows"]
    cells = cells_of(points, given.seeds, given.trial_seeds)
    path = given.work / "finals.jsonl"
    shape = [{"per_fold": points[0]["per_fold"]}]
    failures = run_cells(
        cells, partial(evaluate, shape, given.override), path, given.processes, given.limit_s
    )
    results = [row for row in finished(path) if any(cell.items() <= row.items() for cell in cells)]
    write_rows(given.out, "finals", results, given.machine, append=False)
    if failures:
        raise SystemExit(f"{len(failures)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
