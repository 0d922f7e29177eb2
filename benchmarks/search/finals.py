"""What is each configuration of the grid worth at full length? Its final run's scores, for several seeds.

`run` makes the final run of every configuration that `benchmarks.search.samplers grid` tried in short trials,
as the product would after a sweep: its learning rate is lowered for the longer run. Split and test questions
are the grid's, the same in all. A run on file is not repeated.

    python -m benchmarks.search.finals run --grid GRID --work WORK --seeds 1 --processes 16 --out FILE
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


def cells_of(points: list[dict[str, Any]], seeds: range) -> list[Cell]:
    """The runs, seed by seed, so that a part of them is a table already; the largest ranks first."""
    own = sorted(
        (point["params"] for point in points),
        key=lambda params: (-params["lora.r"], params["lora.lora_alpha"], params["optimizer.lr"]),
    )
    return [{"train_seed": seed, **params} for seed in seeds for params in own]


def trials_of(points: list[dict[str, Any]]) -> list[str]:
    """How long the grid's trials were, as the sweep's winner tells the final run."""
    folds, questions = len(points[0]["per_fold"]), sum(points[0]["per_fold"])
    return [
        f"budget.lr_tuned.subsample={questions}",
        f"budget.lr_tuned.folds={folds}",
        "budget.lr_tuned.epochs=1",
    ]


def evaluate(given: list[str], cell: Cell) -> Result:
    """Make one final run in this process and keep its scores."""
    from vqa.stages.final import run_final

    settings = composed(
        [
            *("stage=final", "winner=none", "tracking=none", "env.threads=1", "env.device=cpu"),
            *(f"{key}={value}" for key, value in cell.items()),
            *given,
        ]
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        metrics = run_final(settings, Path(folder))
    found: Result = {name: metrics[name] for name in SCORES}
    found |= {f"test_{name}": metrics["test"][name] for name in SCORES}
    return found | {"best_epoch": metrics["best_epoch"], "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Parse the command line, run what is missing, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("run",))
    parser.add_argument("--grid", type=Path, required=True, help="what the grid of short trials wrote")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each configuration")
    parser.add_argument("--first-seed", type=int, default=0, help="train_seed of the first")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=math.inf, help="after that no further run starts")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of results; a run on file is not repeated"
    )
    parser.add_argument("--override", nargs="*", default=[], help="further overrides, e.g. seed=0")
    add_output_arguments(parser)
    given = parser.parse_args()
    points = json.loads(given.grid.read_text())["rows"]
    cells = cells_of(points, range(given.first_seed, given.first_seed + given.seeds))
    path, more = given.work / "finals.jsonl", [*trials_of(points), *given.override]
    failures = run_cells(cells, partial(evaluate, more), path, given.processes, given.limit_s)
    results = [row for row in finished(path) if any(cell.items() <= row.items() for cell in cells)]
    write_rows(given.out, "finals", results, given.machine, append=False)
    if failures:
        raise SystemExit(f"{len(failures)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
