"""The interface of run tracking: a run takes settings, numbers, labels and files.

`vqa.tracking.mlflow_runs`, `wandb_runs` and `tensorboard_runs` write to a store. `NullTracker` keeps nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vqa.machine.safe_text import shown
from vqa.progress import Paused, Pruned


def state_of(kind: type[BaseException] | None) -> str:
    """The state in which a run ends whose block was left with an exception of this kind, or without one."""
    if kind is None:
        return "COMPLETE"
    if issubclass(kind, Paused):
        return "PAUSED"
    if issubclass(kind, Pruned):
        return "PRUNED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit) else "FAILED"


class Run(ABC):
    """One run that is being recorded; as a context manager it ends in the state in which its block was left.

    `run_id` is None when nothing is recorded, or the store did not answer yet.
    """

    run_id: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = state_of(kind)
        if kind is not None and state == "FAILED":
            self.tags({"error": shown(f"{kind.__name__}: {error}")})
        self.end(state)

    @abstractmethod
    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names: the config path is the parameter's name."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, all at the same step."""

    @abstractmethod
    def tags(self, values: Mapping[str, object]) -> None:
        """Record labels, secrets masked; a later value replaces an earlier one."""

    @abstractmethod
    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of a folder with all it holds, under `folder` of the run's artifacts."""

    @abstractmethod
    def end(self, state: str) -> None:
        """End the run as COMPLETE, PAUSED, PRUNED, KILLED or FAILED; the first three are successes."""


class Tracker(ABC):
    """Makes runs."""

    def prepare(self) -> None:  # noqa: B027  (not every store needs it, as below)
        """Connect, and make what the store lacks; `run` does so by itself.

        Raises:
            UserError: The store cannot be used.
        """

    @abstractmethod
    def run(self, name: str, kind: str, folder: Path | None = None, parent_run_id: str | None = None) -> Run:
        """Start a run, or go on with the one that `folder` remembers, and end it with the block.

        The block's end sets the tag `state`: COMPLETE, PAUSED, PRUNED, KILLED (Ctrl-C, exit) or
        FAILED with the tag `error`. Exceptions go on to the caller.

        Args:
            name: What the list of runs shows, for instance "trial 007".
            kind: "study", "trial", "fold", "final", ...: the tag `vqa.kind`.
            folder: The run's output folder; without it the run cannot be continued.
            parent_run_id: The run above; None takes `tracking.parent_run_id`.

        Raises:
            UserError: The store cannot be read or written.
        """

    def end_cut_off(self, run: Any) -> None:  # noqa: B027
        """End what is below a study's run and was killed before it could say so."""

    def settle(self) -> None:  # noqa: B027
        """Wait, for a limited time, until the store has what was recorded so far."""


class NullRun(Run):
    """Records nothing."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Do nothing, like all of these."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def tags(self, values: Mapping[str, object]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def end(self, state: str) -> None: ...


class NullTracker(Tracker):
    """The tracker of `tracking=none`: never imports mlflow."""

    def run(
        self, name: str, kind: str, folder: Path | None = None, parent_run_id: str | None = None
    ) -> NullRun:
        return NullRun()
