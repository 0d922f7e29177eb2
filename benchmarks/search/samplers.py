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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from benchmarks.harness.paired import sign_flip_p_value
from benchmarks.harness.record import add_output_arguments, write_rows
from benchmarks.search.simulation import Grid, Point, Replay, see
from vqa.config.check import register_resolvers
from vqa.results.metrics import P_FLOOR
from vqa.sweep.search.sampling import SamplerFactory, build_pruner
from vqa.sweep.search.space import SearchSpace

RATES = (3e-4, 5e-4, 8e-4, 1.3e-3, 2.2e-3, 3.6e-3, 6e-3, 1e-2)
RANKS, ALPHAS = (8, 16, 32), (16, 32, 64)
FOLDS, REPORTS_PER_FOLD = 5, 3
GIVEN_UP = 0.5  # of the grid's cost: a search that has found nothing by then counts as one that never does
MOST_TRIALS = 200  # draws; on a grid of 72, where repeats are free, a search could go on without paying
CONF = Path(__file__).parents[2] / "conf" / "hydra" / "sweeper"


def evaluate_grid(given: argparse.Namespace) -> None:
    """Run the grid as one study, which goes on where it stopped; results lie in `given.work`."""
    choices = {"optimizer.lr": RATES, "lora.r": RANKS, "lora.lora_alpha": ALPHAS}
    command = [
        *(sys.executable, "-m", "vqa.run", "-m", "+sweep=lora", "study=grid", f"seed={given.seed}"),
        *("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.enqueue=[]"),
        *(f"{key}={','.join(map(str, values))}" for key, values in choices.items()),
        *(f"hydra.sweeper.n_trials={math.prod(map(len, choices.values()))}", "hydra.sweeper.final=false"),
        *(f"hydra.sweeper.n_workers={given.processes}", f"budget.folds={given.folds or FOLDS}"),
        *(f"budget.subsample={given.subsample}", *given.extra),
        *(f"budget.evaluations_per_fit={REPORTS_PER_FOLD}", "tracking=none", "env.threads=1"),
        *("env.device=cpu", f"env.output_root={given.work.absolute()}"),
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
        per_fold = [count for _, count in sorted(Counter(int(row["fold"]) for row in rows).items())]
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


def option(group: str, name: str, folds: int) -> dict[str, Any]:
    """A sampler's or pruner's own file in conf/, with the grid's number of reports per trial."""
    loaded = OmegaConf.merge(
        {"budget": {"folds": folds, "evaluations_per_fit": REPORTS_PER_FOLD}},
        {"node": OmegaConf.load(CONF / group / f"{name}.yaml")},
    )
    node = OmegaConf.to_container(loaded.node, resolve=True)
    if not isinstance(node, dict):
        raise TypeError(f"{name}.yaml must be a mapping, got {node!r}")
    return {str(key): value for key, value in node.items()}


@dataclass(frozen=True)
class Search:
    """What is compared.

    Args:
        sampler: Its file in conf/.
        pruner: Its file in conf/.
        changed: Other values of the pruner's keys.
        n_trials: Trials that it may start, as a multiple of those that set the cost. It then runs to the end
            of its study, whatever that costs; 0 = as many as it likes at that cost.
    """

    sampler: str
    pruner: str
    changed: tuple[tuple[str, Any], ...] = ()
    n_trials: float = 0

    def of(
        self, grid: Grid, seed: int, folds: int, n_trials: int = MOST_TRIALS, work: float = math.inf
    ) -> Replay:
        """Set the search up on a grid; a search that promotes is told its work, in whole trials."""
        where = space()
        samplers = SamplerFactory(option("sampler", self.sampler, folds), seed, where)
        pruner = build_pruner(option("pruner", self.pruner, folds) | dict(self.changed))
        return Replay(grid, where, samplers, pruner, seed, n_trials, None if self.n_trials else work)

    def named(self) -> dict[str, Any]:
        """What a row says of it."""
        return {"sampler": self.sampler, "pruner": self.pruner, **dict(self.changed)}


SEARCHES = (
    Search("random", "none"),
    Search("tpe", "none"),
    Search("gp", "none"),
    Search("tpe", "hyperband"),
    Search("tpe", "successive_halving"),
    Search("gp", "successive_halving"),
    Search("tpe", "median"),
    Search("tpe", "wilcoxon"),
    Search("random", "promote"),
    Search("tpe", "promote"),
    Search("thompson", "promote"),
)
REFERENCE = Search("tpe", "successive_halving")


def search_of(name: str) -> Search:
    """The search that the command line names: SAMPLER+PRUNER+KEY=VALUE, of the pruner or n_trials."""
    sampler, pruner, *keys = name.split("+")
    pairs = {key: json.loads(value) for key, value in (key.split("=", 1) for key in keys)}
    n_trials = pairs.pop("n_trials", 0)
    return Search(sampler, pruner, tuple(pairs.items()), n_trials)


def measure(points: list[Point], search: Search, given: argparse.Namespace, workers: int) -> dict[str, Any]:
    """One search over all seeds: the share of the grid's cost until it has a good configuration."""
    shares = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        grid = see(points, seed if given.resample else None)
        replay, found = search.of(grid, seed, len(points[0].per_fold)), 1.0
        for cost in replay.run(workers):
            if cost >= GIVEN_UP * grid.whole:
                break
            if grid.points[replay.complete[-1]].reports[-1] <= grid.good:
                found = cost / grid.whole
                break
        shares.append(found)
    row = {
        **search.named(),
        "workers": workers,
        "resampled": given.resample,
        "seeds": given.seeds,
        "cost_share_median": round(median(shares), 4),
        "cost_share_worst": round(max(shares), 4),
        "found_within_20_percent": sum(share <= 0.2 for share in shares),
        "configurations": len(points),
    }
    print(json.dumps(row), flush=True)
    return row


def cost_of(points: list[Point], trials: int, given: argparse.Namespace) -> float:
    """Reports that the reference, TPE with successive halving, pays for so many trials, mean over seeds."""
    costs = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        replay = REFERENCE.of(see(points, None), seed, len(points[0].per_fold), trials)
        replay.pay_again = True  # in a continuous space no trial is a repeat of another
        costs.append(max(replay.run(1)))
    return sum(costs) / len(costs)


def regret(
    points: list[Point], search: Search, trials: int, budget: float, given: argparse.Namespace, workers: int
) -> dict[str, Any]:
    """One search at a fixed cost: how far above the best its winner is."""
    seen, true, begun, floor, costs = [], [], [], [], []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        grid = see(points, seed if given.resample else None)
        cap = round(search.n_trials * trials) if search.n_trials else MOST_TRIALS
        work = budget / len(points[0].reports)
        replay = search.of(grid, seed, len(points[0].per_fold), cap, work)
        cost = 0.0
        for cost in replay.run(workers):
            if cost > budget and not search.n_trials:
                replay.complete.pop()
                break
        costs.append(cost if search.n_trials else budget)
        winner = min(replay.complete, key=lambda index: grid.points[index].reports[-1], default=None)
        seen.append(math.inf if winner is None else grid.points[winner].reports[-1] - grid.best)
        true.append(math.inf if winner is None else grid.truth[winner] - min(grid.truth))
        begun.append(min(grid.points[index].reports[-1] for index in replay.started) - grid.best)
        last = [point.reports[-1] for point in grid.points]
        floor.append(grid.truth[last.index(grid.best)] - min(grid.truth))
    row = {
        **search.named(),
        "n_trials": search.n_trials,
        "workers": workers,
        "resampled": given.resample,
        "seeds": given.seeds,
        "cost_of_trials": trials,
        "reports": round(fmean(costs), 1),
        "regret_mean": round(sum(seen) / len(seen), 4),
        "regret_median": round(median(seen), 4),
        "regret_worst": round(max(seen), 4),
        "within_0.01": sum(value <= 0.01 for value in seen),
        "true_regret_mean": round(sum(true) / len(true), 4),
        "regret_of_started_mean": round(fmean(begun), 4),  # had all that was started run to its end
        "true_regret_of_grid_mean": round(fmean(floor), 4),  # had everything run to its end
        "each": [round(value, 4) for value in seen],
        "each_true": [round(value, 4) for value in true],
    }
    print(json.dumps({key: value for key, value in row.items() if not key.startswith("each")}), flush=True)
    return row


def gain_over(reference: Sequence[float], regrets: Sequence[float]) -> dict[str, float | None]:
    """How much lower the regret of a search is than the reference's under the same seeds.

    Returns:
        Mean gain, its standard error, and the two-sided p value of sign flips; null where a search found
        nothing under some seed.
    """
    gains = [before - now for before, now in zip(reference, regrets, strict=True)]
    if len(gains) < 2 or not all(map(math.isfinite, gains)):
        return {"mean": None, "se": None, "p": None}
    se = stdev(gains) / math.sqrt(len(gains))
    return {"mean": round(fmean(gains), 4), "se": round(se, 4), "p": round(sign_flip_p_value(gains), 4)}


def compared(
    points: list[Point],
    searches: Sequence[tuple[Search, int]],
    trials: int,
    given: argparse.Namespace,
) -> list[dict[str, Any]]:
    """All searches at the cost of so many trials, beside the reference where it is among them."""
    budget = cost_of(points, trials, given)
    found = [(*pair, regret(points, pair[0], trials, budget, given, pair[1])) for pair in searches]
    reference = {workers: row for search, workers, row in found if search == REFERENCE}
    for _, workers, row in found:
        if workers in reference:
            row["gain_over_default"] = gain_over(reference[workers]["each_true"], row["each_true"])
    return [row for _, _, row in found]


def main() -> None:
    """Parse the command line; evaluate the grid, or replay the searches on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("grid", "replay"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--subsample", type=int, default=450, help="questions of the grid's trials")
    parser.add_argument("--seed", type=int, default=0, help="of split and folds")
    parser.add_argument("--seeds", type=int, default=20, help="of each search")
    parser.add_argument("--work", type=Path, default=Path("grid"), help="folder of the grid's study")
    parser.add_argument(
        "--extra", nargs="*", default=[], help="overrides of the grid's trials: data=emoji_quiz"
    )
    parser.add_argument("--grid", type=Path, help="what the step grid wrote")
    add_output_arguments(parser)
    parser.add_argument("--first-seed", type=int, default=0, help="of the searches")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--resample", action="store_true", help="another sample of the questions for each seed"
    )
    parser.add_argument("--folds", type=int, help="of the grid (5); in a replay the first so many of it")
    parser.add_argument(
        "--trials", type=int, nargs="*", default=[], help="regret at the cost of so many trials"
    )
    parser.add_argument(
        "--searches", nargs="+", help="SAMPLER+PRUNER, or SAMPLER+PRUNER+KEY=VALUE; all when not given"
    )
    given = parser.parse_args()
    register_resolvers()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: list[dict[str, Any]]
    if given.step == "grid":
        evaluate_grid(given)
        rows = [vars(point) for point in read_grid(given.work / "grid")]
    else:
        points = [Point(**row) for row in json.loads(given.grid.read_text())["rows"]]
        points = [point.cut(given.folds) for point in points] if given.folds else points
        named = [search_of(name) for name in given.searches or ()]
        searches = [(search, workers) for search in named or SEARCHES for workers in given.workers]
        if given.trials:
            rows = [row for trials in given.trials for row in compared(points, searches, trials, given)]
        else:
            rows = [measure(points, search, given, workers) for search, workers in searches]
    name = "search_grid" if given.step == "grid" else "search_regret" if given.trials else "search"
    write_rows(given.out, name, rows, given.machine, append=False)


if __name__ == "__main__":
    main()
