"""`stage=report`, and the end of every final run: the page and the adapter's card."""

from pathlib import Path

from rich.console import Console

from vqa.config.messages import message
from vqa.config.settings import Settings
from vqa.report.model_card import write_hand_over
from vqa.report.report import write_report
from vqa.results.folder import RunFolder, StudyFolder
from vqa.tracking.mlflow_runs import open_tracker


def run_report(settings: Settings, folder: Path) -> None:
    """Rebuild the page of the study's final run, or of the run whose folder is given as hydra.run.dir.

    Args:
        settings: The run; `study` names the study.
        folder: The run's folder; where no complete run lies there, the study's final run is taken.

    Raises:
        UserError: There is nothing to report, or a file of the run cannot be read.
    """
    own = RunFolder(folder)
    show_report(settings, own if own.complete else StudyFolder.of(settings).final)


def show_report(settings: Settings, run: RunFolder) -> None:
    """Write a run's page and its adapter's card, keep copies where the run is tracked, and name the page.

    Raises:
        UserError: There is nothing to report, or a file of the run cannot be read.
    """
    whole = run.complete and run.adapter.is_dir()  # it may have been moved: it is large
    card = write_hand_over(run.path) if whole else None
    page = write_report(run.path, settings.lang)
    if run.tracking_id_file.exists():
        with open_tracker(settings.tracking).run("final", "final", run.path) as tracked:
            tracked.artifact(page)
            if card:
                tracked.artifact(card, run.adapter.name)
    Console(soft_wrap=True).print(message(settings.lang, "look", path=page))
