"""One trial of a sweep: short K-fold training on the study's subsample; the score is the out-of-fold NLL."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqa import progress
from vqa.answer.readout import answer
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import split_questions
from vqa.data.split import Fold, make_folds, subsample
from vqa.machine.device import peak_memory_gib
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.results.folder import FOLDS, OUT_OF_FOLD
from vqa.results.folds import FoldResult, read_folds, write_folds
from vqa.results.metrics import accuracy, accuracy_interval, nll, per_question_nll
from vqa.results.predictions import Prediction, append_predictions, read_predictions
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Run
from vqa.train.fit import Moment, fit
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

    A trial that was cut off goes on after its last finished fold. Within a fold the pruner sees the letters'
    NLL; the fold's result is read off as `inference` and `adapt` say. A text read-out takes its answers from
    the text, its NLL from the letter probabilities beside it: NLL does not tell it from inference=letters.

    Args:
        settings: The run.
        folder: The trial's output folder; gets folds.csv and oof_predictions.csv.

    Returns:
        Out-of-fold 4-way NLL, nats, over all questions of the subsample.

    Raises:
        Pruned: The sweep has seen enough.
        UserError: The data do not suffice for the folds.
    """
    sample, folds = sample_questions(settings)
    index = {question.id: i for i, question in enumerate(sample)}
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    finished = read_folds(folder / FOLDS)
    if finished:
        log.info("continuing after fold %d of %d", len(finished), len(folds))
    with open_tracker(settings.tracking).run(f"trial {folder.name}", "trial", folder) as run:
        run.params(settings.plain)
        run.tags({"vqa.trial": folder.name})
        for number, fold in enumerate(folds):
            if number >= len(finished):
                finished.append(_run_fold(settings, encoder, folder, fold, finished, run))
            if progress.reports_by() == "question" and number + 1 < len(folds):
                done = _fold_predictions(folder, fold)
                progress.report_questions({index[id]: value for id, value in per_question_nll(done).items()})
        predictions = read_predictions(folder / OUT_OF_FOLD)
        mean, standard_error = nll(predictions)
        low, high = accuracy_interval(sum(p.answer == p.gold for p in predictions), len(predictions))
        scores = {"nll": mean, "nll_se": standard_error, "accuracy": accuracy(predictions)}
        memory = peak_memory_gib(encoder.base.device)
        seconds = sum(result.seconds for result in finished)
        run.metrics(
            scores
            | encoder.base.vision.figures()
            | {"accuracy_low": low, "accuracy_high": high, "seconds": seconds, "peak_memory_gib": memory}
        )
        run.artifact(folder / FOLDS)
        run.artifact(folder / OUT_OF_FOLD)
    return mean


def _run_fold(
    settings: Settings, encoder: Encoder, folder: Path, fold: Fold, finished: Sequence[FoldResult], run: Run
) -> FoldResult:
    number = len(finished)
    started = time.perf_counter()
    plan = plan_fit(settings, len(fold.train))
    last_fold = number + 1 == settings.budget.folds
    size = settings.budget.eval_batch_size

    def note(moment: Moment, mean: float) -> None:
        step = number * plan.evaluations + moment.index + 1
        so_far = _running_mean([*finished, FoldResult(number, 0, len(fold.valid), mean, 0.0, 0.0)])
        run.metrics(
            {"nll": so_far, "train_loss": moment.train_loss, "learning_rate": moment.learning_rate}, step
        )
        # the very last report would turn a fully paid trial into a pruned one
        if not (last_fold and moment.last):
            progress.report(so_far, step)

    def train(model: Any) -> TrainedFold:
        moments: list[tuple[Moment, float]] = []

        def evaluate(moment: Moment) -> None:
            mean = math.nan  # the last one is scored as the run answers, outside: adapting may change weights
            if not moment.last and progress.reports_by() == "part":
                mean, _ = nll(score(encoder, fold.valid, size, f"fold {number + 1}"))
                note(moment, mean)
            moments.append((moment, mean))

        record = fit(encoder, model, fold.train, plan, evaluate)
        return TrainedFold(moments, record.train_samples_per_s)

    with fold_adapter(settings, encoder.base, number, train) as (model, trained, found):
        if found and progress.reports_by() == "part":
            for moment, mean in trained.moments[:-1]:
                note(moment, mean)
        predictions = answer(encoder, model, fold.valid, settings, source=fold.train)
        mean, _ = nll(predictions)
        note(trained.moments[-1][0], mean)
    seconds = time.perf_counter() - started
    result = FoldResult(number, len(fold.train), len(fold.valid), mean, accuracy(predictions), seconds)
    append_predictions(folder / OUT_OF_FOLD, predictions, number)
    write_folds(folder / FOLDS, [*finished, result])
    with open_tracker(settings.tracking).run(
        f"{folder.name} fold {number}", "fold", None, run.run_id
    ) as fold_run:
        fold_run.tags({"vqa.trial": folder.name, "vqa.fold": number})
        rate = {"train_samples_per_s": trained.train_samples_per_s}
        fold_run.metrics({"nll": mean, "accuracy": result.accuracy, "seconds": seconds} | rate)
    log.info("fold %d: NLL %.4f, accuracy %.3f, %.1f s", number, mean, result.accuracy, seconds)
    return result


def _running_mean(results: Sequence[FoldResult]) -> float:
    """NLL over the questions scored so far: the estimate a pruner compares at the same step of each trial."""
    return float(np.average([r.nll for r in results], weights=[r.n_valid for r in results]))


def _fold_predictions(folder: Path, fold: Fold) -> list[Prediction]:
    ids = {question.id for question in fold.valid}
    return [p for p in read_predictions(folder / OUT_OF_FOLD) if p.id in ids]
