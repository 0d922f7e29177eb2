"""An adapter at work: answer unlabelled questions, or measure base and adapter on labelled ones."""

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vqa.answer.members import answer_with_members, base_temperature, loaded_members, stored_temperature
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.contest_csv import as_sample
from vqa.data.source import data_sha256, source_questions, test_questions
from vqa.errors import UserError
from vqa.machine.device import peak_memory_gib
from vqa.model.base import load_base
from vqa.model.context import refuse_options, refuse_too_long
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.results.adapter_record import weights_sha256
from vqa.results.calibration import calibrated_scores, tempered
from vqa.results.folder import RunFolder, adapter_folder
from vqa.results.metrics import collapse_alarm, no_answer_rate, summary
from vqa.results.predictions import Prediction
from vqa.results.work import Provenance, Results, finish_run
from vqa.stages.final import compare_with_base
from vqa.terminal import TOLD_AGAIN
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Run

log = logging.getLogger(__name__)
TRACKED = ("accuracy", "nll", "ece", "temperature", "base_accuracy", "base_nll")


def run_predict(settings: Settings, folder: Path) -> dict[str, Any]:
    """Answer the test questions with a trained adapter.

    Args:
        settings: The run.
        folder: Gets test_predictions.csv, submission.csv, metrics.json and, last, manifest.json.

    Returns:
        What stands in metrics.json.

    Raises:
        UserError: There are no test questions, or no adapter.
    """
    return _run(settings, folder, with_base=False)


def run_evaluate(settings: Settings, folder: Path) -> dict[str, Any]:
    """Score labelled test questions with the base model and with the adapter.

    Args:
        settings: The run.
        folder: Gets test_predictions.csv, base_predictions.csv, metrics.json and, last, manifest.json.

    Returns:
        What stands in metrics.json: accuracy and NLL of both, with intervals, and the p value.

    Raises:
        UserError: There are no test questions, no labels, or no adapter.
    """
    return _run(settings, folder, with_base=True)


def _run(settings: Settings, folder: Path, with_base: bool) -> dict[str, Any]:
    started = time.time()
    questions = _questions(settings, labelled=with_base)
    refuse_options(settings, [questions])
    source = source_questions(settings)
    adapter = adapter_folder(settings)
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    refuse_too_long(encoder, questions)
    with open_tracker(settings.tracking).run(settings.stage, settings.stage, folder) as tracked:
        tracked.params(settings.plain)
        with loaded_members(encoder.base, adapter) as members:
            begun = time.perf_counter()
            facts: dict[str, Any] = {}
            predictions = answer_with_members(encoder, members, questions, settings, facts, source)
            seconds = time.perf_counter() - begun
        base: list[Prediction] = []
        if with_base:
            base = score(encoder, questions, settings.budget.eval_batch_size, "base model")
        metrics = _metrics(predictions, base) | _calibrated(settings, adapter, predictions, base) | facts
        metrics |= {
            "rows_per_s": len(questions) / seconds,
            "peak_memory_gib": peak_memory_gib(encoder.base.device),
        }
        run = RunFolder(folder)
        files = {run.test_predictions: predictions} | ({run.base_predictions: base} if with_base else {})
        submitted = None if with_base else [q.id for q in questions]
        sample = as_sample(settings.data, questions, [p.answer for p in predictions])
        extra = {"adapter": str(adapter), "mlflow_run_id": tracked.run_id}
        extra |= {"adapter_sha256": weights_sha256(adapter), "family": encoder.base.family.types[0]}
        digest = data_sha256(questions)
        provenance = Provenance(settings.plain, settings.seed, started, digest, extra=extra)
        results = Results(metrics, files, submitted, sample)
        finish_run(run, results, provenance, partial(_track, tracked, run, metrics))
    return metrics


def _track(tracked: Run, run: RunFolder, metrics: Mapping[str, Any]) -> None:
    tracked.metrics({name: metrics[name] for name in TRACKED if name in metrics})
    for path in run.results():
        tracked.artifact(path)


def _questions(settings: Settings, labelled: bool) -> list[Question]:
    questions = test_questions(settings)
    if not questions:
        raise UserError(
            f"stage={settings.stage} needs questions: give data=csv data.test_csv=FILE data.image_root=FOLDER"
        )
    if labelled and (missing := sum(q.answer is None for q in questions)):
        raise UserError(
            f"stage=evaluate needs labels, but {missing} of {len(questions)} questions have none; "
            "give a labelled file as data.test_csv, or use stage=predict"
        )
    return questions


def _calibrated(
    settings: Settings, adapter: Path, predictions: list[Prediction], base: list[Prediction]
) -> dict[str, Any]:
    """The temperature that was fitted when the adapter was trained, and what it makes of these rows."""
    temperature = stored_temperature(adapter, settings)
    found: dict[str, Any] = {"temperature": temperature}
    if base:
        of_base = base_temperature(adapter)
        found["calibrated"] = calibrated_scores(tempered(predictions, temperature), temperature)
        found["base_calibrated"] = calibrated_scores(tempered(base, of_base), of_base)
    return found


def _metrics(predictions: list[Prediction], base: list[Prediction]) -> dict[str, Any]:
    alarm = collapse_alarm(predictions)
    if alarm:
        log.warning(alarm, extra={TOLD_AGAIN: True})
    metrics: dict[str, Any] = {"n": len(predictions), "alarms": [alarm] if alarm else []}
    metrics["no_answer_rate"] = no_answer_rate(predictions)
    if base:
        metrics |= summary(predictions) | compare_with_base(base, predictions)
    return metrics
