"""What is the final run of a pick worth: all trials once, or fewer of them and the race? At equal cost.

Studies choose among the grid's configurations, of which every one was trained at full length and several
times in short trials (`benchmarks.search.finals`). `random` draws its trials and runs all of them to their
end; other searches are named as in `benchmarks.search.samplers`, and may spend what so many trials cost under
the product's default, which stops bad ones. Where a share of the cost is kept for the race, the product's
race trains the tied best again. A pick is judged by the final runs of its configuration,
mean over their seeds, which no study sees. Each study sees the trainings in another order, and questions that
are drawn anew with `--resample`.

    python -m benchmarks.search.picking replay --grid GRID --finals FINALS --first-study 1000 --out FILE
    python -m benchmarks.search.picking replay --grid GRID --finals FINALS --shares 0.25 --out FILE
    python -m benchmarks.search.picking correlation --grid GRID --finals FINALS --out FILE

GRID is what `benchmarks.search.samplers grid` wrote, FINALS what `benchmarks.search.finals` wrote.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.harness.record import add_output_arguments, write_rows
from benchmarks.search.ranking import as_trial
from benchmarks.search.samplers import Search, cost_of, search_of
from benchmarks.search.simulation import Point, see
from vqa.config.check import register_resolvers
from vqa.results.comparison import Trained, next_trainings, standing_order

Array = NDArray[np.float64]
Study = dict[str, dict[str, float]]  # rule -> scores of what it picked
SCORES = ("nll", "test_nll", "accuracy", "test_accuracy")
SIZES = (12, 16, 24, 36, 48)  # cost of a study, in whole trials
HELD_BACK = 2  # trainings of short trials that no study sees, for the regret
SHARES = (0.125, 0.1875, 0.25, 0.375)  # of that cost, kept for the race


@dataclass(frozen=True)
class Table:
    """Every configuration of the grid, short and long.

    Args:
        trained: For each training, the configurations as short trials report them.
        finals: Score -> (configurations, seeds), of the final runs.
        costs: Whether all run to their end, and number of trials -> reports that they cost.
    """

    trained: list[list[Point]]
    finals: dict[str, Array]
    costs: dict[tuple[bool, int], float] = field(default_factory=dict)

    def worth(self, index: int) -> dict[str, float]:
        """The scores of a configuration's final run, mean over its seeds."""
        return {name: float(values[index].mean()) for name, values in self.finals.items()}


def read_table(grid: Path, finals: Path) -> Table:
    """The grid's configurations; trainings and final runs of which one is missing are left out."""
    points = [Point(**row) for row in json.loads(grid.read_text())["rows"]]
    rows = json.loads(finals.read_text())["rows"]

    def of(kind: str) -> list[list[dict[str, Any]]]:
        own = [row for row in rows if row["kind"] == kind]
        seeds = sorted({row["train_seed"] for row in own})
        found = [[_row_of(own, seed, point.params) for point in points] for seed in seeds]
        return [[row for row in whole if row] for whole in found if all(whole)]

    long = of("final")
    scores = {name: np.array([[row[name] for row in whole] for whole in long]).T for name in SCORES}
    again = [
        [_told_again(p, row["nll"]) for p, row in zip(points, whole, strict=True)] for whole in of("trial")
    ]
    return Table([points, *again], scores)


def _row_of(rows: Sequence[dict[str, Any]], seed: int, params: dict[str, Any]) -> dict[str, Any] | None:
    wanted = {"train_seed": seed, **params}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _told_again(point: Point, nll: list[float]) -> Point:
    """Another training of a configuration: a fold's reports move with its end, which alone is on file."""
    ends = np.cumsum(point.per_fold)
    each = len(point.reports) // len(point.per_fold)
    was, now = np.cumsum(point.nll), np.cumsum(nll)
    reports: list[float] = []
    for fold, (size, end) in enumerate(zip(point.per_fold, ends, strict=True)):
        begin = int(end) - size
        old, new = (float(sums[end - 1] - (sums[begin - 1] if begin else 0)) for sums in (was, now))
        before_old, before_new = (float(sums[begin - 1]) if begin else 0.0 for sums in (was, now))
        for part in range(each):
            in_fold = point.reports[fold * each + part] * float(end) - before_old
            reports.append((before_new + in_fold * new / old) / float(end))
    return Point(point.params, reports, nll, point.per_fold)


def raced(trained: Sequence[Sequence[Point]], chosen: Sequence[int], spare: int, most: int) -> list[Trained]:
    """The ranking after trials of these configurations and `spare` further trainings, by the product's race.

    The race ends, too, when a configuration was trained `most` times.
    """
    alone = [""] * len(trained[0][0].nll)

    def trial(index: int, times: int) -> Trained:
        return as_trial(index, [np.array(trained[k][index].nll) for k in range(times)], alone)

    trials = sorted((trial(index, 1) for index in chosen), key=standing_order)
    while wanted := next_trainings(trials, spare):
        times = len(trials[0].nll) + 1
        if times > most:
            break
        spare -= len(wanted)
        trials = [trial(t.trial, times) if t.trial in wanted else t for t in trials]
        trials.sort(key=standing_order)
    return trials


def study(table: Table, search: str, cost: int, shares: Sequence[float], resample: bool, seed: int) -> Study:
    """What one study picks, by the share of its cost that is kept for the race; 0.0 is all trials once.

    `best_of_tried` is no rule: the configuration among the trials whose final run is the best.
    """
    rng = np.random.default_rng([seed, cost])
    order = rng.permutation(len(table.trained)).tolist()
    most = max(2, len(order) - HELD_BACK)
    trained = [see(table.trained[k], seed if resample else None).points for k in order[:most]]
    unseen = np.mean([[np.mean(p.nll) for p in table.trained[k]] for k in order[most:] or order], axis=0)
    each = len(trained[0][0].reports)
    budget = table.costs[search == "random", cost]
    drawn = rng.permutation(len(unseen)).tolist()
    course = [] if search == "random" else searched(trained[0], search_of(search), budget, seed)
    found: Study = {}
    for share in (0.0, *shares):
        spare = round(share * budget / each)
        left = budget - spare * each
        tried = completed(course, left) if course else drawn[: round(left / each)]
        index = raced(trained, tried, spare, most)[0].trial
        found[f"{share}"] = table.worth(index) | {"regret": float(unseen[index] - unseen.min())}
        found[f"{share}"] |= {"spare": spare, "tried": len(tried)}
        if not share:
            best = min(tried, key=lambda index: table.worth(index)["nll"])
            found["best_of_tried"] = table.worth(best) | {"regret": float(unseen[best] - unseen.min())}
    return found


def searched(points: list[Point], search: Search, budget: float, seed: int) -> list[tuple[float, list[int]]]:
    """The course of a search until its cost in reports is spent: what so many have completed."""
    replay = search.of(see(points, None), seed, len(points[0].per_fold))
    replay.pay_again = True  # in a continuous space no trial is a repeat of another
    course: list[tuple[float, list[int]]] = []
    for cost in replay.run(1):
        course.append((cost, list(dict.fromkeys(replay.complete))))
        if cost > budget:
            break
    return course


def completed(course: Sequence[tuple[float, list[int]]], budget: float) -> list[int]:
    """What a search has completed at a cost; two at least, or there is nothing to choose."""
    done: list[int] = []
    for cost, complete in course:
        if cost > budget and len(done) > 1:
            break
        done = complete
    return done


def replayed(table: Table, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each search, cost and share: scores of the pick's final run, and the gain over no race."""
    rows = []
    with ProcessPoolExecutor(given.processes) as pool:
        for search, cost in [(search, cost) for search in given.searches for cost in given.trials]:
            one = partial(study, table, search, cost, given.shares, given.resample)
            seeds = range(given.first_study, given.first_study + given.studies)
            found = list(pool.map(one, seeds, chunksize=8))
            what = {"kind": "picked", "search": search, "trials": cost, "resampled": given.resample}
            what |= {
                "reports": round(table.costs[search == "random", cost], 1),
                "first_study": given.first_study,
            }
            rows += [_row(what | {"share": name, "studies": len(found)}, name, found) for name in found[0]]
    return rows


def _row(row: dict[str, Any], name: str, found: Sequence[Study]) -> dict[str, Any]:
    for score in found[0][name]:
        values = np.array([picked[name][score] for picked in found])
        row[score] = round(float(values.mean()), 5)
        if name != "0.0" and score in found[0]["0.0"] and score in ("regret", *SCORES):
            gain = np.array([picked["0.0"][score] for picked in found]) - values
            se = float(gain.std(ddof=1)) / math.sqrt(len(gain))
            row[f"{score}_gain"] = {"mean": round(float(gain.mean()), 5), "se": round(se, 5)}
    print(json.dumps(row), flush=True)
    return row


def correlation(table: Table) -> list[dict[str, Any]]:
    """How well a short trial's NLL tells the final run's, over all configurations and over the better half.

    `once` is one training of the trial, mean over trainings; `mean` is the mean of all trainings. `noise` is
    the standard deviation of a final run's score from one training to the next.
    """
    short = np.array([[np.mean(point.nll) for point in points] for points in table.trained])
    rows = []
    for part in ("all", "better half of the trials"):
        mean = short.mean(axis=0)
        kept = mean <= (np.inf if part == "all" else np.median(mean))
        for score in ("nll", "test_nll"):
            long = table.finals[score][kept]
            goal = long.mean(axis=1)
            row: dict[str, Any] = {
                "kind": "correlation",
                "configurations": part,
                "n": int(kept.sum()),
                "score": score,
            }
            row["once"] = float(np.mean([spearmanr(one[kept], goal).statistic for one in short]))
            row["mean"] = float(spearmanr(mean[kept], goal).statistic)
            row["noise"] = float(np.sqrt(long.var(axis=1, ddof=1).mean())) if long.shape[1] > 1 else None
            row |= {"trainings": len(short), "final_seeds": long.shape[1]}
            row |= {"best_final": float(goal.min()), "median_final": float(np.median(goal))}
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def with_costs(table: Table, sizes: Sequence[int]) -> Table:
    """The table with what a study of so many trials costs in reports, all run to their end or not."""
    each = len(table.trained[0][0].reports)
    twenty = argparse.Namespace(first_seed=0, seeds=20)
    for size in sizes:
        table.costs[True, size] = float(size * each)
        table.costs[False, size] = cost_of(table.trained[0], size, twenty)
    return table


def main() -> None:
    """Parse the command line, replay, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("replay", "correlation"))
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--finals", type=Path, required=True)
    parser.add_argument("--trials", type=int, nargs="+", default=SIZES, help="cost of a study, in trials")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the cost, for the race")
    parser.add_argument("--searches", nargs="+", default=["random", "tpe+successive_halving"])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--first-study", type=int, default=0, help="seed of the first")
    parser.add_argument(
        "--resample", action="store_true", help="another sample of the questions for each study"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    add_output_arguments(parser)
    given = parser.parse_args()
    register_resolvers()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = read_table(given.grid, given.finals)
    if given.step == "correlation":
        rows = correlation(table)
    else:
        rows = replayed(with_costs(table, given.trials), given)
    write_rows(given.out, f"picking_{given.step}", rows, given.machine, append=False)


if __name__ == "__main__":
    main()
