"""`stage=status`: where a study stands."""

from pathlib import Path

from vqa.config.settings import Settings
from vqa.results.folder import StudyFolder
from vqa.sweep.board import show_status


def run_status(settings: Settings, folder: Path) -> None:
    """Print the study's ranking and workers; touches nothing.

    Args:
        settings: The run; `study` names the study.
        folder: Not used: the study's folder is looked at.
    """
    show_status(StudyFolder.of(settings).path, lang=settings.lang)
