"""`report.html`: a study or final run on one page, for people. Drawn from the files of the run alone.

Its charts are the pictures that MLflow gets, drawn for the page, each with its text.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa.config.library import build
from vqa.config.settings import Data
from vqa.config.words import command_line, quoted
from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.machine.safe_text import mask_secrets
from vqa.question import Guessing, Question
from vqa.report import facts, plots, study_plots
from vqa.report.page import gallery, inline_svg, render
from vqa.report.verdict import verdict
from vqa.results.calibration import UNCHANGED, tempered
from vqa.results.folder import RunFolder, StudyFolder, read_yaml
from vqa.results.metrics import accuracy, guessing_of
from vqa.results.predictions import Prediction, read_predictions
from vqa.results.trials import NOT_SEARCHED, TrialRow, best_trial, complete_trials, varied_parameters


def write_report(run: Path, language: str) -> Path:
    """Write the report of a final run, with the study around it; a sweep without one is a report too.

    Args:
        run: The final run's folder. Where the folder above is a study's, the page is written there and
            tells of the whole study; else beside the run's own files.
        language: "en" or "ko": what the page opens in; it can switch.

    Returns:
        The page.

    Raises:
        UserError: There is nothing to report, or a file of the run cannot be read.
    """
    folder = RunFolder(run)
    study, has_study = folder.study, folder.study.leaderboard.exists()
    if not has_study and not folder.metrics_file.exists():
        raise UserError(
            f"nothing to report: neither {study.leaderboard} nor {folder.metrics_file} is there; "
            "run stage=final or a sweep first, or name another study (study=...)"
        )
    trials = study.trials()
    answers = _answers(folder, trials)
    page = render(
        "report.html",
        language=language,
        title=study.path.name if folder.report == study.report else run.name,
        verdict=verdict(folder.metrics(), trials, _following(folder), study.ranges(), answers["chance"]),
        command=folder.command() if not has_study else _study_command(study),
        final_command=folder.command(),
        **_search(study, trials),
        **answers,
    )
    replace_text(folder.report, page)
    return folder.report


def _following(folder: RunFolder) -> str:
    """What the user does next: hand the submission in, or make the final run."""
    if folder.submission.exists():
        return folder.handed_in.name
    if folder.complete:
        return ""
    if not folder.study.leaderboard.exists():
        return folder.command()
    return _study_command(folder.study).replace(
        " hydra.sweeper.final=false", ""
    )  # else it would stop here again


def _search(study: StudyFolder, trials: Sequence[TrialRow]) -> dict[str, Any]:
    """What the page says of the search; empty values where there was none."""
    names, ranking = facts.leaderboard(study)
    runs = facts.long_runs(study, trials)
    return {
        "names": names,
        "cost_names": [study_plots.cost_label(column) for column in (trials[0].costs if trials else ())],
        "ranking": ranking,
        "best": _best(trials),
        "doubts": facts.doubts(study.ranking()),
        "trial_seconds": sum(float(row["seconds"] or 0) for row in ranking),
        "agreement": facts.fold_agreement(study, trials),
        "runs": runs,
        "run_tau": facts.rank_correlation(runs),
    }


def _answers(folder: RunFolder, trials: Sequence[TrialRow]) -> dict[str, Any]:
    """What the page says of the run and its answers; of the best trial's where there was no final run."""
    source, best = folder, _best(trials)
    if not folder.metrics_file.exists() and best is not None:
        source = folder.study.trial(best.number)
    parts, config = _predictions(source), source.config()
    questions, trouble = _questions(config)
    labelled = next((rows for name, rows in parts.items() if name != "test"), [])
    texts = {id: question for part in ("train", "test") for id, question in questions.get(part, {}).items()}
    metrics, manifest = folder.metrics(), folder.manifest()
    kept = folder.base_valid_predictions
    base = read_predictions(kept) if kept.exists() else []
    by_guessing = guessing_of(labelled) if labelled else None
    return {
        "config": config,
        "metrics": metrics,
        "manifest": manifest,
        "manifest_text": json.dumps(manifest, indent=2, ensure_ascii=False),
        "chance": by_guessing.accuracy if by_guessing else math.nan,
        "charts": study_charts(trials, facts.study_guessing(folder.study))
        | run_charts(metrics.get("epochs", []), labelled),
        "confusion": facts.confusion_table(labelled) if labelled else None,
        "kinds": facts.by_kind(labelled),
        "sizes": facts.by_size(labelled, texts),
        "n_labelled": len(labelled),
        "out_of_fold": "oof" in parts,
        # a trial has no temperature: its own probabilities are shown
        "gallery": gallery(
            {part: tempered(rows, metrics.get("temperature", UNCHANGED)) for part, rows in parts.items()},
            _by_part(parts, questions),
            base,
        ),
        "trouble": trouble,
    }


def _best(trials: Sequence[TrialRow]) -> TrialRow | None:
    complete = complete_trials(trials)
    return best_trial(complete) if complete else None


def _predictions(folder: RunFolder) -> dict[str, list[Prediction]]:
    files = {"valid": folder.valid_predictions, "oof": folder.out_of_fold, "test": folder.test_predictions}
    return {part: read_predictions(file) for part, file in files.items() if file.exists()}


def _questions(config: Mapping[str, Any]) -> tuple[dict[str, dict[str, Question]], str]:
    """The questions the run was about, by part and id; and why there are none, where there are none."""
    if not config.get("data"):
        return {}, "no configuration is stored beside the results"
    try:
        source: Data = build("data", config["data"])
        read = {"train": source.train(), "test": source.test() or []}
    except UserError as error:
        return {}, str(error).splitlines()[0]
    return {part: {question.id: question for question in rows} for part, rows in read.items()}, ""


def _by_part(
    parts: Mapping[str, Sequence[Prediction]], questions: Mapping[str, Mapping[str, Question]]
) -> dict[str, Mapping[str, Question]]:
    return {part: questions.get("test" if part == "test" else "train", {}) for part in parts}


def _study_command(study: StudyFolder) -> str:
    """The sweep's own command as it was given; of a study without its record, what the trials were given."""
    from omegaconf import OmegaConf

    if study.multirun.exists():
        # unresolved, as typed: ${oc.env:HF_TOKEN} must not become the token
        given: Any = OmegaConf.to_container(OmegaConf.select(read_yaml(study.multirun), "hydra.overrides"))
        return command_line(["-m", *map(str, mask_secrets([*given["task"], *given["hydra"]]))])
    terms = OmegaConf.to_container(read_yaml(study.terms)) if study.terms.exists() else {}
    fixed = terms.get("fixed", []) if isinstance(terms, dict) else []
    return command_line(["-m", *map(str, fixed), f"study={quoted(study.path.name)}"])


@dataclass(frozen=True)
class Chart:
    """One chart on the page.

    Args:
        svg: The `svg` element.
        text: What the chart shows, in words, (English, Korean): its text alternative.
    """

    svg: str
    text: tuple[str, str]


def study_charts(trials: Sequence[TrialRow], by_guessing: Guessing | None = None) -> dict[str, Chart]:
    """Search history, importance, parallel coordinates, learning rate by rank: those there are data for."""
    complete = complete_trials(trials)
    if not complete:
        return {}
    best = best_trial(complete)
    searched = {name: value for name, value in best.parameters.items() if value != NOT_SEARCHED}
    values = ", ".join(f"{name} = {_short(value)}" for name, value in searched.items())
    names = ", ".join(varied_parameters(trials))
    pruned = sum(trial.state == "PRUNED" for trial in trials)
    paused = sum(trial.state == "PAUSED" for trial in trials)
    waiting = (f", {paused} paused", f", 일시 중지 {paused}회") if paused else ("", "")
    texts = {
        "optimisation_history": (
            f"NLL of each of {len(trials)} trials in the order tried: {len(complete)} complete, "
            f"{pruned} pruned{waiting[0]}. The lowest is {best.nll:.3f}, of trial {best.number}.",
            f"시도 {len(trials)}회의 NLL을 순서대로: 완료 {len(complete)}회, 조기 중단 {pruned}회{waiting[1]}"
            f". 가장 낮은 값은 시도 {best.number}의 {best.nll:.3f}.",
        ),
        "parallel_coordinates": (
            f"One line per complete trial through {names} to its NLL. The best goes through {values}.",
            f"완료된 시도마다 {names}을(를) 지나 NLL까지 이은 선. 최고 시도의 값: {values}.",
        ),
        "parameter_importance": (
            f"How much of the NLL's variation each of {names} explains.",
            f"{names} 각각이 NLL 변동을 설명하는 비율.",
        ),
        "learning_rate_by_rank": (
            f"Trials by learning rate and rank, coloured by NLL; the best is at {values}.",
            f"학습률과 랭크에 따른 시도, 색은 NLL. 최고: {values}.",
        ),
    }
    for column in best.costs:
        english, in_korean = study_plots.cost_label(column)
        front = sorted((t for t in complete if t.front), key=lambda trial: trial.costs[column])
        points = ", ".join(f"{t.number} ({t.costs[column]:.4g}, {t.nll:.3f})" for t in front)
        texts[f"front_{column}"] = (
            f"NLL against {english} of each complete trial. On the Pareto front, by {english}: {points}.",
            f"완료된 시도의 {in_korean}와(과) NLL. 파레토 프런트: {points}.",
        )
    with tempfile.TemporaryDirectory() as folder, plots.drawn_for_page() as korean:
        paths = study_plots.study_plots(trials, Path(folder), by_guessing)
        return {path.stem: Chart(inline_svg(path, korean), texts[path.stem]) for path in paths}


def run_charts(history: Sequence[Mapping[str, Any]], labelled: Sequence[Prediction]) -> dict[str, Chart]:
    """Learning curve and reliability of a run: those there are data for."""
    charts = {}
    by_guessing = guessing_of(labelled) if labelled else None
    if history:
        best = min(history, key=lambda row: row["nll"])
        charts["learning_curve"] = _chart(
            "learning_curve",
            lambda path: plots.learning_curve(history, path, by_guessing),
            f"Held-out NLL after each of {len(history)} evaluations; the best, {best['nll']:.3f}, at step "
            f"{best['step']}, with accuracy {best['accuracy']:.1%}.",
            f"평가 {len(history)}회의 검증 NLL. 최고는 단계 {best['step']}의 {best['nll']:.3f}, "
            f"정확도 {best['accuracy']:.1%}.",
        )
    if labelled:
        sure = sum(max(p.p) for p in labelled) / len(labelled)
        right = accuracy(labelled)
        charts["reliability"] = _chart(
            "reliability",
            lambda path: plots.reliability(labelled, path),
            f"Accuracy against confidence in ten bins. Mean confidence {sure:.1%}, accuracy {right:.1%}.",
            f"확신도 열 구간의 정확도. 평균 확신도 {sure:.1%}, 정확도 {right:.1%}.",
        )
    return charts


def _chart(name: str, draw: Callable[[Path], object], english: str, in_korean: str) -> Chart:
    with tempfile.TemporaryDirectory() as folder, plots.drawn_for_page() as korean:
        path = Path(folder) / f"{name}.svg"
        draw(path)
        return Chart(inline_svg(path, korean), (english, in_korean))


def _short(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value
