"""Records of runs as TensorBoard's event files in `<uri>/<experiment>/<run>`, folds and members below it.

Numbers become scalars, settings and labels become texts. Event files hold no other files: where a result lies
is kept as a text. A run that goes on adds to its folder.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqa.errors import UserError
from vqa.machine.safe_text import mask_secrets
from vqa.results.folder import flatten
from vqa.tracking.record import Run, Tracker


class TensorboardRun(Run):
    """One folder of event files; see `Run`.

    Args:
        writer: `SummaryWriter` of the folder.
        run_id: The folder, relative to that of the experiment.
    """

    def __init__(self, writer: Any, run_id: str) -> None:
        self._writer = writer
        self.run_id: str | None = run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings as one text, a line each."""
        lines = [f"    {key}: {text}" for key, text in flatten(mask_secrets(values)).items()]
        self._writer.add_text("settings", "\n".join(lines), 0)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, all at the same step."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step or 0)
        self._writer.flush()

    def tags(self, values: Mapping[str, object]) -> None:
        """Record labels as texts, secrets masked."""
        for name, value in values.items():
            self._writer.add_text(name, str(mask_secrets(str(value), name)), 0)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record where a file lies."""
        self._writer.add_text("files", f"    {path.absolute()}", int(time.time()))

    def end(self, state: str) -> None:
        """Record how the run ended, and close its files."""
        self.tags({"state": state})
        self._writer.close()


class TensorboardTracker(Tracker):
    """Records below one folder.

    Args:
        uri: The folder, as `tensorboard --logdir` takes it.
        experiment: The folder of this study in it.
        parent_run_id: The run above those that name none; without a meaning for trials, whose folders lie
            beside that of their study.
    """

    def __init__(self, uri: str, experiment: str, parent_run_id: str | None = None) -> None:
        self._folder = Path(uri).expanduser() / experiment
        self._parent_run_id = parent_run_id

    def prepare(self) -> None:
        """Import TensorBoard, and make the folder.

        Raises:
            UserError: TensorBoard is not installed, or the folder cannot be written.
        """
        _summary_writer()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"tracking.uri must be a folder that can be written, got {self._folder.parent} ({error})"
            ) from error

    def run(
        self, name: str, kind: str, folder: Path | None = None, parent_run_id: str | None = None
    ) -> TensorboardRun:
        self.prepare()
        run_id = f"{parent_run_id}/{name}" if parent_run_id else name
        run = TensorboardRun(_summary_writer()(str(self._folder / run_id)), run_id)
        run.tags({"vqa.kind": kind})
        return run


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"tracking=tensorboard needs TensorBoard ({error}): pip install 'vqa[tensorboard]'"
        ) from error
    return SummaryWriter
