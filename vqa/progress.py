"""Reports of a run while it trains: scores to the sweep's pruner, progress to a bar or the sweep's table.

Outside a sweep nobody listens, and every function here does nothing. Rules for code that reports:

- Steps count up from 1 within a trial, several to a fold: step n means that n units of the pruner's resource
  are spent. The last evaluation of the last fold is not reported: a trial that is paid for in full should end
  COMPLETE, not pruned.
- A trial that was cut off or paused runs again and may report its steps again from any point on. The sweep
  skips steps that the storage has already, and asks the pruner about the last of them before the job starts.
  Only `report_questions` must be called again for the folds that were already finished.
- Calling both `report` and `report_questions` is fine: `reports_by()` says which one the pruner reads, "part"
  the first, "question" the second.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

from vqa.terminal import LivePart, console

By = Literal["part", "question"]
ProgressSink = Callable[[str, int, int], None]
BARS_EVERY_S = 0.1


class Pruned(Exception):  # noqa: N818  (it is no error)
    """The pruner stops this trial; no error."""


class Paused(Pruned):
    """The trial waits here; the sweep may send it on later."""


class Reporter(Protocol):
    """What receives the reports of one trial; `pauses` says that a trial that should stop may go on later."""

    by: By
    pauses: bool

    def report(self, value: float, step: int) -> bool:
        """Take one intermediate score; say whether the trial should stop."""

    def report_questions(self, values: Mapping[int, float]) -> bool:
        """Take scores question by question; say whether the trial should stop."""


_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)
_progress: ContextVar[ProgressSink | None] = ContextVar("progress", default=None)


def reports_by() -> By:
    """What one step of a report is: a part of a fold, or one question (WilcoxonPruner compares those)."""
    reporter = _reporter.get()
    return "part" if reporter is None else reporter.by


def report(value: float, step: int) -> None:
    """Report the score so far of the running trial.

    Args:
        value: The objective's present estimate (mean NLL over the questions scored so far).
        step: Which report of the trial this is, from 1; a pruner's `max_resource` counts these.

    Raises:
        Pruned: The trial is hopeless, or Paused: it waits; let it pass through.
    """
    reporter = _reporter.get()
    if reporter is not None and reporter.report(value, step):
        if reporter.pauses:
            raise Paused(f"paused at step {step} with {value:.4f}")
        raise Pruned(f"pruned at step {step} with {value:.4f}")


def report_questions(values: Mapping[int, float]) -> None:
    """Report scores of single questions, for pruners that pair them with the best trial's.

    Args:
        values: NLL by the index of a question, or of a picture (the mean of its questions) where several
            questions share one; the same index is the same question or picture in every trial.

    Raises:
        Pruned: The trial is hopeless; let it pass through.
    """
    reporter = _reporter.get()
    if reporter is not None and reporter.report_questions(values):
        raise Pruned(f"pruned after {len(values)} more questions")


def progress(text: str, done: int, total: int) -> None:
    """Show how far the present piece of work is; costs nothing when nobody watches.

    Args:
        text: What is being worked on, for instance "fold 2 of 3, epoch 1".
        done: Pieces finished.
        total: Pieces in all.
    """
    sink = _progress.get()
    if sink is not None:
        sink(text, done, total)


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Send the reports of the code inside to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def progress_to(sink: ProgressSink) -> Iterator[None]:
    """Send the progress of the code inside to `sink`, called as sink(text, done, total)."""
    token = _progress.set(sink)
    try:
        yield
    finally:
        _progress.reset(token)


@contextmanager
def shown_progress(worded: Callable[[str], str] = str) -> Iterator[None]:
    """Show a bar for what is reported inside the block; nothing when output is no terminal.

    A finished bar makes room when the next piece of work begins; none is left at the end.

    Args:
        worded: Gives the words for a piece of work in the user's language.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    if not console().is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    # the mean over everything so far: training waits at each evaluation, which is part of the time left
    bars = Progress(*columns, console=console(), auto_refresh=False, speed_estimate_period=math.inf)
    tasks: dict[str, TaskID] = {}
    finished: set[str] = set()

    def show(text: str, done: int, total: int) -> None:
        if text not in tasks:
            for other in finished:
                bars.remove_task(tasks.pop(other))
            finished.clear()
            tasks[text] = bars.add_task(escape(worded(text)), total=total)
        bars.update(tasks[text], completed=done, total=total)
        if done < total:
            finished.discard(text)
        elif text not in finished:
            finished.add(text)
            part.redraw()

    with LivePart(bars.get_renderable, keeps=False, every_s=BARS_EVERY_S) as part, progress_to(show):
        yield
