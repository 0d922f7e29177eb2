"""What is the final run of a pick worth: all trials once, or fewer of them and the race? At equal cost.

Studies choose among the grid's configurations, of which every one was trained at full length and several
times in short trials (`benchmarks.search.finals`). `random` draws its trials and runs all of them to their
end; other searches are named as in `benchmarks.search.samplers`, and may spend what so many trials cost under
the product's default, which stops bad ones. Where a share of the cost is kept for the race, the product's
race trains the tied best again. A pick is judged by the final runs of its configuration, mean over their
seeds, which no study sees.

Beside the race stand other ways to spend the same: the final runs of the first two or three, of which the one
with the lowest held-out NLL is kept (its test NLL is then the fair one), and other rules that choose among
the same trials. Each study sees the trainings in another order, and questions that are drawn anew with
`--resample`.

    python -m benchmarks.search.picking replay --grid GRID --finals FINALS --first-study 1000 --out PICKS
    python -m benchmarks.search.picking judge --grid GRID --finals FINALS --picks PICKS --out FILE
    python -m benchmarks.search.picking correlation --grid GRID --finals FINALS --out FILE

GRID is what `benchmarks.search.samplers grid` wrote, FINALS what `benchmarks.search.finals` wrote.
"""

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.harness.record import add_output_arguments, write_rows
from benchmarks.search.ranking import as_trial, choices, configurations
from benchmarks.search.samplers import Search, cost_of, search_of, space
from benchmarks.search.simulation import Point, see
from vqa.config.check import register_resolvers
from vqa.results.comparison import Trained, next_trainings, retraining_noise, standing_order
from vqa.sweep.search.thompson import features

Array = NDArray[np.float64]
Study = dict[str, dict[str, Any]]  # share of the cost that is kept -> what is picked
SCORES = ("nll", "test_nll", "accuracy", "test_accuracy")
KIND = ("search", "trials", "reports", "resampled")  # of studies that are told together
SIZES = (12, 16, 24, 36, 48)  # cost of a study, in whole trials
MOST_DRAWN = 5  # trainings of a configuration, where they are drawn
FINAL_RUNS, FINAL_COST = (2, 3), 3.1  # of the first in the ranking; a run's cost in trials: 93 s against 30 s
NEAR = 0.1  # nats from the best trial
HELD_BACK = 2  # trainings of short trials that no study sees, for the regret
SHARES = (0.125, 0.1875, 0.25, 0.375)  # of that cost, kept for the race


@dataclass(frozen=True)
class Table:
    """Every configuration of the grid, short and long.

    Args:
        trained: For each training, the configurations as short trials report them.
        finals: Score -> (configurations, seeds), of the final runs; NaN where none was made.
        noise: Standard deviation of a trial's NLL over trainings: what all share, and what is its own.
        costs: Whether all run to their end, and number of trials -> reports that they cost.
    """

    trained: list[list[Point]]
    finals: dict[str, Array]
    noise: tuple[float, float]
    costs: dict[tuple[bool, int], float] = field(default_factory=dict)

    def final(self, index: int) -> dict[str, float]:
        """The scores of a configuration's final run, mean over its seeds; NaN where none was made."""
        made = {name: values[index][np.isfinite(values[index])] for name, values in self.finals.items()}
        return {name: float(values.mean()) if len(values) else math.nan for name, values in made.items()}

    def worth(self, choice: dict[str, Any]) -> dict[str, float]:
        """The final run's scores of what a study chose, and what it cost."""
        facts = {"regret": choice["regret"], "spare": choice["spare"], "tried": len(choice["tried"])}
        return self.best_of(choice.get("candidates", [choice["picked"]])) | facts

    def best_of(self, tried: Sequence[int]) -> dict[str, float]:
        """The final run with the lowest held-out NLL."""
        finals = [self.final(index) for index in tried]
        return min(finals, key=lambda final: math.inf if math.isnan(final["nll"]) else final["nll"])


def read_table(grid: Path, finals: Path, trained: Path | None = None) -> Table:
    """The grid's configurations.

    Args:
        grid: Their short trials.
        finals: Their final runs, and further trainings of the trials; a training that is not whole is left
            out.
        trained: Other configurations' trainings, for the noise of the trials where there are no further ones.
    """
    points = [Point(**row) for row in json.loads(grid.read_text())["rows"]]
    rows = json.loads(finals.read_text())["rows"]

    def of(kind: str) -> list[list[dict[str, Any] | None]]:
        own = [row for row in rows if row["kind"] == kind]
        seeds = sorted({row["train_seed"] for row in own})
        return [[_row_of(own, seed, point.params) for point in points] for seed in seeds]

    long = of("final")
    scores = {
        name: np.array([[row[name] if row else math.nan for row in whole] for whole in long]).T
        for name in SCORES
    }
    again = [
        [_told_again(p, row["nll"]) for p, row in zip(points, whole, strict=True) if row]
        for whole in of("trial")
        if all(whole)
    ]
    noise = (0.0, 0.0)
    if trained is not None:
        found, _, pictures = configurations(trained)
        sd, apart = retraining_noise([as_trial(i, t, pictures) for i, t in enumerate(found)])
        noise = (math.sqrt(max(0.0, (sd or 0.0) ** 2 - apart**2)), apart)
    return Table([points, *again], scores, noise)


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
    """What one study picks, by the share of its cost that is kept for the race; 0.0 is all trials once."""
    rng = np.random.default_rng([seed, cost])
    trained, unseen = trainings(table, rng, seed if resample else None)
    most = len(trained)
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
        found[f"{share}"] = {"picked": index, "spare": spare, "tried": tried}
        if not share and len(tried) > 1:
            for rule, index in by_rule([trained[0][i] for i in tried]).items():
                found[rule] = {"picked": tried[index], "spare": 0, "tried": tried}
    for runs in FINAL_RUNS:
        left = budget - (runs - 1) * FINAL_COST * each
        tried = completed(course, left) if course else drawn[: max(1, round(left / each))]
        ranked = [trial.trial for trial in raced(trained, tried, 0, most)][:runs]
        found[f"{runs} final runs"] = {"picked": ranked[0], "candidates": ranked, "spare": 0, "tried": tried}
    for choice in found.values():
        choice["regret"] = float(unseen[choice["picked"]] - unseen.min())
    return found


def by_rule(points: Sequence[Point]) -> dict[str, int]:
    """What other rules choose among trials that were trained once, from their scores alone."""
    values = np.array([point.nll for point in points])
    scores = values.mean(axis=1)
    widths = (values - values[scores.argmin()]).std(axis=1, ddof=1) / math.sqrt(values.shape[1])
    params = [point.params for point in points]
    places = np.array([features(one, space().distributions) for one in params])
    chosen = choices(scores, widths, params, places, float(widths.max()))
    return {rule: index for rule, index in chosen.items() if rule not in ("lowest_score", "smoothed")}


def trainings(
    table: Table, rng: np.random.Generator, resample: int | None
) -> tuple[list[list[Point]], Array]:
    """The trainings that a study sees, in its own order, and each configuration's mean NLL over the others.

    Where trials were trained once, further trainings are drawn with the noise that was measured on others.
    """
    if len(table.trained) > 1:
        order = rng.permutation(len(table.trained)).tolist()
        most = max(2, len(order) - HELD_BACK)
        seen = [see(table.trained[k], resample).points for k in order[:most]]
        others = [[np.mean(p.nll) for p in table.trained[k]] for k in order[most:] or order]
        return seen, np.mean(others, axis=0)
    shared, apart = table.noise
    points = see(table.trained[0], resample).points
    moved = rng.normal(0, shared, (MOST_DRAWN, 1)) + rng.normal(0, apart, (MOST_DRAWN, len(points)))
    seen = [[_moved(p, by) for p, by in zip(points, row.tolist(), strict=True)] for row in moved]
    return seen, np.array([np.mean(point.nll) for point in table.trained[0]])


def as_final(table: Table) -> Table:
    """The table with the trials moved onto a line through their final runs' held-out NLL.

    The grid's own trainings have luck in them, which a race cannot take out of what is drawn about them. Here
    the trials rank as the final runs do, but for what questions and trainings drawn anew add.
    """
    short = np.array([np.mean(point.nll) for point in table.trained[0]])
    long = np.array([table.final(index)["nll"] for index in range(len(short))])
    near = np.isfinite(long) & (short <= np.median(short))
    slope, level = np.polyfit(long[near], short[near], 1)
    by = np.where(np.isfinite(long), level + slope * long - short, 0.0)
    points = [_moved(point, float(step)) for point, step in zip(table.trained[0], by, strict=True)]
    return replace(table, trained=[points])


def _moved(point: Point, by: float) -> Point:
    reports, nll = ([value + by for value in values] for values in (point.reports, point.nll))
    return Point(point.params, reports, nll, point.per_fold)


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
    """What a search has completed at a cost; one at least, or there is nothing to choose."""
    done: list[int] = []
    for cost, complete in course:
        if cost > budget and done:
            break
        done = complete
    return done


def replayed(table: Table, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each search, cost and study: what it picked under each share."""
    rows = []
    with ProcessPoolExecutor(given.processes) as pool:
        for search, cost in [(search, cost) for search in given.searches for cost in given.trials]:
            seeds = range(given.first_study, given.first_study + given.studies)
            one = partial(study, table, search, cost, given.shares, given.resample)
            reports = round(table.costs[search == "random", cost], 1)
            what = {"search": search, "trials": cost, "reports": reports, "resampled": given.resample}
            for seed, found in zip(seeds, pool.map(one, seeds, chunksize=8), strict=True):
                rows.append({**what, "study": seed, "shares": found})
            print(json.dumps(what), flush=True)
    return rows


def judged(table: Table, studies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each search, cost and share: scores of the pick's final run, and the gain over no race.

    `moved` is the root of the summed squares of how much oftener each configuration is picked than without a
    race: times the noise of one final run, it is the gain's error from having made one of each.
    `best_of_tried` is no rule: the configuration among the trials whose final run is the best.
    """
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in studies:
        kinds.setdefault(tuple(one[key] for key in KIND), []).append(one)
    rows = []
    for kind, own in kinds.items():
        before = [table.worth(one["shares"]["0.0"]) for one in own]
        for share in (*dict.fromkeys(name for one in own for name in one["shares"]), "best_of_tried"):
            now = [
                table.best_of(one["shares"]["0.0"]["tried"])
                if share == "best_of_tried"
                else table.worth(one["shares"].get(share, one["shares"]["0.0"]))
                for one in own
            ]
            row = dict(zip(KIND, kind, strict=True)) | {"kind": "picked", "share": share, "studies": len(own)}
            if share in own[0]["shares"]:
                row["moved"] = round(_moved_picks(own, share), 4)
            rows.append(_row(row, before, now))
    return rows


def between_searches(table: Table, studies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the picks of all trials once gain over those of the first search, in the same studies."""
    picks: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}
    for one in studies:
        same = tuple(one[key] for key in (*KIND[1:], "study"))
        picks.setdefault(same, {})[one["search"]] = table.worth(one["shares"]["0.0"])
    searches = list(dict.fromkeys(one["search"] for one in studies))
    rows = []
    for kind in dict.fromkeys(same[:-1] for same in picks):
        own = [found for same, found in picks.items() if same[:-1] == kind]
        for search in searches[1:]:
            pairs = [found for found in own if {searches[0], search} <= found.keys()]
            if len(pairs) > 1:
                row = {"search": search} | dict(zip(KIND[1:], kind, strict=True))
                row |= {"kind": "search", "share": f"over {searches[0]}", "studies": len(pairs)}
                rows.append(_row(row, *([pair[name] for pair in pairs] for name in (searches[0], search))))
    return rows


def _moved_picks(studies: Sequence[dict[str, Any]], share: str) -> float:
    counts: Counter[int] = Counter()
    for one in studies:
        counts[one["shares"].get(share, one["shares"]["0.0"])["picked"]] += 1
        counts[one["shares"]["0.0"]["picked"]] -= 1
    return math.sqrt(sum(count**2 for count in counts.values())) / len(studies)


def _row(
    row: dict[str, Any], before: Sequence[dict[str, float]], now: Sequence[dict[str, float]]
) -> dict[str, Any]:
    for score in now[0]:
        values, old = (np.array([worth.get(score, math.nan) for worth in worths]) for worths in (now, before))
        both = np.isfinite(values) & np.isfinite(old)  # both picks have a final run
        if score in ("spare", "tried"):
            row[score] = round(float(values.mean()), 2)
            continue
        row[score] = round(float(values[both].mean()), 5)
        row.setdefault("judged", int(both.sum()))  # the first is one of the final run, which may not be made
        if row["share"] != "0.0":
            gain = (old - values)[both]
            error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
            row[f"{score}_gain"] = {"mean": round(float(gain.mean()), 5), "se": round(error, 5)}
    print(json.dumps(row), flush=True)
    return row


def correlation(table: Table) -> list[dict[str, Any]]:
    """How well a short trial's NLL tells the final run's, over all configurations and over the best.

    `once` is one training of the trial, mean over trainings; `mean` is the mean of all trainings. `noise` is
    the standard deviation of a final run's score from one training to the next.
    """
    short = np.array([[np.mean(point.nll) for point in points] for points in table.trained])
    rows = []
    mean = short.mean(axis=0)
    for part, kept in (
        ("all", np.full(len(mean), True)),
        ("better half of the trials", mean <= np.median(mean)),
        (f"trials within {NEAR} of the best", mean <= mean.min() + NEAR),
    ):
        for score in ("nll", "test_nll"):
            made = kept & np.isfinite(table.finals[score]).any(axis=1)
            long = table.finals[score][made]
            goal = np.nanmean(long, axis=1)
            twice = long[np.isfinite(long).sum(axis=1) > 1]
            row: dict[str, Any] = {
                "kind": "correlation",
                "configurations": part,
                "n": int(made.sum()),
                "score": score,
            }
            row["once"] = float(np.mean([spearmanr(one[made], goal).statistic for one in short]))
            row["mean"] = float(spearmanr(mean[made], goal).statistic)
            row["noise"] = float(np.sqrt(np.nanvar(twice, axis=1, ddof=1).mean())) if len(twice) else None
            row["trained_twice"] = len(twice)
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
    parser.add_argument("step", choices=("replay", "judge", "correlation"))
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--finals", type=Path, required=True)
    parser.add_argument("--trained", type=Path, help="what `benchmarks.search.retraining short` wrote")
    parser.add_argument("--picks", type=Path, nargs="+", help="what the step replay wrote")
    parser.add_argument("--trials", type=int, nargs="+", default=SIZES, help="cost of a study, in trials")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of the cost, for the race")
    parser.add_argument("--searches", nargs="+", default=["random", "tpe+successive_halving"])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--first-study", type=int, default=0, help="seed of the first")
    parser.add_argument("--resample", action="store_true", help="other questions for each study")
    parser.add_argument("--as-final", action="store_true", help="let the trials rank as the final runs do")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    add_output_arguments(parser)
    given = parser.parse_args()
    register_resolvers()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = read_table(given.grid, given.finals, given.trained)
    if given.step == "correlation":
        rows = correlation(table)
    elif given.step == "judge":
        picks = [row for path in given.picks for row in json.loads(path.read_text())["rows"]]
        rows = [*judged(table, picks), *between_searches(table, picks)]
    else:
        rows = replayed(with_costs(as_final(table) if given.as_final else table, given.trials), given)
    write_rows(given.out, f"picking_{given.step}", rows, given.machine, append=False)


if __name__ == "__main__":
    main()
