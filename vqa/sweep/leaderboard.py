"""The ranking of a study's trials and its rows in `leaderboard.csv`; the first one is the winner."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from vqa.config.messages import in_language, plain_message
from vqa.machine.files import replace_text
from vqa.report.verdict import disagreement_words, edge_words
from vqa.results.comparison import Trained, Verdict, compare, pareto_front, standing_order
from vqa.results.folder import RunFolder, StudyFolder, read_json
from vqa.results.metrics import per_question_nll, pictures_of
from vqa.results.predictions import read_fold_predictions
from vqa.results.trials import (
    COST_COLUMNS,
    DOUBTS,
    FRONT,
    OBJECTIVE_COLUMNS,
    RESULT_COLUMNS,
    TIED,
    Range,
    other_leader,
)
from vqa.results.uncertainty import mean_error, picture_codes
from vqa.sweep.search.promotion import WORKED_S, is_paused
from vqa.sweep.search.space import override_value, plain_values
from vqa.sweep.settings import Cost, Objective, question_losses, shown_objective

Stamps = tuple[tuple[int, int], ...]  # of a trial's files: changed, bytes


@dataclass(frozen=True)
class Scores:
    """What a trial's finished folds say, question by question.

    Args:
        folds: Finished folds.
        seconds: Their training and scoring time; None without folds.csv.
        nll: Negative log-probability of the right letter (nats), by question id.
        correct: Whether the right letter was the most probable, by question id.
        pictures: Digest of each question's picture by id; errors are taken over pictures.
        loss: What the trials are ranked by, question by question and lower is better: see
            `vqa.sweep.settings`.
        parameters: Weights that were trained; None where the trial did not say.
    """

    folds: int
    seconds: float | None
    nll: Mapping[str, float]
    correct: Mapping[str, bool]
    pictures: Mapping[str, str] = field(default_factory=dict)
    loss: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None

    def cost(self, name: Cost) -> float | None:
        """What a question took in seconds, or the weights that were trained; None where it is not known."""
        if name == "parameters" or self.seconds is None or not self.nll:
            return self.parameters if name == "parameters" else None
        return self.seconds / len(self.nll)

    def error(self, values: Mapping[str, float]) -> float | None:
        """Standard error of the mean of values by question id, over pictures; None with fewer than two."""
        codes = picture_codes([self.pictures.get(name, "") for name in values])
        if len(codes) == 0 or int(codes.max()) == 0:
            return None
        return mean_error(np.array([float(value) for value in values.values()]), codes)

    # kept, because the ranking asks each trial after each other one, and finished trials do not change
    @cached_property
    def mean_nll(self) -> float | None:
        """Mean of `nll`; None without questions."""
        return float(np.mean(list(self.nll.values()))) if self.nll else None

    @cached_property
    def nll_se(self) -> float | None:
        """Standard error of `mean_nll` over the pictures."""
        return self.error(self.nll)

    @cached_property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        return statistics.fmean(self.correct.values()) if self.correct else None

    @cached_property
    def accuracy_se(self) -> float | None:
        """Standard error of `accuracy` over the pictures."""
        return self.error({name: float(right) for name, right in self.correct.items()})


@dataclass(frozen=True)
class Standing:
    """One line of the ranking.

    Args:
        trial: The trial's number.
        state: COMPLETE, PAUSED, PRUNED, FAIL, RUNNING or WAITING.
        value: The objective that was told; a pruned or paused trial's last report.
        last_step: The last step that was reported; None without a report.
        seconds: Time of the finished folds, else what was worked on it, else from start to end; None while
            running.
        params: Searched key -> value, multiples written out.
        scores: Out-of-fold results so far.
        tied: Whether the trial is not told apart from the best one, all trials taken together. None when the
            two have no questions in common, so that nothing was compared.
        error: Why the trial failed.
        again: Results of its further trainings on the same folds, by rising seed.
        verdict: Of the best trial: what the comparison of all complete trials found.
        objective: What the trials are ranked by.
        costs: Further objectives, by name; None where one is not known.
        front: Of a complete trial: whether it is on the Pareto front; None without costs.
    """

    trial: int
    state: str
    value: float | None
    last_step: int | None
    seconds: float | None
    params: Mapping[str, Any]
    scores: Scores
    tied: bool | None = False
    error: str = ""
    again: tuple[Scores, ...] = ()
    verdict: Verdict | None = None
    objective: Objective = "nll"
    costs: Mapping[Cost, float | None] = field(default_factory=dict)
    front: bool | None = None

    @property
    def nll(self) -> float | None:
        """Mean NLL over the questions of the finished folds and over trainings; without any, the
        objective."""
        if not self.again:
            return self.value if self.scores.mean_nll is None else self.scores.mean_nll
        values = [value for scores in (self.scores, *self.again) for value in scores.nll.values()]
        return float(np.mean(values)) if values else self.value

    @property
    def nll_se(self) -> float | None:
        """Standard error of `nll` over the pictures; the noise of training is not in it."""
        if not self.again:
            return self.scores.nll_se
        mean = {
            name: statistics.fmean(scores.nll.get(name, value) for scores in (self.scores, *self.again))
            for name, value in self.scores.nll.items()
        }
        return self.scores.error(mean)

    @property
    def trained(self) -> Trained:
        """The trial as the comparison takes it."""
        losses = tuple(scores.loss for scores in (self.scores, *self.again))
        return Trained(self.trial, losses, self.scores.pictures)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, the mean over trainings."""
        shares = [s.accuracy for s in (self.scores, *self.again) if s.accuracy is not None]
        return statistics.fmean(shares) if shares else None

    @property
    def accuracy_se(self) -> float | None:
        """Standard error of `accuracy` over the pictures."""
        return self.scores.accuracy_se


def read_scores(folder: Path, objective: Objective = "nll") -> Scores:
    """Read `folds.csv` and `oof_predictions.csv` of a trial; files that are not there count as empty."""
    return _read_scores(folder, _stamps(folder), objective)


def _stamps(folder: Path) -> Stamps:
    return tuple(_stamp(file) for file in _files(folder))


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4096)
def _trial(study_folder: Path, number: int) -> RunFolder:
    return StudyFolder(study_folder).trial(number)


@lru_cache(maxsize=4096)
def _files(folder: Path) -> tuple[Path, ...]:
    run = RunFolder(folder)
    return run.folds_file, run.out_of_fold, run.adapter_size


@lru_cache(maxsize=4096)  # finished trials do not change, and the ranking reads all of them after each trial
def _read_scores(folder: Path, stamps: Stamps, objective: Objective) -> Scores:
    folds = RunFolder(folder).folds()
    finished = {result.fold for result in folds}
    out_of_fold = RunFolder(folder).out_of_fold
    rows = read_fold_predictions(out_of_fold) if out_of_fold.exists() else []
    labelled = [p for p, fold in rows if fold in finished and p.gold is not None]
    seconds = sum(result.seconds for result in folds) if folds else None
    size = RunFolder(folder).adapter_size
    return Scores(
        folds=len(finished),
        seconds=seconds,
        nll=per_question_nll(labelled) if labelled else {},
        correct={p.id: p.answer == p.gold for p in labelled},
        pictures=pictures_of(labelled),
        loss=question_losses(labelled, objective) if labelled else {},
        parameters=read_json(size).get("parameters") if size.exists() else None,
    )


def ranking(
    trials: Sequence[FrozenTrial],
    study_folder: Path,
    direction: str,
    objective: Objective = "nll",
    costs: Sequence[Cost] = (),
) -> list[Standing]:
    """Order the trials from best to worst.

    COMPLETE by objective, then PAUSED and PRUNED by how far they came, then FAIL, then those that run or
    wait. Complete trials are ordered by the objective in Optuna's storage. The NLL from the files is summed
    in another order, and its last digit could swap two trials. Under another objective the mean of the files'
    losses orders them. Once some were trained again, those stand in front, see
    `vqa.results.comparison.standing_order`.

    Args:
        trials: As Optuna gives them.
        study_folder: Where `trials/` lies.
        direction: "minimize" or "maximize".
        objective: What complete trials are ranked by.
        costs: Further objectives: with any, the Pareto front of the complete trials is marked.
    """
    standings = [standing_of(trial, study_folder, objective) for trial in trials]
    sign = 1.0 if direction == "minimize" else -1.0
    standings.sort(key=lambda standing: _sort_key(standing, sign))
    if not standings or standings[0].state != "COMPLETE":
        return standings
    complete = [standing for standing in standings if standing.state == "COMPLETE"]
    if objective != "nll":
        complete.sort(key=lambda s: (s.trained.mean if s.scores.loss else math.inf, s.nll))
    if any(standing.again for standing in complete):  # a stable sort: the others keep Optuna's order
        complete.sort(key=lambda s: standing_order(s.trained) if s.again else (-1, 0.0))
    verdict = _verdict(tuple(_key(standing, study_folder) for standing in complete), objective)
    judged = [replace(standing, tied=verdict.tied[standing.trial]) for standing in complete]
    judged[0] = replace(judged[0], verdict=verdict)
    ranked = [*judged, *standings[len(complete) :]]
    return _with_front(ranked, costs) if costs else ranked


def _with_front(standings: Sequence[Standing], costs: Sequence[Cost]) -> list[Standing]:
    priced = [replace(s, costs={name: s.scores.cost(name) for name in costs}) for s in standings]
    complete = [s for s in priced if s.state == "COMPLETE"]
    points = [(s.value if s.objective == "nll" else s.trained.mean, *s.costs.values()) for s in complete]
    marked = [replace(s, front=front) for s, front in zip(complete, pareto_front(points), strict=True)]
    return [*marked, *priced[len(complete) :]]


Key = tuple[int, tuple[tuple[Path, Stamps], ...]]  # a trial, and the folders of its trainings


def _key(standing: Standing, study_folder: Path) -> Key:
    trial = _trial(study_folder, standing.trial)
    folders = [trial.path, *trial.trained_again()][: 1 + len(standing.again)]
    return standing.trial, tuple((folder, _stamps(folder)) for folder in folders)


@lru_cache(maxsize=16)  # the table is drawn twice a second, and its trials change every few
def _verdict(keys: tuple[Key, ...], objective: Objective) -> Verdict:
    """Compare trials, the best first."""
    return compare([_trained(number, files, objective) for number, files in keys])


def _trained(number: int, files: tuple[tuple[Path, Stamps], ...], objective: Objective) -> Trained:
    read = [_read_scores(folder, stamps, objective) for folder, stamps in files]
    return Trained(number, tuple(scores.loss for scores in read), read[0].pictures)


def _sort_key(standing: Standing, sign: float) -> tuple[int, int, int, float, int]:
    state = "PRUNED" if standing.state == "PAUSED" else standing.state
    order = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING").index(state)
    value = math.inf if standing.value is None else sign * standing.value
    if state != "PRUNED":
        return order, 0, 0, value, standing.trial
    reached = -1 if standing.last_step is None else standing.last_step
    return order, -standing.scores.folds, -reached, value, standing.trial


def standing_of(trial: FrozenTrial, study_folder: Path, objective: Objective = "nll") -> Standing:
    """One trial by itself: not compared with any other."""
    folder = _trial(study_folder, trial.number)
    scores = read_scores(folder.path, objective)
    again = tuple(read_scores(path, objective) for path in folder.trained_again())
    seconds = scores.seconds
    if seconds is None:
        seconds = trial.user_attrs.get(WORKED_S)
    if seconds is None and trial.state.is_finished() and trial.duration is not None:
        seconds = trial.duration.total_seconds()
    paused = is_paused(trial)
    value = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    if paused and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
    return Standing(
        trial=trial.number,
        state="PAUSED" if paused else trial.state.name,
        value=value,
        last_step=trial.last_step,
        seconds=seconds,
        params=plain_values(trial.params or trial.system_attrs.get("fixed_params", {})),
        scores=scores,
        error=trial.user_attrs.get("error", ""),
        again=again if trial.state == TrialState.COMPLETE else (),
        objective=objective,
    )


def leaderboard_text(standings: Sequence[Standing], names: Sequence[str]) -> str:
    """Give the content of `leaderboard.csv`: the trials that are done or paused, best first.

    Args:
        standings: In order, as `ranking` gives them.
        names: Searched keys, one column each.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    ranked = list(OBJECTIVE_COLUMNS) if standings and standings[0].objective != "nll" else []
    priced = [COST_COLUMNS[name] for name in standings[0].costs] if standings else []
    table.writerow([*RESULT_COLUMNS, *names, TIED, *DOUBTS, *ranked, *priced, *([FRONT] if priced else [])])
    verdict = standings[0].verdict if standings else None
    for standing in standings:
        if standing.state in ("RUNNING", "WAITING"):
            continue
        numbers = (standing.nll, standing.nll_se, standing.accuracy, standing.accuracy_se)
        table.writerow(
            [
                standing.trial,
                standing.state,
                standing.scores.folds,
                *("" if number is None else f"{number:.6f}" for number in numbers),
                "" if standing.seconds is None else f"{standing.seconds:.2f}",
                *(override_value(standing.params[n]) if n in standing.params else "" for n in names),
                "" if standing.tied is None else str(standing.tied).lower(),
                *_doubts(standing, verdict),
                *([standing.objective, _objective_value(standing)] if ranked else []),
                *("" if cost is None else f"{cost:.6g}" for cost in standing.costs.values()),
                *(["" if standing.front is None else str(standing.front).lower()] if priced else []),
            ]
        )
    return out.getvalue()


def _doubts(standing: Standing, verdict: Verdict | None) -> list[str]:
    """The last columns: what keeps a trial's NLL from being the truth."""
    if verdict is None or standing.state != "COMPLETE":
        return ["", "", "", ""]
    corrected = verdict.corrected if standing.verdict is not None else None
    numbers = (verdict.retraining_sd, verdict.retraining_share)
    if standing.objective != "nll":  # these columns are nats of the NLL
        corrected, numbers = None, (None, None)
    noise = ["" if number is None or not standing.again else f"{number:.6f}" for number in numbers]
    return ["" if corrected is None else f"{corrected:.6f}", str(1 + len(standing.again)), *noise]


def _objective_value(standing: Standing) -> str:
    if not standing.scores.loss:
        return ""
    return f"{shown_objective(standing.trained.mean, standing.objective):.6f}"


def write_leaderboard(standings: Sequence[Standing], names: Sequence[str], path: Path) -> None:
    """Write `leaderboard.csv` in one step; unchanged content leaves the file alone."""
    replace_text(path, leaderboard_text(standings, names))


def describe_scores(standing: Standing, lang: str = "en") -> str:
    """Give NLL and accuracy with their standard errors in a few words."""
    if standing.nll is None:
        return plain_message(lang, "scores none")
    error = f" ± {standing.nll_se:.4f}" if standing.nll_se is not None else ""
    nll = plain_message(lang, "scores nll", nll=f"{standing.nll:.4f}{error}")
    if standing.accuracy is None or standing.accuracy_se is None:
        return nll
    accuracy = f"{standing.accuracy:.4f} ± {standing.accuracy_se:.4f}"
    return plain_message(lang, "scores accuracy", nll=nll, accuracy=accuracy)


def describe_ties(standings: Sequence[Standing], lang: str = "en") -> str:
    """Say which trials tie with the best one, what it is worth, and how noisy training is."""
    others = [standing for standing in standings[1:] if standing.state == "COMPLETE"]
    tied = [str(standing.trial) for standing in others if standing.tied]
    unknown = [str(standing.trial) for standing in others if standing.tied is None]
    lines = []
    if tied:
        lines.append(plain_message(lang, "ties some", trials=", ".join(tied)))
    if unknown:
        lines.append(plain_message(lang, "ties unknown", trials=", ".join(unknown)))
    if not lines:
        lines.append(plain_message(lang, "ties none"))
    if standings:
        lines += [*_doubts_in_words(standings[0], lang), *_disagreement(standings, lang)]
    return " ".join(lines)


def _disagreement(standings: Sequence[Standing], lang: str) -> list[str]:
    """Say that another trial leads by the score that the trials are not ranked by."""
    best = standings[0]
    by_accuracy = best.objective == "accuracy"
    other = other_leader(
        [
            (s.trial, s.nll, s.accuracy)
            for s in standings
            if s.state == "COMPLETE" and len(s.again) == len(best.again)
        ],
        by_accuracy,
    )
    return [] if other is None else [_as_sentence(in_language(lang, disagreement_words(other)))]


def _as_sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def describe_front(standings: Sequence[Standing], final_trial: int | None, lang: str = "en") -> str:
    """Say which trials are on the Pareto front and which one the final run takes; empty without costs."""
    best = winner_of(standings, final_trial)
    if best is None or not standings[0].costs:
        return ""
    title = plain_message(lang, f"objective {best.objective}")
    costs = ", ".join(plain_message(lang, f"cost {name}") for name in best.costs)
    trials = ", ".join(str(s.trial) for s in standings if s.front)
    taken = "told" if best is not standings[0] else "first"
    return plain_message(lang, f"front {taken}", title=title, costs=costs, trials=trials, n=best.trial)


def describe_edges(best: Standing, ranges: Mapping[str, Range], lang: str = "en") -> str:
    """Say which values of the best trial lie at the edge of their range; empty when none does."""
    said = [edge_words(key, best.params.get(key), ranged) for key, ranged in ranges.items()]
    return " ".join(f"{in_language(lang, words)}." for words in said if words)


def _doubts_in_words(best: Standing, lang: str) -> list[str]:
    verdict = best.verdict
    if verdict is None or verdict.corrected is None:
        return []
    title = plain_message(lang, f"objective {best.objective}")
    expected = shown_objective(verdict.corrected, best.objective)
    said = [plain_message(lang, "ties expected", title=title, score=expected)]
    if verdict.retraining_sd is None:
        said.append(plain_message(lang, "ties unmeasured"))
    else:
        part = verdict.retraining_share
        share = plain_message(lang, "ties share", share=part) if part else ""
        said.append(plain_message(lang, "ties noise", title=title, sd=verdict.retraining_sd, share=share))
    return said


def winner_of(standings: Sequence[Standing], final_trial: int | None = None) -> Standing | None:
    """Give the complete trial of that number, or the best one while it is not there; None without any."""
    complete = [standing for standing in standings if standing.state == "COMPLETE"]
    return next((s for s in complete if s.trial == final_trial), complete[0] if complete else None)
