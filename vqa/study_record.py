"""What the run record of a whole study holds: its tables, its pictures and its best scores."""

import tempfile
from pathlib import Path

from vqa.record import Run
from vqa.study_plots import study_plots
from vqa.trial_rows import read_trials, study_scores

STUDY_FILES = ("study.yaml", "split.csv", "leaderboard.csv", "best.yaml", "final/metrics.json")


def record_study(run: Run, study_folder: Path) -> None:
    """Copy what a study has so far to its run; pictures are drawn elsewhere, the folder stays as it is.

    Args:
        run: The study's run.
        study_folder: The study's folder; files it lacks are left out.

    Raises:
        UserError: the leaderboard cannot be read.
    """
    for name in STUDY_FILES:
        if (study_folder / name).exists():
            run.artifact(study_folder / name)
    if not (study_folder / "leaderboard.csv").exists():
        return
    trials = read_trials(study_folder / "leaderboard.csv")
    run.metrics(study_scores(trials))
    with tempfile.TemporaryDirectory() as drawn:
        for picture in study_plots(trials, Path(drawn)):
            run.artifact(picture, "plots")
