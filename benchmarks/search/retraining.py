"""How much does a trial's score change when the same configuration is trained again on the same folds?

`short` runs K-fold trials of several configurations, each with several `train_seed`s; split, subsample and
folds are the same in all. `long` runs full-length final runs of some of them. Every trial leaves the NLL of
each of its questions, so that `benchmarks.search.ranking` can replay on them what a study would have said and
chosen.

    python -m benchmarks.search.retraining short --seeds 8 --processes 2 --work FOLDER --out FILE
    python -m benchmarks.search.retraining long --seeds 3 --processes 2 --work FOLDER --out FILE
"""

import argparse
import math
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.harness.cells import Cell, Result, finished, run_cells
from benchmarks.harness.record import add_output_arguments, write_rows

CONF = Path(__file__).parents[2] / "conf"
RATES = (7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3)
ALPHAS = (32, 16)
LONG_ALPHA = 32
DIGITS = 4  # of a question's NLL, nats


def cells_of(step: str, seeds: int) -> list[Cell]:
    """The runs of a step, seed by seed, so that a part of them is a table already."""
    alphas = ALPHAS if step == "short" else (LONG_ALPHA,)
    return [
        {"kind": step, "train_seed": seed, "lr": lr, "alpha": alpha}
        for seed in range(seeds)
        for alpha in alphas
        for lr in RATES
    ]


def evaluate(more: list[str], cell: Cell) -> Result:
    """Run one trial or one final run in this process, which keeps the base model for the next."""
    from hydra import compose, initialize_config_dir

    from vqa.config.check import read_settings, register_resolvers

    register_resolvers()
    stage = (
        ["stage=trial", "budget=trial"] if cell["kind"] == "short" else ["stage=final", "data.test_size=1000"]
    )
    values = [
        f"optimizer.lr={cell['lr']}",
        f"lora.lora_alpha={cell['alpha']}",
        f"train_seed={cell['train_seed']}",
    ]
    machine = ["tracking=none", "env.threads=1", "env.device=cpu", "winner=none"]
    with initialize_config_dir(str(CONF)):
        settings = read_settings(compose("config", overrides=[*stage, *values, *machine, *more]))
    with tempfile.TemporaryDirectory() as folder:
        return _short(settings, Path(folder)) if cell["kind"] == "short" else _long(settings, Path(folder))


def _short(settings: object, folder: Path) -> Result:
    from vqa.results.folder import RunFolder
    from vqa.results.metrics import per_question_nll
    from vqa.results.predictions import read_fold_predictions
    from vqa.stages.trial import run_trial

    value = run_trial(settings, folder)  # type: ignore[arg-type]  # typed where it is imported
    rows = read_fold_predictions(RunFolder(folder).out_of_fold)
    nll = per_question_nll([p for p, _ in rows])
    return {
        "value": value,
        "ids": [p.id for p, _ in rows],
        "fold": [fold for _, fold in rows],
        "nll": [round(nll[p.id], DIGITS) for p, _ in rows],
        "right": [int(p.answer == p.gold) for p, _ in rows],
    }


def _long(settings: object, folder: Path) -> Result:
    from vqa.stages.final import run_final

    metrics = run_final(settings, folder)  # type: ignore[arg-type]  # typed where it is imported
    found = {name: metrics[name] for name in ("nll", "accuracy")}
    return found | {f"test_{name}": metrics["test"][name] for name in ("nll", "accuracy")}


def pictures() -> dict[str, str]:
    """The picture of each question, by id; a number instead of its digest."""
    from vqa.data.easy_vqa import EasyVqa

    numbers: dict[str, str] = {}
    questions = EasyVqa(3000, 0, 0).train()
    return {q.id: numbers.setdefault(q.image_sha256, str(len(numbers))) for q in questions}


def main() -> None:
    """Parse the command line, run what is missing, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("short", "long"))
    parser.add_argument("--seeds", type=int, default=8, help="trainings of each configuration")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of results; a run on file is not repeated"
    )
    parser.add_argument(
        "--override", nargs="*", default=[], help="further overrides, e.g. budget.subsample=150"
    )
    add_output_arguments(parser)
    given = parser.parse_args()
    path = given.work / f"{given.step}.jsonl"
    cells = cells_of(given.step, given.seeds)
    failures = run_cells(cells, partial(evaluate, given.override), path, given.processes, math.inf)
    if failures:
        raise SystemExit(f"{len(failures)} runs failed; the same command tries them again")
    results = [r for r in finished(path) if any(cell.items() <= r.items() for cell in cells)]
    if given.step == "short":
        of = pictures()
        results = [r | {"pictures": [of[name] for name in r.pop("ids")]} for r in results]
    write_rows(given.out, "retraining", results, given.machine, append=False)


if __name__ == "__main__":
    main()
