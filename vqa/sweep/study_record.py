"""The run record of a whole study: opened before its trials, closed with its tables, pictures and scores."""

import tempfile
from pathlib import Path

from omegaconf import DictConfig

from vqa.config.settings import TrackingSettings
from vqa.report.facts import study_guessing
from vqa.report.study_plots import study_plots
from vqa.results.folder import StudyFolder
from vqa.results.trials import study_scores
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Run, Tracker


def record_study(run: Run, study_folder: Path) -> None:
    """Copy what a study has so far to its run; pictures are drawn elsewhere, the folder stays as it is.

    Args:
        run: The study's run.
        study_folder: The study's folder; files it lacks are left out.

    Raises:
        UserError: the leaderboard cannot be read.
    """
    study = StudyFolder(study_folder)
    for file in study.tables():
        run.artifact(file)
    if not study.leaderboard.exists():
        return
    trials = study.trials()
    run.metrics(study_scores(trials))
    if any(trial.costs for trial in trials):
        run.tags({"vqa.pareto_front": ", ".join(str(trial.number) for trial in trials if trial.front)})
    with tempfile.TemporaryDirectory() as drawn:
        for picture in study_plots(trials, Path(drawn), study_guessing(study)):
            run.artifact(picture, "plots")


def open_study(config: DictConfig, study_folder: Path) -> str | None:
    """Start the study's parent run, or go on with it; its id stays in `<study_folder>/.mlflow_run_id`.

    Args:
        config: A composed job configuration with the node `tracking`.
        study_folder: The study's folder.

    Returns:
        The run's id for `tracking.parent_run_id` of the study's jobs; None when tracking is off.

    Raises:
        UserError: the store cannot be read or written.
    """
    tracker = _study_tracker(config)
    return tracker.run(study_folder.name, "study", study_folder).__enter__().run_id if tracker else None


def close_study(config: DictConfig, study_folder: Path, state: str = "COMPLETE") -> None:
    """Keep the study's tables, plots and best scores on its parent run and end it; changes no study file.

    Args:
        config: As for `open_study`.
        study_folder: The study's folder, with `leaderboard.csv`.
        state: COMPLETE, KILLED or FAILED.

    Raises:
        UserError: the store cannot be read or written, or the leaderboard cannot be read.
    """
    tracker = _study_tracker(config)
    if tracker is None:
        return
    run = tracker.run(study_folder.name, "study", study_folder).__enter__()  # ended below, by its state
    tracker.settle()  # the pictures below are there only for as long as they are drawn
    record_study(run, study_folder)
    if state == "COMPLETE":
        tracker.end_cut_off(run)
    run.end(state)
    tracker.settle()


def _study_tracker(config: DictConfig) -> Tracker | None:
    keys = {key: config.tracking[key] for key in ("enabled", "store", "uri", "experiment", "mode")}
    settings = TrackingSettings(**keys, parent_run_id=None)
    return open_tracker(settings) if settings.enabled else None
