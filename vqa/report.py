"""`report.html`: a study or final run on one page, for people. Drawn from the files of the run alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqa import report_facts as facts
from vqa.errors import UserError
from vqa.gallery import gallery
from vqa.library import build
from vqa.page import render
from vqa.predictions import Prediction, read_predictions
from vqa.question import CHANCE, Question
from vqa.report_charts import run_charts, study_charts
from vqa.settings import Data
from vqa.text_file import replace_text
from vqa.trial_rows import complete_trials, read_trials

REPORT = "report.html"


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
    study = run.parent
    has_study = (study / "leaderboard.csv").exists()
    if not has_study and not (run / "metrics.json").exists():
        raise UserError(
            f"nothing to report: neither {study / 'leaderboard.csv'} nor {run / 'metrics.json'} is there; "
            "run stage=final or a sweep first, or name another study (study=...)"
        )
    trials = read_trials(study / "leaderboard.csv") if has_study else []
    best = min(complete_trials(trials), key=lambda trial: trial.nll, default=None)
    source = run
    if not (run / "metrics.json").exists() and best is not None:
        source = study / "trials" / f"{best.number:03d}"
    parts = _predictions(source)
    config = facts.stored_config(source)
    questions, trouble = _questions(config)
    labelled = next((rows for name, rows in parts.items() if name != "test"), [])
    metrics = facts.read_json(run / "metrics.json")
    manifest = facts.read_json(run / "manifest.json")
    names, ranking = facts.leaderboard(study / "leaderboard.csv") if has_study else ([], [])
    runs = facts.long_runs(study, trials)
    texts = {id: question for part in ("train", "test") for id, question in questions.get(part, {}).items()}
    page = render(
        "report.html",
        language=language,
        title=study.name if has_study or run.name == "final" else run.name,
        config=config,
        metrics=metrics,
        manifest=manifest,
        manifest_text=json.dumps(manifest, indent=2, ensure_ascii=False),
        chance=CHANCE,
        names=names,
        ranking=ranking,
        best=best,
        trial_seconds=sum(float(row["seconds"] or 0) for row in ranking),
        charts=study_charts(trials) | run_charts(metrics.get("epochs", []), labelled),
        agreement=facts.fold_agreement(study, trials),
        runs=runs,
        run_tau=facts.rank_correlation(runs),
        confusion=facts.confusion_table(labelled) if labelled else None,
        kinds=facts.by_kind(labelled),
        sizes=facts.by_size(labelled, texts),
        n_labelled=len(labelled),
        out_of_fold="oof" in parts,
        gallery=gallery(parts, _by_part(parts, questions)),
        trouble=trouble,
        command=facts.command(run) if not has_study else _study_command(study),
        final_command=facts.command(run),
    )
    path = report_path(run)
    replace_text(path, page)
    return path


def report_path(run: Path) -> Path:
    """Where the report of a final run lies: in its study's folder, or beside its own files."""
    of_study = (run.parent / "leaderboard.csv").exists() or run.name == "final"
    return (run.parent if of_study else run) / REPORT


def _predictions(folder: Path) -> dict[str, list[Prediction]]:
    files = {
        "valid": "valid_predictions.csv",
        "oof": "oof_predictions.csv",
        "test": "test_predictions.csv",
    }
    return {part: read_predictions(folder / name) for part, name in files.items() if (folder / name).exists()}


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


def _study_command(study: Path) -> str:
    """The sweep's own command: what all its trials were given, without what was searched."""
    import shlex

    from omegaconf import OmegaConf

    path = study / "study.yaml"
    fixed = OmegaConf.to_container(OmegaConf.load(path)).get("fixed", []) if path.exists() else []  # type: ignore[union-attr]
    return shlex.join(["python", "-m", "vqa.run", "-m", *map(str, fixed), f"study={study.name}"])
