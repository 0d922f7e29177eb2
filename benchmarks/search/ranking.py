"""Does the ranking hold? False alarms, power, pairs of one configuration, and what was picked.

`simulate` draws studies of equal trials, and of trials with one true gap, from the real differences between
the grid's configurations, and counts what the paired test against the best (as before) and the range over all
trials (as now) say. `pairs` compares trainings of one configuration with other seeds. `replay` lets studies
choose among configurations: each once, and fewer of them with the tied best trained again, at equal cost.
`choose` lets several rules choose among the same trials, each trained once, so that no rule costs more.

    python -m benchmarks.search.ranking simulate --grid GRID --out FILE
    python -m benchmarks.search.ranking pairs --trained TRAINED --out FILE
    python -m benchmarks.search.ranking replay --grid GRID --trained TRAINED --out FILE
    python -m benchmarks.search.ranking choose --grid GRID --trained TRAINED --out FILE

GRID is what `benchmarks.search.samplers grid` wrote, TRAINED what `benchmarks.search.retraining short` wrote.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.record import add_output_arguments, write_rows
from benchmarks.search.samplers import space
from vqa.results.comparison import Trained, compare, next_trainings, retraining_noise, standing_order
from vqa.results.uncertainty import mean_error, mean_p_value, tie_widths
from vqa.sweep.search.thompson import features, matern

Array = NDArray[np.float64]
SIZES = (2, 4, 8, 16, 40)
CORRELATION = 0.3  # of questions on one picture, where a picture has several
CLOSE = 0.15  # nats from the best: the grid's configurations that studies are drawn from


def residuals(grid: Path) -> Array:
    """Centred NLL (configurations, questions) of the grid's configurations near the best."""
    rows = json.loads(grid.read_text())["rows"]
    values = np.array([row["nll"] for row in rows])
    means = values.mean(axis=1)
    near = values[means < means.min() + CLOSE]
    return np.asarray(near - near.mean(axis=1, keepdims=True))


def study(
    near: Array, trials: int, each: int, random: np.random.Generator
) -> tuple[Array, NDArray[np.int64]]:
    """Equal trials, (T, n), with `each` questions a picture, and the pictures' codes."""
    rows = random.choice(len(near), trials, replace=trials > len(near))
    n = near.shape[1]
    own = near[rows][:, random.integers(0, n, n)]
    if each == 1:
        return own, np.arange(n)
    codes = np.arange(n) // each
    shared = near[rows][:, random.integers(0, n, int(codes.max()) + 1)]
    return math.sqrt(1 - CORRELATION) * own + math.sqrt(CORRELATION) * shared[:, codes], codes


def apart_before(values: Array) -> NDArray[np.bool_]:
    """What the paired test of each trial with the best, over questions, tells apart at 5 %."""
    best = values[values.mean(axis=1).argmin()]
    alone = np.arange(values.shape[1])
    return np.array([mean_p_value(row - best, alone) < 0.05 for row in values])


def apart_now(values: Array, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """What the range over all trials tells apart from the best."""
    means = values.mean(axis=1)
    return np.asarray(means - means.min() > tie_widths(values, codes, int(means.argmin())))


def simulate(grid: Path, studies: int) -> list[dict[str, Any]]:
    """False alarms and power."""
    near, random, rows = residuals(grid), np.random.default_rng(0), []
    for each in (1, 6):
        for trials in SIZES:
            before = now = 0
            for _ in range(studies):
                values, codes = study(near, trials, each, random)
                before += bool(apart_before(values).any())
                now += bool(apart_now(values, codes).any())
            row = {"kind": "false_alarms", "questions_a_picture": each, "trials": trials, "studies": studies}
            rows.append(_told(row | {"before": before / studies, "now": now / studies}))
    for trials, unit in [(t, unit) for t in (2, 4, 16) for unit in ("trial", "difference")]:
        found = {"before": 0, "now": 0}
        for _ in range(studies):
            values, codes = study(near, trials, 1, random)
            error = mean_error(values[0] if unit == "trial" else values[0] - values[1], codes)
            values[0] += 2 * error
            found["before"] += bool(apart_before(values)[0])
            found["now"] += bool(apart_now(values, codes)[0])
        row = {
            "kind": "power",
            "gap": f"2 standard errors of the {unit}",
            "trials": trials,
            "studies": studies,
        }
        rows.append(_told(row | {name: count / studies for name, count in found.items()}))
    return rows


def configurations(trained: Path) -> tuple[list[list[Array]], list[float], list[str]]:
    """NLL of each training of each configuration, the configurations' rates, and the questions' pictures."""
    rows = json.loads(trained.read_text())["rows"]
    by: dict[tuple[float, int], list[Array]] = {}
    for row in sorted(rows, key=lambda row: row["train_seed"]):
        by.setdefault((row["lr"], row["alpha"]), []).append(np.array(row["nll"]))
    seeds = min(len(trainings) for trainings in by.values())
    return [t[:seeds] for t in by.values()], [lr for lr, _ in by], rows[0]["pictures"]


def as_trial(number: int, trainings: Sequence[Array], pictures: Sequence[str]) -> Trained:
    """A trial for the product's own comparison."""
    nll = tuple({f"q{i}": float(v) for i, v in enumerate(values)} for values in trainings)
    return Trained(number, nll, {f"q{i}": picture for i, picture in enumerate(pictures)})


def pairs(trained: Path) -> list[dict[str, Any]]:
    """Two trainings of one configuration: how often are they told apart?"""
    found, _, pictures = configurations(trained)
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(picture, len(numbers)) for picture in pictures])
    sd, _ = retraining_noise([as_trial(i, t, pictures) for i, t in enumerate(found)])
    counts = {"before": 0, "range": 0, "range_and_noise": 0}
    total, study_before, study_range = 0, 0, 0
    for trainings in found:
        whole = np.array(trainings)
        study_before += bool(apart_before(whole).any())
        study_range += bool(apart_now(whole, codes).any())
        for one, other in combinations(trainings, 2):
            values = np.array([one, other])
            far = abs(float(np.diff(values.mean(axis=1))[0]))
            total += 1
            counts["before"] += bool(apart_before(values).any())
            counts["range"] += bool(far > tie_widths(values, codes, 0)[1])
            counts["range_and_noise"] += bool(far > tie_widths(values, codes, 0, np.full(2, sd))[1])
    row: dict[str, Any] = {"kind": "pairs", "configurations": len(found), "trainings_each": len(found[0])}
    row |= {"pairs": total, "told_apart": {name: count / total for name, count in counts.items()}}
    row |= {"studies_with_a_winner_before": study_before, "studies_with_a_winner_range": study_range}
    return [_told(row | {"retraining_sd": sd})]


Trial = Callable[[int, int], Array]  # configuration, training -> NLL of its questions


def pick(draw: Trial, chosen: Sequence[int], spare: int, pictures: Sequence[str]) -> list[Trained]:
    """The ranking after a study of configurations and `spare` further trainings, by the product's race."""
    trials = [as_trial(c, [draw(c, 0)], pictures) for c in chosen]
    trials.sort(key=lambda t: t.mean)
    left = spare
    while wanted := next_trainings(trials, left):
        left -= len(wanted)
        trials = [
            as_trial(t.trial, [draw(t.trial, k) for k in range(len(t.nll) + 1)], pictures)
            if t.trial in wanted
            else t
            for t in trials
        ]
        trials.sort(key=standing_order)
    return trials


def regrets(
    truth: Array, rates: Sequence[float], draw: Trial, cost: int, spare: int, pictures: list[str], rng: Any
) -> dict[str, float]:
    """Regret of what is picked, nats above the best there is: all for trials, or `spare` for the race."""
    order = rng.permutation(len(truth))
    all_once = pick(draw, order[:cost].tolist(), 0, pictures)
    raced = pick(draw, order[: cost - spare].tolist(), spare, pictures)
    dearer = pick(draw, order[:cost].tolist(), spare, pictures)
    tied = compare(all_once).tied
    lowest = min((t for t in all_once if tied[t.trial]), key=lambda t: rates[t.trial])
    picked = {
        "before": all_once[0],
        "raced": raced[0],
        "raced_at_more_cost": dearer[0],
        "lowest_rate_of_tied": lowest,
    }
    return {name: float(truth[t.trial] - truth.min()) for name, t in picked.items()}


def replay(grid: Path, trained: Path, studies: int) -> list[dict[str, Any]]:
    """Regret at equal cost, on the grid with the measured noise, and on trainings that were repeated."""
    found, rates, pictures = configurations(trained)
    sd, apart = retraining_noise([as_trial(i, t, pictures) for i, t in enumerate(found)])
    common = math.sqrt(max(0.0, (sd or 0.0) ** 2 - apart**2))
    rows = json.loads(grid.read_text())["rows"]
    values = np.array([row["nll"] for row in rows])
    grid_rates = [row["params"]["optimizer.lr"] for row in rows]
    out = []
    for cost, spare in ((24, 6), (24, 10), (12, 4)):
        results = [
            _grid_study(values, grid_rates, common, apart, cost, spare, np.random.default_rng([seed, cost]))
            for seed in range(studies)
        ]
        what = {"kind": "grid", "cost": cost, "spare": spare, "sd_shared": common, "sd_apart": apart}
        out.append(_summary(what, results))
    for cost, spare in ((12, 4), (8, 4)):
        results = [
            _real_study(found, rates, cost, spare, pictures, np.random.default_rng([seed, cost]))
            for seed in range(studies)
        ]
        out.append(_summary({"kind": "trained_again", "cost": cost, "spare": spare}, results))
    return out


def _grid_study(
    values: Array, rates: list[float], common: float, apart: float, cost: int, spare: int, rng: Any
) -> dict[str, float]:
    drawn = values[:, rng.integers(0, values.shape[1], values.shape[1])]
    seeds = rng.normal(0, common, cost + 1)
    own = rng.normal(0, apart, (len(values), cost + 1))
    alone = [""] * values.shape[1]

    def draw(configuration: int, training: int) -> Array:
        return np.asarray(drawn[configuration] + seeds[training] + own[configuration, training])

    return regrets(values.mean(axis=1), rates, draw, cost, spare, alone, rng)


def _real_study(
    found: list[list[Array]],
    rates: list[float],
    cost: int,
    spare: int,
    pictures: list[str],
    rng: np.random.Generator,
) -> dict[str, float]:
    """The study sees seeds in random order, at most three a trial; the truth is the mean of the others."""
    order = rng.permutation(len(found[0]))
    held = order[3:]
    truth = np.array([np.mean([t[s] for s in held]) for t in found])

    def draw(configuration: int, training: int) -> Array:
        return found[configuration][int(order[min(training, 2)])]

    return regrets(truth, rates, draw, cost, spare, pictures, rng)


def choose(grid: Path, trained: Path, studies: int) -> list[dict[str, Any]]:
    """Regret of what each rule chooses among trials that were trained once, on the grid with measured noise.

    `best_of_drawn` is no rule: it is what a choice without any noise would lose, because the best of the grid
    is not among the trials.
    """
    found, _, pictures = configurations(trained)
    sd, apart = retraining_noise([as_trial(i, t, pictures) for i, t in enumerate(found)])
    shared = math.sqrt(max(0.0, (sd or 0.0) ** 2 - apart**2))
    rows = json.loads(grid.read_text())["rows"]
    values, params = np.array([row["nll"] for row in rows]), [row["params"] for row in rows]
    truth, places = (
        values.mean(axis=1),
        np.array([features(point, space().distributions) for point in params]),
    )
    out = []
    for cost in (8, 12, 24):
        regret: dict[str, list[float]] = {}
        for seed in range(studies):
            rng = np.random.default_rng([seed, cost])
            drawn = values[:, rng.integers(0, values.shape[1], values.shape[1])]
            trials = rng.permutation(len(values))[:cost]
            scores = drawn[trials].mean(axis=1) + rng.normal(0, apart, cost) + rng.normal(0, shared)
            best = int(scores.argmin())
            differences = drawn[trials] - drawn[trials[best]]
            errors = differences.std(axis=1, ddof=1) / math.sqrt(values.shape[1])
            widths = np.sqrt(errors**2 + 2 * apart**2)
            own = [params[index] for index in trials]
            for name, chosen in choices(scores, widths, own, places[trials], apart).items():
                regret.setdefault(name, []).append(float(truth[trials[chosen]] - truth.min()))
            regret.setdefault("best_of_drawn", []).append(float(truth[trials].min() - truth.min()))
        for name, lost in regret.items():
            gain = np.array(regret["lowest_score"]) - np.array(lost)
            row = {"kind": "choose", "trials": cost, "rule": name, "studies": studies, "sd_apart": apart}
            row |= {"regret": float(np.mean(lost)), "p90": float(np.quantile(lost, 0.9))}
            se = float(gain.std(ddof=1) / math.sqrt(studies))
            out.append(_told(row | {"gain": {"mean": float(gain.mean()), "se": se}}))
    return out


def choices(
    scores: Array, widths: Array, params: Sequence[dict[str, Any]], places: Array, noise: float
) -> dict[str, int]:
    """What each rule chooses.

    Args:
        scores: (T,) of the trials.
        widths: (T,) standard error of each one's difference to the lowest, noise of training included.
        params: Of each trial.
        places: (T, F) features of the parameters.
        noise: Standard deviation of a score from one training to the next, what all share left out.

    Returns:
        Rule -> the trial's index: the lowest score; the lowest learning rate, or the smallest rank and among
        those the lowest rate, of all within so many standard errors of it; the lowest mean of a Gaussian
        process over the parameters, which borrows from neighbours.
    """
    chosen = {"lowest_score": int(scores.argmin())}
    for width in (0.25, 0.5, 1.0, 2.0):
        tied = [i for i in range(len(scores)) if scores[i] - scores.min() <= width * widths[i]]
        chosen[f"lowest_rate_within_{width}"] = min(tied, key=lambda i: params[i]["optimizer.lr"])
        chosen[f"plainest_within_{width}"] = min(
            tied, key=lambda i: (params[i]["lora.r"], params[i]["optimizer.lr"])
        )
    centred = (scores - scores.mean()) / scores.std()
    kernel = matern(places, places)
    share = (noise / float(scores.std())) ** 2
    smooth = kernel @ np.linalg.solve(kernel + share * np.eye(len(scores)), centred)
    return chosen | {"smoothed": int(smooth.argmin())}


def _summary(what: dict[str, Any], results: Sequence[dict[str, float]]) -> dict[str, Any]:
    row = what | {"studies": len(results)}
    for name in results[0]:
        regret = np.array([r[name] for r in results])
        row[name] = {"mean": float(regret.mean()), "p90": float(np.quantile(regret, 0.9))}
    gain = np.array([r["before"] - r["raced"] for r in results])
    row["gain"] = {"mean": float(gain.mean()), "se": float(gain.std(ddof=1) / math.sqrt(len(gain)))}
    return _told(row)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Parse the command line, run one step, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("simulate", "pairs", "replay", "choose"))
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--studies", type=int, default=400)
    add_output_arguments(parser)
    given = parser.parse_args()
    if given.step == "simulate":
        rows = simulate(given.grid, given.studies)
    elif given.step == "pairs":
        rows = pairs(given.trained)
    elif given.step == "choose":
        rows = choose(given.grid, given.trained, given.studies)
    else:
        rows = replay(given.grid, given.trained, given.studies)
    write_rows(given.out, f"ranking_{given.step}", rows, given.machine, append=False)


if __name__ == "__main__":
    main()
