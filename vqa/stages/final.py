"""The final run: train on the 80 %, keep the best epoch, answer the test questions, write submission.csv.

With `final.members` it trains several adapters, one after the other on the resident base, and averages their
answers. Each of them is a run of its own in `members/<number>`, so that a killed run goes on with the one it
was at.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vqa.answer.members import read_out, refuse_texts
from vqa.answer.readout import answer
from vqa.answer.score import score
from vqa.answer.weighing import Answers, average, compared_with_one, disagreement
from vqa.config.messages import plain_message
from vqa.config.settings import Settings
from vqa.data.contest_csv import as_sample
from vqa.data.source import split_questions, test_questions
from vqa.data.split import Split, make_folds, subsample, write_split
from vqa.errors import UserError
from vqa.machine import processes
from vqa.machine.device import peak_memory_gib
from vqa.model.adapter import adapter_state, attached, restore, save_adapter
from vqa.model.base import Base, load_base
from vqa.model.context import refuse_options, refuse_too_long
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.report import plots
from vqa.results.adapter_record import write_record
from vqa.results.calibration import (
    calibrated_scores,
    chosen_temperature,
    held_out_calibrated,
    tempered,
    write_calibration,
)
from vqa.results.folder import RunFolder, member_folder
from vqa.results.metrics import (
    collapse_alarm,
    guessing_of,
    letter_shares,
    mcnemar_p_value,
    per_question_nll,
    summary,
)
from vqa.results.predictions import Prediction, read_predictions
from vqa.results.uncertainty import picture_codes, swapped_halves
from vqa.results.work import Provenance, Results, finish_run
from vqa.terminal import TOLD_AGAIN
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Run
from vqa.train.checkpoint import Checkpoints
from vqa.train.fit import Evaluation, fit
from vqa.train.plan import Plan, plan_fit

log = logging.getLogger(__name__)
CURVES = ("train_loss", "learning_rate", "nll", "accuracy")
TRACKED = (
    *("nll", "nll_se", "accuracy", "ece", "temperature", "base_nll", "base_accuracy"),
    *("train_samples_per_s", "peak_memory_gib"),
)
OF_A_MEMBER = ("train_seed", "n_train", "accuracy", "nll", "ece", "best_epoch", "seconds")


@dataclass(frozen=True)
class _Job:
    """What the run trains on and answers.

    Args:
        split: All labelled questions: those to train on, and those held out.
        data_sha256: Their digest.
        train: The part of them that is trained on, see `budget.subsample`.
        test: The test questions; [] where there are none.
        plan: How long, how fast, in which order.
    """

    split: Split
    data_sha256: str
    train: Sequence[Question]
    test: Sequence[Question]
    plan: Plan


@dataclass(frozen=True)
class _Place:
    """Where an adapter's training leaves its files, its weights and its curves."""

    run: RunFolder
    adapter: Path
    tracked: Run


@dataclass(frozen=True)
class _Trained:
    """How the training went: questions per second, and one row per evaluation.

    `unpicked` holds the held-out scores of the best epoch, chosen on one half and scored on the other.
    """

    samples_per_s: float
    history: list[dict[str, float]]
    unpicked: dict[str, float]


@dataclass(frozen=True)
class _Answers:
    """The held-out questions before and after the training, and the test questions.

    Args:
        base: The base model's predictions of the held-out questions.
        valid: The adapter's predictions of the same rows.
        valid_facts: What reasoning or adaptation cost and gained on them.
        test: The adapter's predictions of the test questions.
        test_facts: As `valid_facts`, of the test questions.
    """

    base: Sequence[Prediction]
    valid: Sequence[Prediction]
    valid_facts: dict[str, Any]
    test: Sequence[Prediction]
    test_facts: dict[str, Any]


def run_final(settings: Settings, folder: Path) -> dict[str, Any]:
    """Train, choose the best epoch on the held-out part, predict; resumes from its last checkpoint.

    Of several members, a finished one is read from its folder.

    Of several processes (`vqa.machine.processes`) all train and score, and the main one writes.

    Args:
        settings: The run.
        folder: The output folder; gets the files of the contract, manifest.json last.

    Returns:
        What stands in metrics.json.

    Raises:
        UserError: The data or the model cannot be used, or the members have no folds.
    """
    started = time.time()
    refuse_settings(settings)
    run, job = RunFolder(folder), _read_job(settings)
    if processes.is_main():
        write_split(job.split, run.split_file)
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    refuse_too_long(encoder, [*job.split.train, *job.split.valid, *job.test])
    with open_tracker(settings.tracking).run("final", "final", folder) as tracked:
        tracked.params(settings.plain)
        tracked.tags({"data_sha256": job.data_sha256, "split_sha256": job.split.sha256})
        log.info(plain_message(settings.lang, "final base", n=len(job.split.valid)))
        base = score(encoder, job.split.valid, settings.budget.eval_batch_size, "base model")
        train = _train_one if settings.final.members == 1 else _train_members
        metrics, answers = train(settings, encoder, job, base, _Place(run, run.adapter, tracked))
        tracked.metrics(encoder.base.vision.figures())
        if processes.is_main():
            write_calibration(run.adapter, _calibration(settings, metrics))
            write_record(run)
            results = _results(settings, run, metrics, job, answers)
            extra = {"mlflow_run_id": tracked.run_id, "processes": processes.count()}
            extra |= {"family": encoder.base.family.types[0]}
            digests = job.data_sha256, job.split.sha256
            provenance = Provenance(settings.plain, settings.seed, started, *digests, extra)
            finish_run(run, results, provenance, partial(_show, tracked, run, metrics, answers.valid))
    return metrics


def refuse_settings(settings: Settings) -> None:
    """Refuse what several processes cannot share, and what several members cannot average.

    Raises:
        UserError: Says which key, and what to do.
    """
    if settings.loss == "full":  # a process sees its own tokens only, and the mean is over all tokens
        processes.refuse_several("loss=full")
    if settings.final.members != 1:
        refuse_texts(settings, f"final.members={settings.final.members}")
    if settings.final.members == "folds":
        _folds(settings)
    if settings.adapt.method != "none":  # every process would adapt to its own share
        processes.refuse_several(f"adapt={settings.adapt.method}")


def _read_job(settings: Settings) -> _Job:
    split, digest = split_questions(settings)
    train = subsample(split.train, settings.budget.subsample, settings.seed)
    plan = plan_fit(settings, len(train), pool=len(split.train))
    test = test_questions(settings) or []
    refuse_options(settings, [split.valid, test], train)
    return _Job(split, digest, train, test, plan)


def _train_one(
    settings: Settings, encoder: Encoder, job: _Job, base: Sequence[Prediction], place: _Place
) -> tuple[dict[str, Any], _Answers]:
    """Train one adapter and answer with it; returns the content of its metrics.json, and the answers."""
    with attached(encoder.base, settings.lora, settings.train_seed) as model:
        trained = _train(settings, encoder, model, job, place.run, place.tracked)
        if processes.is_main():
            save_adapter(model, place.adapter, encoder.base)
        answers = _answer(settings, encoder, job, base)
    return _metrics(settings, encoder.base, job, answers, trained), answers


def _train_members(
    settings: Settings, encoder: Encoder, job: _Job, base: Sequence[Prediction], place: _Place
) -> tuple[dict[str, Any], _Answers]:
    """Train the members that are not finished, each as a run of its own, and average their answers."""
    found = []
    for number, (own, part) in enumerate(_members(settings, job)):
        run = place.run.member(number)
        member = processes.agreed(partial(_finished_member, run, base))
        if member is None:
            log.info("training member %d of %s", number, settings.final.members)
            member = _train_member(own, encoder, part, base, _Place(run, place.adapter, place.tracked))
        else:
            log.info("member %d is finished", number)
        found.append(member)
    return _averaged(settings, encoder.base, job, base, found)


def _train_member(
    settings: Settings, encoder: Encoder, job: _Job, base: Sequence[Prediction], place: _Place
) -> tuple[dict[str, Any], _Answers]:
    """Train one of several; `place` has its run, and folder and record of all."""
    run, number = place.run, int(place.run.path.name)
    if processes.is_main():
        run.path.mkdir(parents=True, exist_ok=True)
    started, tracker = time.time(), open_tracker(settings.tracking)
    with tracker.run(f"member {number}", "member", run.path, place.tracked.run_id) as tracked:
        tracked.tags({"vqa.member": number})
        own = _Place(run, member_folder(place.adapter, number), tracked)
        metrics, answers = _train_one(settings, encoder, job, base, own)
        metrics |= {"train_seed": settings.train_seed, "seconds": time.time() - started}
        tracked.metrics({name: metrics[name] for name in ("nll", "accuracy", "ece", "seconds")})
        if processes.is_main():
            write_calibration(own.adapter, _calibration(settings, metrics))
            files = {run.valid_predictions: answers.valid}
            results = Results(metrics, files | ({run.test_predictions: answers.test} if job.test else {}))
            digests = job.data_sha256, job.split.sha256
            finish_run(run, results, Provenance(settings.plain, settings.seed, started, *digests))
    return metrics, answers


def _finished_member(run: RunFolder, base: Sequence[Prediction]) -> tuple[dict[str, Any], _Answers] | None:
    """What a finished member left; None where it is not finished."""
    if not run.complete:
        return None
    test = read_predictions(run.test_predictions) if run.test_predictions.exists() else []
    return run.metrics(), _Answers(base, read_predictions(run.valid_predictions), {}, test, {})


def _members(settings: Settings, job: _Job) -> list[tuple[Settings, _Job]]:
    """The settings and the work of each member.

    Raises:
        UserError: Nothing says how many folds there are.
    """
    if settings.final.members != "folds":
        seeds = [settings.train_seed + number for number in range(settings.final.members)]
        return [(own := _with_seed(settings, seed), _planned(own, job, job.train)) for seed in seeds]
    return [
        (settings, _planned(settings, job, fold.train))
        for fold in make_folds(job.train, _folds(settings), settings.seed)
    ]


def _folds(settings: Settings) -> int:
    """Of how many folds `final.members=folds` trains a member each."""
    folds = settings.budget.folds if settings.budget.folds > 1 else settings.budget.lr_tuned.folds
    if folds is None:
        raise UserError(
            "final.members=folds needs the number of folds: give budget.folds=3, or run it in a sweep's study"
        )
    return folds


def _with_seed(settings: Settings, train_seed: int) -> Settings:
    plain = settings.plain | {"train_seed": train_seed}
    return replace(settings, train_seed=train_seed, plain=plain)


def _planned(settings: Settings, job: _Job, train: Sequence[Question]) -> _Job:
    plan = plan_fit(settings, len(train), pool=len(job.split.train))
    return replace(job, train=train, plan=plan)


def _averaged(
    settings: Settings,
    base: Base,
    job: _Job,
    base_answers: Sequence[Prediction],
    found: Sequence[tuple[dict[str, Any], _Answers]],
) -> tuple[dict[str, Any], _Answers]:
    """The average of the members' answers, with the first member's scores beside it."""
    equal, first = [1] * len(found), found[0][0]
    valid = average([answers.valid for _, answers in found], equal)
    test = average([answers.test for _, answers in found], equal) if job.test else []
    answers = _Answers(base_answers, valid, {}, test, {})
    rate = sum(metrics["train_samples_per_s"] for metrics, _ in found) / len(found)
    metrics = _metrics(settings, base, job, answers, _Trained(rate, first["epochs"], {}))
    metrics |= {name: first[name] for name in ("n_train", "learning_rate")}
    metrics["note"] = "each member's best epoch was chosen on the held-out questions behind accuracy and nll"
    wanted, one = settings.inference.temperature, found[0][1]
    metrics["members"] = [{name: member[name] for name in OF_A_MEMBER} for member, _ in found]
    metrics["disagreement"] = disagreement([answers.valid for _, answers in found])
    metrics["single"] = compared_with_one(
        Answers(one.valid, held_out_calibrated(one.valid, wanted)),
        Answers(valid, held_out_calibrated(valid, wanted)),
    )
    if "test" in metrics:
        own = Answers(one.test, tempered(one.test, first["temperature"]))
        metrics["single"]["test"] = compared_with_one(
            own, Answers(test, tempered(test, metrics["temperature"]))
        )
    return metrics, answers


def _answer(settings: Settings, encoder: Encoder, job: _Job, base: Sequence[Prediction]) -> _Answers:
    valid_facts: dict[str, Any] = {}
    valid = answer(encoder, job.split.valid, settings, valid_facts, job.train)
    temperature = chosen_temperature(valid, settings.inference.temperature)
    test_facts: dict[str, Any] = {}
    test = answer(encoder, job.test, settings, test_facts, job.train, temperature) if job.test else []
    return _Answers(base, valid, valid_facts, test, test_facts)


def _metrics(
    settings: Settings, base: Base, job: _Job, answers: _Answers, trained: _Trained
) -> dict[str, Any]:
    """The content of metrics.json."""
    metrics = summary(answers.valid) | compare_with_base(answers.base, answers.valid) | answers.valid_facts
    wanted = settings.inference.temperature
    temperature = chosen_temperature(answers.valid, wanted)
    of_base = chosen_temperature(answers.base, "auto")  # a number is meant for the adapter
    metrics |= {
        "temperature": temperature,
        "calibrated": calibrated_scores(held_out_calibrated(answers.valid, wanted), temperature),
        "base_calibrated": calibrated_scores(held_out_calibrated(answers.base, "auto"), of_base),
    }
    metrics |= {
        "n_train": len(job.train),
        "learning_rate": job.plan.lr,
        "train_samples_per_s": trained.samples_per_s,
        "peak_memory_gib": peak_memory_gib(base.device),
        "epochs": trained.history,
        "best_epoch": min(trained.history, key=lambda row: row["nll"])["evaluation"],
        "note": "the best epoch was chosen on the held-out questions behind accuracy and nll; nll_unpicked "
        "and accuracy_unpicked choose it on one half of the pictures and score the other",
        **trained.unpicked,
        "alarms": alarms(answers.valid, answers.test, job.train),
    }
    metrics |= base.vision.figures()
    most = max(len(question.pictures) for question in [*job.train, *job.split.valid, *job.test])
    if most > 1:
        metrics["pictures"] = most
    if base.family.no_vllm:
        metrics["no_vllm"] = base.family.no_vllm
    if answers.test and all(p.gold for p in answers.test):
        calibrated = calibrated_scores(tempered(answers.test, temperature), temperature)
        return metrics | {"test": summary(answers.test) | {"calibrated": calibrated} | answers.test_facts}
    return metrics | {f"test_{name}": value for name, value in answers.test_facts.items()}


def _calibration(settings: Settings, metrics: dict[str, Any]) -> dict[str, Any]:
    """What is kept beside the adapter for those who answer with it later."""
    found = {
        "temperature": metrics["temperature"],
        "base_temperature": metrics["base_calibrated"]["temperature"],
        "n": metrics["n"],
        "read_out": read_out(settings),
    }
    return found | ({"members": len(metrics["members"])} if "members" in metrics else {})


def _results(
    settings: Settings, run: RunFolder, metrics: dict[str, Any], job: _Job, answers: _Answers
) -> Results:
    files = {run.valid_predictions: answers.valid, run.base_valid_predictions: answers.base}
    if not job.test:
        return Results(metrics, files)
    sample = as_sample(settings.data, job.test, [p.answer for p in answers.test])
    return Results(metrics, files | {run.test_predictions: answers.test}, [q.id for q in job.test], sample)


def compare_with_base(base: Sequence[Prediction], tuned: Sequence[Prediction]) -> dict[str, Any]:
    """The base model's scores on the same rows, and whether the difference is more than luck."""
    scores = summary(base)
    keep = ("accuracy", "accuracy_ci95", "nll", "nll_se", "ece", "accuracy_by_kind")
    return {f"base_{name}": scores[name] for name in keep} | {"p_value_vs_base": mcnemar_p_value(base, tuned)}


def alarms(valid: Sequence[Prediction], test: Sequence[Prediction], train: Sequence[Question]) -> list[str]:
    """What should be looked at before submitting; logged too."""
    shares = letter_shares([q.answer for q in train])
    found = [collapse_alarm(valid)]
    if test:
        found.append(collapse_alarm(test, shares))
    messages = [message for message in found if message]
    for message in messages:
        log.warning(message, extra={TOLD_AGAIN: True})  # the end of the run says it beside the scores
    return messages


def _train(
    settings: Settings, encoder: Encoder, model: Any, job: _Job, run: RunFolder, tracked: Run
) -> _Trained:
    """Fit, score every epoch on the held-out questions, and put the best epoch's weights back."""
    # saved with every checkpoint
    best: dict[str, Any] = {"history": [], "nll": math.inf, "adapter": {}, "scored": []}

    def evaluate(at: Evaluation) -> None:
        predictions = score(encoder, job.split.valid, settings.budget.eval_batch_size, "held-out part")
        scores = summary(predictions)
        row = {
            "evaluation": at.index + 1,
            "step": at.step,
            "train_loss": at.train_loss,
            "learning_rate": at.learning_rate,
            "nll": scores["nll"],
            "accuracy": scores["accuracy"],
        }
        best["history"].append(row)
        best["scored"].append(
            (list(per_question_nll(predictions).values()), [p.answer == p.gold for p in predictions])
        )
        tracked.metrics({name: row[name] for name in CURVES}, at.step)
        shown = {"n": row["evaluation"], "nll": row["nll"], "accuracy": row["accuracy"]}
        log.info(plain_message(settings.lang, "final evaluation", **shown))
        if row["nll"] < best["nll"]:
            best["nll"] = row["nll"]
            best["adapter"] = {
                name: tensor.detach().cpu().clone() for name, tensor in adapter_state(model).items()
            }

    checkpoints = Checkpoints(run.checkpoint, settings.budget.checkpoint_steps, best)
    cost = fit(encoder, model, job.train, job.plan, evaluate, checkpoints)
    restore(model, best["adapter"])
    return _Trained(cost.train_samples_per_s, best["history"], _unpicked(best, job.split.valid))


def _unpicked(best: dict[str, Any], valid: Sequence[Question]) -> dict[str, float]:
    """Held-out scores without an epoch chosen on them; {} where the pictures cannot be halved."""
    codes = picture_codes([question.pictures_sha256 for question in valid])
    if int(codes.max()) == 0 or not best["scored"]:
        return {}
    nll, right = (np.array(rows) for rows in zip(*best["scored"], strict=True))
    unpicked_nll, unpicked_accuracy = swapped_halves(nll, right, codes)
    return {"nll_unpicked": unpicked_nll, "accuracy_unpicked": unpicked_accuracy}


def _show(tracked: Run, run: RunFolder, metrics: dict[str, Any], valid: Sequence[Prediction]) -> None:
    """Draw the results and copy them to where the run is tracked."""
    low, high = metrics["accuracy_ci95"]
    tracked.metrics({name: metrics[name] for name in TRACKED} | {"accuracy_low": low, "accuracy_high": high})
    if "test" in metrics:
        tracked.metrics({"test_accuracy": metrics["test"]["accuracy"], "test_nll": metrics["test"]["nll"]})
    plots.confusion_matrix(valid, run.plots / "confusion_matrix.png")
    plots.reliability(valid, run.plots / "reliability.png")
    plots.learning_curve(metrics["epochs"], run.plots / "learning_curve.png", guessing_of(valid))
    for path in run.results():
        tracked.artifact(path)
