"""Which search finds a good configuration first? Each is replayed on a grid that was evaluated in full.

`grid` runs every combination of eight learning rates, three ranks and three alphas on five folds of the
embedded model, as one study without pruning. `replay` then lets each search choose among them, over many
seeds: it pays for every report it asks for, and is measured by the share of the whole grid's cost after which
it has completed a configuration within one standard error of the best.

    python -m benchmarks.search.samplers grid --processes 16 --work FOLDER --out GRID
    python -m benchmarks.search.samplers replay --grid GRID --seeds 20 --out FILE
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from benchmarks.harness.record import add_output_arguments, write_rows
from vqa.results.metrics import P_FLOOR
from vqa.sweep.sampling import SamplerFactory, build_pruner, draw
from vqa.sweep.space import SearchSpace

RATES = (3e-4, 5e-4, 8e-4, 1.3e-3, 2.2e-3, 3.6e-3, 6e-3, 1e-2)
RANKS, ALPHAS = (8, 16, 32), (16, 32, 64)
FOLDS, REPORTS_PER_FOLD = 5, 3
CONF = Path(__file__).parents[2] / "conf" / "hydra" / "sweeper"
SEARCHES = (  # sampler, pruner
    ("random", "none"),
    ("tpe", "none"),
    ("gp", "none"),
    ("tpe", "hyperband"),
    ("tpe", "successive_halving"),
    ("gp", "successive_halving"),
    ("tpe", "median"),
    ("tpe", "wilcoxon"),
)


@dataclass(frozen=True)
class Point:
    """One configuration of the grid.

    Args:
        params: Searched key -> value.
        reports: Out-of-fold NLL so far, report by report; the last is the whole trial's.
        nll: NLL of each question, in the order in which the folds score them.
        per_fold: Questions of each fold.
    """

    params: dict[str, Any]
    reports: list[float]
    nll: list[float]
    per_fold: list[int]


def evaluate_grid(work: Path, processes: int, subsample: int, seed: int) -> None:
    """Run the grid as one study, which goes on where it stopped; results lie in `work`."""
    choices = {"optimizer.lr": RATES, "lora.r": RANKS, "lora.lora_alpha": ALPHAS}
    command = [
        *(sys.executable, "-m", "vqa.run", "-m", "+sweep=lora", "study=grid", f"seed={seed}"),
        *("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.enqueue=[]"),
        *(f"{key}={','.join(map(str, values))}" for key, values in choices.items()),
        *(f"hydra.sweeper.n_trials={math.prod(map(len, choices.values()))}", "hydra.sweeper.final=false"),
        *(f"hydra.sweeper.n_workers={processes}", f"budget.folds={FOLDS}", f"budget.subsample={subsample}"),
        *(f"budget.evaluations_per_fit={REPORTS_PER_FOLD}", "tracking=none", "env.threads=1"),
        *("env.device=cpu", f"env.output_root={work.absolute()}"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, check=True, env=environment)


def read_grid(study_folder: Path) -> list[Point]:
    """Every configuration of a grid that is done."""
    study = optuna.load_study(study_name="grid", storage=f"sqlite:///{study_folder / 'study.db'}")
    points = []
    for trial in study.get_trials(states=[TrialState.COMPLETE]):
        folder = study_folder / "trials" / f"{trial.number:03d}"
        with (folder / "oof_predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        nll = [-math.log(max(float(row[f"p_{row['gold']}"]), P_FLOOR)) for row in rows]
        per_fold = [sum(int(row["fold"]) == fold for row in rows) for fold in range(FOLDS)]
        reports = [value for _, value in sorted(trial.intermediate_values.items())]
        points.append(Point(trial.params, [*reports, float(trial.value or 0.0)], nll, per_fold))
    return points


def space() -> SearchSpace:
    """The search space of `+sweep=lora` on the embedded model."""
    return SearchSpace(
        {
            "optimizer.lr": FloatDistribution(min(RATES), max(RATES), log=True),
            "lora.r": CategoricalDistribution(RANKS),
            "lora.lora_alpha": CategoricalDistribution(ALPHAS),
        },
        (),
    )


def nearest(points: list[Point], params: dict[str, Any]) -> Point:
    """The grid's point for drawn parameters: the learning rate goes to the nearest on a log scale."""
    same = [p for p in points if all(p.params[key] == params[key] for key in ("lora.r", "lora.lora_alpha"))]
    return min(same, key=lambda p: abs(math.log(p.params["optimizer.lr"] / params["optimizer.lr"])))


def option(group: str, name: str) -> dict[str, Any]:
    """A sampler's or pruner's own file in conf/, with the grid's number of reports per trial."""
    loaded = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    if not isinstance(loaded, dict):
        raise TypeError(f"{name}.yaml must be a mapping, got {loaded!r}")
    node = {str(key): value for key, value in loaded.items()}
    return node | ({"max_resource": FOLDS * REPORTS_PER_FOLD} if "max_resource" in node else {})


def replay(points: list[Point], sampler: str, pruner: str, seed: int) -> Iterator[tuple[int, Point, bool]]:
    """Let one search choose; yields for each trial the reports paid, its point, whether it was completed."""
    where = space()
    samplers = SamplerFactory(option("sampler", sampler), seed, where)
    # Hyperband derives a trial's bracket from the study's name
    study = optuna.create_study(study_name=f"replay-{seed}", pruner=build_pruner(option("pruner", pruner)))
    while True:
        study.sampler = samplers.build(len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        draw(trial, where)
        point = nearest(points, trial.params)
        paid = _pay(trial, point)
        complete = paid == len(point.reports)
        study.sampler = optuna.samplers.RandomSampler()
        study.tell(trial, point.reports[-1] if complete else None, None if complete else TrialState.PRUNED)
        yield paid, point, complete


def _pay(trial: optuna.trial.Trial, point: Point) -> int:
    """Report as a trial does until the pruner stops it; returns the reports that were paid for."""
    last = len(point.reports)
    if not isinstance(trial.study.pruner, optuna.pruners.WilcoxonPruner):
        for step, value in enumerate(point.reports[:-1], 1):
            trial.report(value, step)
            if trial.should_prune():
                return step
        return last
    begin = 0
    for fold, size in enumerate(point.per_fold[:-1]):
        for question in range(begin, begin + size):
            trial.report(point.nll[question], question)
        begin += size
        if trial.should_prune():
            return (fold + 1) * REPORTS_PER_FOLD
    return last


def measure(points: list[Point], sampler: str, pruner: str, seeds: int) -> dict[str, Any]:
    """One search over all seeds."""
    values = {id(point): point.reports[-1] for point in points}
    best = min(points, key=lambda point: point.reports[-1])
    mean = sum(best.nll) / len(best.nll)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in best.nll) / (len(best.nll) - 1))
    good = best.reports[-1] + deviation / math.sqrt(len(best.nll))
    whole = sum(len(point.reports) for point in points)
    shares, regrets = [], []
    for seed in range(seeds):
        paid, found, incumbent, regret = 0, 1.0, math.inf, math.inf
        for reports, point, complete in replay(points, sampler, pruner, seed):
            paid += reports
            if complete:
                incumbent = min(incumbent, values[id(point)])
            if paid <= 0.2 * whole:
                regret = incumbent - best.reports[-1]
            if incumbent <= good:
                found = min(found, paid / whole)
            if paid >= whole or (found < 1 and paid > 0.2 * whole):
                break
        shares.append(found)
        regrets.append(regret)
    row = {
        "sampler": sampler,
        "pruner": pruner,
        "seeds": seeds,
        "cost_share_median": round(median(shares), 4),
        "cost_share_worst": round(max(shares), 4),
        "found_within_20_percent": sum(share <= 0.2 for share in shares),
        "nll_above_best_at_20_percent_median": round(median(regrets), 4),
        "nll_above_best_at_20_percent_worst": round(max(regrets), 4),
        "good_configurations": sum(value <= good for value in values.values()),
        "configurations": len(points),
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Parse the command line; evaluate the grid, or replay the searches on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("grid", "replay"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--subsample", type=int, default=450, help="questions of the grid's trials")
    parser.add_argument("--seed", type=int, default=0, help="of split and folds")
    parser.add_argument("--seeds", type=int, default=20, help="of each search")
    parser.add_argument("--work", type=Path, default=Path("grid"), help="folder of the grid's study")
    parser.add_argument("--grid", type=Path, help="what the step grid wrote")
    add_output_arguments(parser)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: list[dict[str, Any]]
    if given.step == "grid":
        evaluate_grid(given.work, given.processes, given.subsample, given.seed)
        rows = [vars(point) for point in read_grid(given.work / "grid")]
    else:
        points = [Point(**row) for row in json.loads(given.grid.read_text())["rows"]]
        rows = [measure(points, *search, given.seeds) for search in SEARCHES]
    write_rows(
        given.out, "search_grid" if given.step == "grid" else "search", rows, given.machine, append=False
    )


if __name__ == "__main__":
    main()
