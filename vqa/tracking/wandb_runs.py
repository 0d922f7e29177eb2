"""Records of runs in Weights & Biases: a project a study, a run a trial, folds and members within their run.

W&B sends in the background, so no training waits for it. Offline it writes to this disk, and `wandb sync`
sends later. It is told nothing of the machine, the command line and the code, which may hold secrets.
"""

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.machine.safe_text import mask_secrets, shown
from vqa.results.folder import flatten
from vqa.tracking.record import Run, Tracker

REMEMBERED = ".wandb_run_id"  # in a run's folder
PARTS = ("fold", "member")  # kinds of runs that are kept within the run above them
_open_runs: dict[str, Any] = {}  # of this process, by id


class WandbRun(Run):
    """One W&B run, or a part of one; see `Run`.

    Args:
        run: W&B's own run.
        prefix: Of the names of numbers, labels and files: "" or that of a part, such as "fold 1/".
    """

    def __init__(self, run: Any, prefix: str = "") -> None:
        self._run = run
        self._prefix = prefix
        self._stepped: set[str] = set()
        self.run_id: str | None = str(run.id)

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings under their config paths."""
        self._run.config.update(flatten(mask_secrets(values)), allow_val_change=True)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers; those with a step are drawn over it."""
        named = {f"{self._prefix}{name}": float(value) for name, value in values.items()}
        if step is not None:
            axis = f"{self._prefix}step"
            for name in named.keys() - self._stepped:
                self._run.define_metric(name, step_metric=axis)
            self._stepped |= named.keys()
            named[axis] = float(step)
        self._run.log(named)

    def tags(self, values: Mapping[str, object]) -> None:
        """Record labels in the run's summary, secrets masked."""
        self._run.summary.update(
            {f"{self._prefix}{name}": str(mask_secrets(str(v), name)) for name, v in values.items()}
        )

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of a folder, as an artifact of the run."""
        import wandb

        words = f"{self.run_id} {self._prefix}{folder} {path.name}"
        kept = wandb.Artifact(re.sub(r"[^\w.-]+", "-", words, flags=re.ASCII)[:120], type="vqa")
        if path.is_dir():
            kept.add_dir(str(path), name=path.name)
        else:
            kept.add_file(str(path), name="/".join(filter(None, (folder, path.name))))
        self._run.log_artifact(kept)

    def end(self, state: str) -> None:
        """End the run with its state; a part only says it."""
        self.tags({"state": state})
        if not self._prefix:
            _open_runs.pop(str(self.run_id), None)
            self._run.finish(exit_code=1 if state in ("KILLED", "FAILED") else 0)


class WandbTracker(Tracker):
    """Records in one W&B project.

    Args:
        uri: Folder in which W&B makes its folder `wandb`.
        experiment: Name of the project.
        mode: "online", or "offline": nothing is sent.
        parent_run_id: The study's run; its trials and the final run share it as their group.
    """

    def __init__(
        self, uri: str, experiment: str, mode: Literal["online", "offline"], parent_run_id: str | None = None
    ) -> None:
        self._uri = uri
        self._experiment = experiment
        self._mode = mode
        self._parent_run_id = parent_run_id

    def prepare(self) -> None:
        """Import W&B, and look whether it has a key where it needs one.

        Raises:
            UserError: W&B is not installed, or nobody is logged in.
        """
        wandb = _wandb()
        if self._mode == "online":
            try:
                wandb.login(verify=False, prompt=False)
            except wandb.errors.Error as error:
                raise _refusal(error) from error

    def run(
        self, name: str, kind: str, folder: Path | None = None, parent_run_id: str | None = None
    ) -> WandbRun:
        wandb = _wandb()
        if kind in PARTS and parent_run_id in _open_runs:
            return WandbRun(_open_runs[parent_run_id], " ".join(name.split()[-2:]) + "/")
        run_id = _remembered(folder)
        if run_id in _open_runs:
            return WandbRun(_open_runs[run_id])
        private = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True
        )
        try:
            run = wandb.init(
                project=self._experiment,
                name=name,
                id=run_id,
                resume="allow",
                group=parent_run_id or self._parent_run_id or run_id,
                job_type=kind,
                dir=self._uri,
                mode=self._mode,
                settings=private,
                reinit="create_new",
            )
        except wandb.errors.Error as error:
            raise _refusal(error) from error
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / REMEMBERED, f"{run_id}\n")
        _open_runs[run_id] = run
        return WandbRun(run)


def _refusal(error: Exception) -> UserError:
    return UserError(
        f"tracking=wandb: {shown(str(error)).rstrip('.')}. Run `wandb login`, or keep the runs on this disk "
        "with tracking.mode=offline"
    )


def _remembered(folder: Path | None) -> str:
    """The id of the run that `folder` remembers, or a new one."""
    file = folder / REMEMBERED if folder else None
    known = file.read_text(encoding="utf-8").strip() if file and file.exists() else ""
    return known or uuid.uuid4().hex[:12]


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"tracking=wandb needs W&B ({error}): pip install 'vqa[wandb]'") from error
    if not hasattr(wandb, "init"):  # the folder wandb/ of earlier runs, which Python takes for a package
        raise UserError("tracking=wandb needs W&B: pip install 'vqa[wandb]'")
    return wandb
