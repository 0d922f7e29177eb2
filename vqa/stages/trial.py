"""One trial of a sweep: short K-fold training on the study's subsample; the score is the out-of-fold NLL."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from vqa import progress
from vqa.answer.readout import answer
from vqa.answer.score import score
from vqa.config.messages import plain_message
from vqa.config.settings import Settings
from vqa.data.source import split_questions
from vqa.data.split import Fold, make_folds, subsample
from vqa.machine.device import peak_memory_gib
from vqa.machine.files import replace_text
from vqa.model.adapter import adapter_state
from vqa.model.base import load_base
from vqa.model.context import refuse_options, refuse_too_long
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.results.folder import AGAIN, RunFolder
from vqa.results.metrics import accuracy, accuracy_ci95, nll, per_question_nll
from vqa.results.predictions import Prediction, append_predictions, read_predictions
from vqa.results.trials import FoldResult, write_folds
from vqa.results.uncertainty import picture_codes
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Run
from vqa.train.fit import Evaluation, fit
from vqa.train.fold_adapters import TrainedFold, fold_adapter
from vqa.train.plan import plan_fit

log = logging.getLogger(__name__)


def sample_questions(settings: Settings) -> tuple[list[Question], list[Fold]]:
    """The study's subsample and its folds; the same for every trial of one seed.

    The 20 % held out are not in it: the search never sees them.
    """
    split, _ = split_questions(settings)
    sample = subsample(split.train, settings.budget.subsample, settings.seed)
    return sample, make_folds(sample, settings.budget.folds, settings.seed)


def run_trial(settings: Settings, folder: Path) -> float:
    """Train and score every fold.

    A trial that was cut off, or paused, goes on after its last finished fold. Within a fold the pruner sees
    the NLL of plain letter probabilities; the fold's result is read off as `inference` and `adapt` say. A
    generated text gives the answer, but its NLL is that of the letter probabilities: of two trials that
    differ only in inference=letters or generate, the NLL is the same and the accuracy is not.

    Args:
        settings: The run.
        folder: The trial's output folder; gets folds.csv, oof_predictions.csv and adapter_size.json.

    Returns:
        Out-of-fold option NLL, nats, over all questions of the subsample.

    Raises:
        Pruned: The sweep has seen enough, or Paused: the trial waits.
        UserError: The data do not suffice for the folds.
    """
    sample, folds = sample_questions(settings)
    refuse_options(settings, [fold.valid for fold in folds])
    pictures = picture_codes([question.pictures_sha256 for question in sample]).tolist()
    picture = {question.id: code for question, code in zip(sample, pictures, strict=True)}
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    refuse_too_long(encoder, sample)
    files = RunFolder(folder)
    finished = files.folds()
    if finished:
        log.info("%s goes on after fold %d of %d", _name(folder), len(finished), len(folds))
    with open_tracker(settings.tracking).run(f"trial {folder.name}", "trial", folder) as tracked:
        tracked.params(settings.plain)
        tracked.tags({"vqa.trial": folder.name})
        trial = _Trial(settings, encoder, files, tracked)
        for number, fold in enumerate(folds):
            if number >= len(finished):
                finished.append(_run_fold(trial, fold, finished))
            _report_fold(settings, finished[: number + 1], len(folds))
            if progress.reports_by() == "question" and number + 1 < len(folds):
                progress.report_questions(_picture_nll(_fold_predictions(files, fold), picture))
        return _track_scores(trial, sum(result.seconds for result in finished))


@dataclass(frozen=True)
class _Trial:
    """What the folds of a trial share.

    Args:
        settings: The run.
        encoder: Makes batches, on the resident base.
        files: The trial's folder.
        tracked: The trial's run where it is tracked.
    """

    settings: Settings
    encoder: Encoder
    files: RunFolder
    tracked: Run


@dataclass(frozen=True)
class _Reports:
    """Tells the sweep and the tracking how a fold goes.

    Args:
        tracked: The trial's run where it is tracked.
        finished: The folds before this one.
        n_valid: Held-out questions of this fold.
        evaluations: Evaluations of each fold.
    """

    tracked: Run
    finished: Sequence[FoldResult]
    n_valid: int
    evaluations: int

    def note(self, at: Evaluation, mean: float) -> None:
        """Track an evaluation within the fold, and report it.

        Args:
            at: Where the fold's fit stands.
            mean: NLL of the fold's held-out questions, nats.

        Raises:
            Pruned: The sweep has seen enough, or Paused: the trial waits.
        """
        progress.report(*self.track(at, mean))

    def track(self, at: Evaluation, mean: float) -> tuple[float, int]:
        """Track an evaluation; the trial's NLL so far, nats, and the step."""
        number = len(self.finished)
        # a fold of fewer steps than evaluations has fewer of these; it ends at the same step all the same
        within = self.evaluations if at.last else at.index + 1
        step = number * self.evaluations + within
        so_far = _running_mean([*self.finished, FoldResult(number, 0, self.n_valid, mean, 0.0, 0.0)])
        rates = {"train_loss": at.train_loss, "learning_rate": at.learning_rate}
        # not "nll": a store shows a pruned trial's last value beside the scores of whole trials
        self.tracked.metrics({"nll_so_far": so_far} | rates, step)
        return so_far, step


def _report_fold(settings: Settings, finished: Sequence[FoldResult], folds: int) -> None:
    """Report the last of the finished folds once its files are written: a trial that pauses here keeps it.

    It is called again for a fold that an earlier run finished, which may have died before the report.
    """
    # the very last report would turn a fully paid trial into a pruned one
    if len(finished) < folds:
        evaluations = plan_fit(settings, finished[-1].n_train).evaluations
        progress.report(_running_mean(finished), len(finished) * evaluations)


def _run_fold(trial: _Trial, fold: Fold, finished: Sequence[FoldResult]) -> FoldResult:
    """Train and score the fold after the `finished` ones, and write it down."""
    settings, encoder, number = trial.settings, trial.encoder, len(finished)
    started = time.perf_counter()
    plan = plan_fit(settings, len(fold.train))
    reports = _Reports(trial.tracked, finished, len(fold.valid), plan.evaluations)

    def train(model: Any) -> TrainedFold:
        evaluations: list[tuple[Evaluation, float]] = []

        def evaluate(at: Evaluation) -> None:
            mean = math.nan  # the last one is scored as the run answers, outside: adapting may change weights
            if not at.last and progress.reports_by() == "part":
                size = settings.budget.eval_batch_size
                mean, _ = nll(score(encoder, fold.valid, size, f"fold {number + 1}"))
                reports.note(at, mean)
            evaluations.append((at, mean))

        cost = fit(encoder, model, fold.train, plan, evaluate)
        return TrainedFold(evaluations, cost.train_samples_per_s)

    with fold_adapter(settings, encoder.base, number, train) as (model, trained, reused):
        if reused and progress.reports_by() == "part":
            for at, mean in trained.evaluations[:-1]:
                reports.note(at, mean)
        if not trial.files.adapter_size.exists():
            size = sum(weights.numel() for weights in adapter_state(model).values())
            replace_text(trial.files.adapter_size, json.dumps({"parameters": size}) + "\n")
        predictions = answer(encoder, fold.valid, settings, source=fold.train)
        mean, _ = nll(predictions)
        reports.track(trained.evaluations[-1][0], mean)
    seconds = time.perf_counter() - started
    result = FoldResult(number, len(fold.train), len(fold.valid), mean, accuracy(predictions), seconds)
    append_predictions(trial.files.out_of_fold, predictions, number)
    write_folds(trial.files.folds_file, [*finished, result])
    _track_fold(trial, result, trained.train_samples_per_s)
    told = {"n": number + 1, "folds": settings.budget.folds, "nll": mean, "accuracy": result.accuracy}
    name = _name(trial.files.path, settings.lang)
    log.info(plain_message(settings.lang, "trial fold", trial=name, seconds=seconds, **told))
    return result


def _name(folder: Path, lang: str = "en") -> str:
    """A trial's name in the log, from its folder: trials/007, of a further training trials/007/again/001."""
    again = folder.parent.name == AGAIN
    name = folder.parent.parent.name if again else folder.name
    trial = plain_message(lang, "board trial", n=int(name) if name.isdigit() else name)
    return f"{trial}, training {int(folder.name) + 1}" if again else trial


def _track_fold(trial: _Trial, result: FoldResult, samples_per_s: float) -> None:
    """Give a finished fold a run of its own below the trial's."""
    tracker, name = open_tracker(trial.settings.tracking), trial.files.path.name
    with tracker.run(f"{name} fold {result.fold}", "fold", None, trial.tracked.run_id) as tracked:
        tracked.tags({"vqa.trial": name, "vqa.fold": result.fold})
        scores = {"nll": result.nll, "accuracy": result.accuracy, "seconds": result.seconds}
        tracked.metrics(scores | {"train_samples_per_s": samples_per_s})


def _track_scores(trial: _Trial, seconds: float) -> float:
    """Keep the trial's out-of-fold scores and files where it is tracked; returns its NLL, nats."""
    predictions = read_predictions(trial.files.out_of_fold)
    mean, standard_error = nll(predictions)
    low, high = accuracy_ci95(predictions)
    base = trial.encoder.base
    trial.tracked.metrics(
        {"nll": mean, "nll_se": standard_error, "accuracy": accuracy(predictions)}
        | base.vision.figures()
        | {"accuracy_low": low, "accuracy_high": high, "seconds": seconds}
        | {"peak_memory_gib": peak_memory_gib(base.device)}
    )
    for path in (trial.files.folds_file, trial.files.out_of_fold):
        trial.tracked.artifact(path)
    return mean


def _running_mean(results: Sequence[FoldResult]) -> float:
    """NLL over the questions scored so far: the estimate a pruner compares at the same step of each trial."""
    return float(np.average([r.nll for r in results], weights=[r.n_valid for r in results]))


def _picture_nll(predictions: Sequence[Prediction], picture: Mapping[str, int]) -> dict[int, float]:
    """Mean NLL of each picture's questions, by its number: a signed-rank test wants independent values."""
    found: dict[int, list[float]] = {}
    for name, value in per_question_nll(predictions).items():
        found.setdefault(picture[name], []).append(value)
    return {code: fmean(values) for code, values in found.items()}


def _fold_predictions(files: RunFolder, fold: Fold) -> list[Prediction]:
    ids = {question.id for question in fold.valid}
    return [p for p in read_predictions(files.out_of_fold) if p.id in ids]
