"""The final run: train on the 80 %, keep the best epoch, answer the test questions, write submission.csv."""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqa.answer.readout import answer
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import split_questions, test_questions
from vqa.data.split import Split, subsample, write_split
from vqa.machine import processes
from vqa.machine.device import peak_memory_gib
from vqa.machine.files import replace_text
from vqa.model.adapter import adapter_state, attached, restore, save_adapter
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.report import plots
from vqa.results.folder import CHECKPOINT, MANIFEST
from vqa.results.manifest import write_manifest
from vqa.results.metrics import collapse_alarm, letter_shares, mcnemar_p_value, summary
from vqa.results.predictions import Prediction, write_predictions, write_submission
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Run
from vqa.train.fit import Moment, fit
from vqa.train.plan import Plan, plan_fit

log = logging.getLogger(__name__)
TRACKED = ("nll", "nll_se", "accuracy", "base_nll", "base_accuracy", "train_samples_per_s", "peak_memory_gib")


def run_final(settings: Settings, folder: Path) -> dict[str, Any]:
    """Train, choose the best epoch on the held-out part, predict; resumes from its last checkpoint.

    Of several processes (`vqa.machine.processes`) all train and score, and the main one writes.

    Args:
        settings: The run.
        folder: The output folder; gets the files of the contract, manifest.json last.

    Returns:
        What stands in metrics.json.

    Raises:
        UserError: The data or the model cannot be used.
    """
    started = time.time()
    if settings.loss == "full":  # a process sees its own tokens only, and the mean is over all tokens
        processes.refuse_several("loss=full")
    if settings.adapt.method != "none":  # every process would adapt to its own share
        processes.refuse_several(f"adapt={settings.adapt.method}")
    split, data_digest = split_questions(settings)
    train = subsample(split.train, settings.budget.subsample, settings.seed)
    tests = test_questions(settings)
    if processes.is_main():
        write_split(split, folder / "split.csv")
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    plan = plan_fit(settings, len(train), pool=len(split.train))
    with open_tracker(settings.tracking).run("final", "final", folder) as run:
        run.params(settings.plain)
        run.tags({"data_sha256": data_digest, "split_sha256": split.sha256})
        log.info("scoring the base model on %d held-out questions", len(split.valid))
        base = score(encoder, split.valid, settings.budget.eval_batch_size, "base model")
        with attached(encoder.base, settings.lora, settings.seed) as model:
            rate, history = _train(settings, encoder, model, train, split, plan, folder, run)
            if processes.is_main():
                save_adapter(model, folder / "adapter", encoder.base)
            valid_facts: dict[str, Any] = {}
            tuned = answer(encoder, model, split.valid, settings, valid_facts, train)
            facts: dict[str, Any] = {}
            answers = answer(encoder, model, tests, settings, facts, train) if tests else []
        metrics = summary(tuned) | compare_with_base(base, tuned) | valid_facts
        metrics |= {
            "n_train": len(train),
            "learning_rate": plan.lr,
            "train_samples_per_s": rate,
            "peak_memory_gib": peak_memory_gib(encoder.base.device),
            "epochs": history,
            "best_epoch": min(history, key=lambda row: row["nll"])["evaluation"],
            "note": "the best epoch was chosen on the held-out questions behind accuracy and nll",
            "alarms": alarms(tuned, answers, train),
        }
        metrics |= encoder.base.vision.figures()
        if encoder.base.family.no_vllm:
            metrics["no_vllm"] = encoder.base.family.no_vllm
        run.metrics(encoder.base.vision.figures())
        if answers and all(p.gold for p in answers):
            metrics["test"] = summary(answers) | facts
        else:
            metrics |= {f"test_{name}": value for name, value in facts.items()}
        if not processes.is_main():
            return metrics
        write_results(folder, metrics, tuned, answers, tests)
        write_predictions(folder / "base_valid_predictions.csv", base)
        _record(run, folder, metrics, tuned, history)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    write_manifest(
        folder / MANIFEST,
        config=settings.plain,
        seed=settings.seed,
        data_sha256=data_digest,
        split_sha256=split.sha256,
        started=started,
        extra={"mlflow_run_id": run.run_id, "processes": processes.count()},
    )
    return metrics


def compare_with_base(base: Sequence[Prediction], tuned: Sequence[Prediction]) -> dict[str, Any]:
    """The base model's scores on the same rows, and whether the difference is more than luck."""
    scores = summary(base)
    keep = ("accuracy", "accuracy_ci95", "nll", "nll_se", "accuracy_by_kind")
    return {f"base_{name}": scores[name] for name in keep} | {"p_value_vs_base": mcnemar_p_value(base, tuned)}


def alarms(valid: Sequence[Prediction], test: Sequence[Prediction], train: Sequence[Question]) -> list[str]:
    """What should be looked at before submitting; logged too."""
    shares = letter_shares([q.answer for q in train])
    found = [collapse_alarm([p.answer for p in valid], [p.gold for p in valid])]
    if test:
        found.append(collapse_alarm([p.answer for p in test], [p.gold for p in test], shares))
    messages = [message for message in found if message]
    for message in messages:
        log.warning(message)
    return messages


def write_results(
    folder: Path,
    metrics: dict[str, Any],
    valid: Sequence[Prediction],
    test: Sequence[Prediction],
    questions: Sequence[Question] | None,
) -> None:
    """Write metrics.json, the predictions and, where there are test questions, submission.csv."""
    replace_text(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    write_predictions(folder / "valid_predictions.csv", valid)
    if questions:
        write_predictions(folder / "test_predictions.csv", test)
        write_submission(folder / "submission.csv", test, [q.id for q in questions])


def _train(
    settings: Settings,
    encoder: Encoder,
    model: Any,
    train: Sequence[Question],
    split: Split,
    plan: Plan,
    folder: Path,
    run: Run,
) -> tuple[float, list[dict[str, float]]]:
    """Fit and put the best epoch's weights back; returns samples per second and one row per evaluation."""
    best: dict[str, Any] = {"history": [], "nll": math.inf, "adapter": {}}  # saved with every checkpoint

    def evaluate(moment: Moment) -> None:
        scores = summary(score(encoder, split.valid, settings.budget.eval_batch_size, "held-out part"))
        row = {
            "evaluation": moment.index + 1,
            "step": moment.step,
            "train_loss": moment.train_loss,
            "learning_rate": moment.learning_rate,
            "nll": scores["nll"],
            "accuracy": scores["accuracy"],
        }
        best["history"].append(row)
        run.metrics(
            {name: row[name] for name in ("train_loss", "learning_rate", "nll", "accuracy")}, moment.step
        )
        log.info("evaluation %d: NLL %.4f, accuracy %.3f", row["evaluation"], row["nll"], row["accuracy"])
        if row["nll"] < best["nll"]:
            best["nll"] = row["nll"]
            best["adapter"] = {
                name: tensor.detach().cpu().clone() for name, tensor in adapter_state(model).items()
            }

    record = fit(
        encoder,
        model,
        train,
        plan,
        evaluate,
        folder / CHECKPOINT,
        settings.budget.checkpoint_steps,
        extra=best,
    )
    restore(model, best["adapter"])
    return record.train_samples_per_s, best["history"]


def _record(
    run: Run,
    folder: Path,
    metrics: dict[str, Any],
    tuned: Sequence[Prediction],
    history: list[dict[str, float]],
) -> None:
    low, high = metrics["accuracy_ci95"]
    run.metrics({name: metrics[name] for name in TRACKED} | {"accuracy_low": low, "accuracy_high": high})
    if "test" in metrics:
        run.metrics({"test_accuracy": metrics["test"]["accuracy"], "test_nll": metrics["test"]["nll"]})
    drawn = folder / "plots"
    plots.confusion_matrix(tuned, drawn / "confusion_matrix.png")
    plots.reliability(tuned, drawn / "reliability.png")
    plots.learning_curve(history, drawn / "learning_curve.png")
    for name in (
        "adapter",
        "plots",
        "metrics.json",
        "valid_predictions.csv",
        "test_predictions.csv",
        "submission.csv",
    ):
        if (folder / name).exists():
            run.artifact(folder / name)
