"""A study's trials as its files keep them.

`leaderboard.csv` is read again: one row per trial that is done or paused, and what the rows say in sum.
`folds.csv` says what each finished fold of a trial scored; a cut-off trial goes on after the last.
`study.yaml` keeps the intervals that were searched. A best value at the end of its interval says that it was
too narrow: a better one may lie outside.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from vqa.errors import UserError
from vqa.machine.files import read_text, replace_text

RESULT_COLUMNS = ("trial", "state", "folds", "nll", "nll_se", "accuracy", "accuracy_se", "seconds")
TIED = "tied_with_best"  # after the searched parameters, as are the next
DOUBTS = ("nll_corrected", "trainings", "retraining_sd", "retraining_share")
OBJECTIVE_COLUMNS = ("objective", "objective_value")  # last, where the trials are not ranked by NLL
# Further objectives, by name: the column that holds each. They and FRONT come last, where there are any.
COST_COLUMNS = {"seconds": "seconds_per_question", "parameters": "trainable_parameters"}
FRONT = "on_front"
NOT_SEARCHED = ""  # an empty text that was searched stands in quotes
Value = float | str
EDGE = 0.05  # of the range, on its own scale: so near to an end is at the edge
# How Optuna writes an interval: FloatDistribution(high=0.001, log=True, low=1e-05, step=None)
_INTERVAL = re.compile(r"(?:Float|Int)Distribution\(high=([^,]+), log=(True|False), low=([^,]+), step=")


@dataclass(frozen=True)
class FoldResult:
    """One finished fold; its fields are the file's columns.

    Args:
        fold: The fold's number, from 0.
        n_train: Questions it was trained on.
        n_valid: Questions held out.
        nll: Mean NLL of the held-out questions, nats.
        accuracy: Share of them answered right.
        seconds: Wall time, evaluation included.
    """

    fold: int
    n_train: int
    n_valid: int
    nll: float
    accuracy: float
    seconds: float


def write_folds(path: Path, results: Sequence[FoldResult]) -> None:
    """Write one row per fold; numbers keep all their digits, and the file appears complete or not at all."""
    lines = [",".join(f.name for f in fields(FoldResult))]
    lines += [",".join(repr(value) for value in asdict(result).values()) for result in results]
    replace_text(path, "\n".join(lines) + "\n")


def read_folds(path: Path) -> list[FoldResult]:
    """Read the finished folds, in file order; [] where there is no file.

    Raises:
        UserError: A column is missing or a value is no number.
    """
    if not path.exists():
        return []
    try:
        text = read_text(path)
        rows = list(csv.DictReader(text.splitlines(), restval=""))
        if text and not text.endswith("\n"):
            raise ValueError("its last line is cut off")
        return [
            FoldResult(
                int(row["fold"]),
                int(row["n_train"]),
                int(row["n_valid"]),
                float(row["nll"]),
                float(row["accuracy"]),
                float(row["seconds"]),
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove the trial's folder to run it again"
        ) from error


@dataclass(frozen=True)
class TrialRow:
    """One row of the leaderboard.

    Args:
        number: The trial's number.
        state: COMPLETE, PAUSED, PRUNED or FAIL.
        folds: Finished folds.
        nll: Out-of-fold NLL in nats, of a paused or pruned trial over what it had scored. NaN where unknown,
            like all numbers here.
        nll_se: Its standard error.
        accuracy: Out-of-fold accuracy, 0..1.
        accuracy_se: Its standard error.
        seconds: Wall time.
        parameters: Searched parameters by config path; numbers as floats, NOT_SEARCHED where the trial had
            another choice that one depends on.
        tied: Whether it is not told apart from the best trial.
        rank: Its place in the file, from 0; the best trial is the first.
        corrected: The best trial's NLL corrected for selection bias; NaN for all others.
        trainings: How often it was trained on the same folds, each time with another `train_seed`.
        retraining_sd: Standard deviation of the NLL of one training from the next, nats; NaN where not
            measured.
        retraining_share: Its share in the variance of the NLL of one training; the rest is that of the
            questions.
        objective: What the trials are ranked by: nll, accuracy or calibrated_nll.
        costs: Further objectives by column of COST_COLUMNS, NaN where unknown; lower is better.
        front: Whether no other complete trial is at least as good in every objective and better in one.
    """

    number: int
    state: str
    folds: int
    nll: float
    nll_se: float
    accuracy: float
    accuracy_se: float
    seconds: float
    parameters: dict[str, Value]
    tied: bool
    rank: int = 0
    corrected: float = math.nan
    trainings: int = 1
    retraining_sd: float = math.nan
    retraining_share: float = math.nan
    objective: str = "nll"
    costs: Mapping[str, float] = field(default_factory=dict)
    front: bool = False


def read_trials(leaderboard: Path) -> list[TrialRow]:
    """Read a leaderboard, sorted by trial number.

    Raises:
        UserError: As `read_leaderboard`.
    """
    return sorted(read_leaderboard(leaderboard), key=lambda trial: trial.number)


def read_leaderboard(leaderboard: Path) -> list[TrialRow]:
    """Read a leaderboard in its own order, the best trial first.

    Raises:
        UserError: The file is missing, lacks a column or holds a bad number.
    """
    try:
        text = read_text(leaderboard)
        table = csv.DictReader(io.StringIO(text, newline=""), restval="")
        header, rows = table.fieldnames or (), list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{leaderboard}: cannot be read: {error}; run the sweep again to write it") from error
    if text and not text.endswith("\n"):
        raise UserError(f"{leaderboard}: its last line is cut off; run the sweep again to write it")
    if missing := [name for name in (*RESULT_COLUMNS, TIED) if name not in header]:
        raise UserError(f"{leaderboard}: lacks the column(s) {', '.join(missing)}; run the sweep again")
    trials = []
    for number, row in enumerate(rows, start=2):
        try:
            trials.append(_parse_trial(row, number - 2))
        except ValueError as error:
            raise UserError(
                f"{leaderboard}, row {number}: {error}; run the sweep again to write it"
            ) from error
    return trials


def study_scores(trials: Sequence[TrialRow]) -> dict[str, float]:
    """The numbers that sum up a study: the best complete trial's scores, and trials in each state."""
    complete = complete_trials(trials)
    scores = {
        "trials": float(len(trials)),
        "trials_complete": float(len(complete)),
        "trials_paused": float(sum(trial.state == "PAUSED" for trial in trials)),
        "trials_pruned": float(sum(trial.state == "PRUNED" for trial in trials)),
        "trials_failed": float(sum(trial.state == "FAIL" for trial in trials)),
        "trials_tied": float(sum(trial.tied for trial in trials)),
        "seconds": sum(trial.seconds for trial in trials if not math.isnan(trial.seconds)),
    }
    if any(trial.costs for trial in trials):
        scores["trials_on_front"] = float(sum(trial.front for trial in trials))
    if complete:
        best = best_trial(complete)
        known = {"nll": best.nll, "nll_se": best.nll_se, "accuracy": best.accuracy}
        known |= {"nll_corrected": best.corrected, "retraining_sd": best.retraining_sd}
        scores |= {name: value for name, value in known.items() if not math.isnan(value)}
        scores["best_trial"] = float(best.number)
    return scores


def complete_trials(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """The complete trials that have a score."""
    return [trial for trial in trials if trial.state == "COMPLETE" and math.isfinite(trial.nll)]


def best_trial(complete: Sequence[TrialRow]) -> TrialRow:
    """The winner among complete trials, at least one: the first in the leaderboard."""
    return min(complete, key=lambda trial: (trial.rank, trial.nll))


@dataclass(frozen=True)
class OtherLeader:
    """A trial that leads by the score that the trials are not ranked by.

    Args:
        trial: Its number.
        by: That score: "nll" or "accuracy".
        score: What it has there.
        best: What the best trial has there.
    """

    trial: int
    by: Literal["nll", "accuracy"]
    score: float
    best: float


def other_leader(
    scores: Sequence[tuple[int, float | None, float | None]], by_accuracy: bool
) -> OtherLeader | None:
    """Find the trial that leads by the score that the trials are not ranked by.

    Args:
        scores: Number, NLL and accuracy of each complete trial, the best first.
        by_accuracy: Whether accuracy ranks them: then the lowest NLL is asked for, else the highest
            accuracy.

    Returns:
        The trial; None where it is the best one itself, or no better than it by that score.
    """
    known = [
        (number, nll if by_accuracy else -accuracy)
        for number, nll, accuracy in scores
        if nll is not None and accuracy is not None and math.isfinite(nll) and math.isfinite(accuracy)
    ]
    if not known or known[0][0] != scores[0][0]:
        return None
    (number, value), best = min(known, key=lambda pair: pair[1]), known[0][1]
    if value >= best:
        return None
    if by_accuracy:
        return OtherLeader(number, "nll", value, best)
    return OtherLeader(number, "accuracy", -value, -best)


def varied_parameters(trials: Sequence[TrialRow]) -> list[str]:
    """The searched parameters that take more than one value among the complete trials."""
    complete = complete_trials(trials)
    names = complete[0].parameters if complete else {}
    return [name for name in names if len({trial.parameters[name] for trial in complete}) > 1]


def _parse_trial(row: Mapping[str, str], rank: int) -> TrialRow:
    ours = (*RESULT_COLUMNS, TIED, *DOUBTS, *OBJECTIVE_COLUMNS, *COST_COLUMNS.values(), FRONT)
    searched = [name for name in row if name not in ours]
    return TrialRow(
        number=int(row["trial"]),
        state=row["state"],
        folds=int(row["folds"]),
        nll=_number(row["nll"]),
        nll_se=_number(row["nll_se"]),
        accuracy=_number(row["accuracy"]),
        accuracy_se=_number(row["accuracy_se"]),
        seconds=_number(row["seconds"]),
        parameters={name: _value(row[name]) for name in searched},
        tied=row[TIED].strip().lower() in ("true", "yes", "1"),
        rank=rank,
        corrected=_number(row.get("nll_corrected", "")),
        trainings=int(row.get("trainings") or 1),
        retraining_sd=_number(row.get("retraining_sd", "")),
        retraining_share=_number(row.get("retraining_share", "")),
        objective=row.get("objective") or "nll",
        costs={name: _number(row[name]) for name in COST_COLUMNS.values() if name in row},
        front=row.get(FRONT) == "true",
    )


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _value(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Args:
        low: Its lower end.
        high: Its upper end.
        log: Whether it was searched on a logarithmic scale.
    """

    low: float
    high: float
    log: bool

    def __str__(self) -> str:
        """As `low..high`."""
        return f"{self.low:g}..{self.high:g}"

    def edge_of(self, value: object) -> str | None:
        """Say at which end a value lies, "lower" or "upper"; None in between, and for what is no number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low >= self.high:
            return None
        low, high, at = (math.log(x) if self.log else float(x) for x in (self.low, self.high, value))
        place = (at - low) / (high - low)
        return "lower" if place <= EDGE else "upper" if place >= 1 - EDGE else None


def ranges_of(terms: Mapping[str, object]) -> dict[str, Range]:
    """The searched intervals by key; choices, and numbers searched as a multiple of another, are left out."""
    space = terms.get("space")
    found: dict[str, Range] = {}
    for name, text in space.items() if isinstance(space, Mapping) else ():
        if " / " not in name and (match := _INTERVAL.match(str(text))):
            found[str(name)] = Range(float(match[3]), float(match[1]), match[2] == "True")
    return found
