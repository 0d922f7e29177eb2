"""A worker: takes one trial after another from the shared study and runs each as a Hydra job of its own."""

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real

from hydra.core.utils import JobStatus
from optuna.pruners import WilcoxonPruner
from optuna.trial import Trial, TrialState

from vqa.errors import DoesNotFitError, InUseError, UserError
from vqa.machine.interrupt import Interrupt
from vqa.machine.retry import GoneError
from vqa.progress import By, Paused, Pruned, progress_to, reporting_to
from vqa.results.folder import StudyFolder
from vqa.sweep.board import Board, describe_end, describe_start
from vqa.sweep.final_run import winner_text, write_winner
from vqa.sweep.jobs import HydraJobs
from vqa.sweep.leaderboard import (
    Standing,
    ranking,
    standing_of,
    winner_of,
    write_leaderboard,
)
from vqa.sweep.search.promotion import WORKED_S, PromotionPruner
from vqa.sweep.search.space import group_of, overrides_of
from vqa.sweep.study import Claim, SharedStudy
from vqa.sweep.workers.state import StateWriter, read_states

POLL_S = 1.0  # how often a free worker looks whether a trial has paused
log = logging.getLogger(__name__)


class TrialReporter:
    """Passes the reports of one trial to Optuna; a `vqa.progress.Reporter`.

    Args:
        trial: The running trial.
        by: What one step is.
        on_report: Called after each value that went to the storage.
        adopted: Whether it was begun before, so that the storage may have reports of it.
        goes_on: Asked of a trial that should pause: whether it goes on at once instead.
    """

    def __init__(
        self,
        trial: Trial,
        by: By,
        on_report: Callable[[], None],
        adopted: bool = True,
        goes_on: Callable[[Trial], bool] = lambda trial: False,
    ) -> None:
        self.by: By = by
        self.pauses = isinstance(trial.study.pruner, PromotionPruner)
        self.trial = trial
        self.on_report = on_report
        self.goes_on = goes_on
        known = trial.study._storage.get_trial(trial._trial_id).intermediate_values if adopted else ()
        self.stored = set(known)

    def report(self, value: float, step: int) -> bool:
        """Store one value. A step that is in the storage had its answer before the job was cut off."""
        if self.by != "part" or step in self.stored:
            return False
        self._store(value, step)
        return self.trial.should_prune() and not (self.pauses and self.goes_on(self.trial))

    def report_questions(self, values: Mapping[int, float]) -> bool:
        """Store what is new, then ask the pruner: its earlier answer may have been lost."""
        if self.by != "question":
            return False
        for step, value in values.items():
            if step not in self.stored:
                self._store(value, step)
        return self.trial.should_prune()

    def _store(self, value: float, step: int) -> None:
        self.trial.report(value, step)
        self.stored.add(step)
        self.on_report()


class Worker:
    """Works on the shared study until nothing is left to claim.

    Args:
        shared: The study.
        jobs: Runs the trials.
        board: Shows what happens.
        deadline: `time.time()` after which no trial starts.
        interrupt: Asked before each trial and at each report.
        slot: Which worker this is.
    """

    def __init__(
        self,
        shared: SharedStudy,
        jobs: HydraJobs,
        board: Board,
        deadline: float,
        interrupt: Interrupt,
        slot: int = 0,
    ) -> None:
        self.shared = shared
        self.jobs = jobs
        self.board = board
        self.deadline = deadline
        self.by: By = "question" if isinstance(shared.study.pruner, WilcoxonPruner) else "part"
        self.interrupt = interrupt
        self.state = StateWriter(shared.folder, slot)
        self.after_trial: Callable[[], None] = lambda: None  # between two trials
        loader = jobs.context.config_loader
        self._groups = {name for name in shared.space.keys if loader.get_group_options(group_of(name))}

    def run(self) -> None:
        """Run trials until none is left, time is up or too many failed.

        Raises:
            UserError: A job refused configuration, data or machine; its trial goes on when that is mended.
            KeyboardInterrupt: The user stopped it; the trial at hand goes on next time.
        """
        while time.time() < self.deadline:
            self.interrupt.check()
            with self.shared.locked():  # or two workers could start one trial too many, or adopt a new one
                claim = self.shared.claim()
                with self._forgiving(claim):
                    self.write_results()
            if claim is None:
                if not self.shared.may_have_more():
                    return
                self.state.begin(None)
                self.redraw()
                time.sleep(POLL_S)
                continue
            with claim.lock, self._forgiving(claim):
                self.state.begin(claim.trial.number)
                self._run_trial(claim)
            self.after_trial()
        with self.shared.locked():
            self.write_results()

    @contextmanager
    def _forgiving(self, claim: Claim | None) -> Iterator[None]:
        """Count no death of a trial that the user stops in this block, or that a refusal stops."""
        try:
            yield
        except GoneError:  # the storage takes nothing any more
            raise
        except (KeyboardInterrupt, UserError):
            if claim is not None:
                self.shared.forgive(claim.trial)
            raise

    def standings(self) -> list[Standing]:
        """Rank the trials as they stand."""
        settings = self.shared.settings
        trials, folder = self.shared.trials(), self.shared.folder
        return ranking(trials, folder, settings.direction, settings.objective, settings.costs)

    def write_results(self) -> None:
        """Bring leaderboard.csv, best.yaml and the table up to date."""
        standings = self.standings()
        write_leaderboard(standings, self.shared.space.keys, StudyFolder(self.shared.folder).leaderboard)
        if winner_of(standings) is not None:
            settings = self.shared.settings
            text = winner_text(standings, settings.record, self._groups, settings.final_trial)
            write_winner(text, self.shared.folder)
        self.board.show(standings, read_states(self.shared.folder))

    def redraw(self) -> None:
        """Bring the table up to date, when somebody watches."""
        if self.board.wants_update:
            self.board.show(self.standings(), read_states(self.shared.folder))

    def _on_report(self) -> None:
        self.interrupt.check()
        self.redraw()

    def _on_progress(self, text: str, done: int, total: int) -> None:
        self.state.progress(text, done, total)
        self.redraw()  # first: the board draws what it was last shown, and then wants nothing for a while
        self.board.progress(text, done, total)

    def _run_trial(self, claim: Claim) -> None:
        trial = claim.trial
        overrides = overrides_of(self.shared.space.values(trial.params))
        self.board.event(describe_start(trial.number, overrides, claim.adopted, self.board.lang))
        stops = claim.adopted and self.by == "part" and self.shared.would_stop(trial.number)
        if stops and self.shared.promotion is None:
            self.shared.tell(trial, TrialState.PRUNED)
        elif not stops or self.shared.goes_on(trial):
            self._run_job(trial, overrides, claim.adopted)
        standing = standing_of(self.shared.now(trial), self.shared.folder)
        if standing.state != TrialState.RUNNING.name:  # else another worker has it
            self.board.event(describe_end(standing, self.board.lang))

    def _is_of_this_trial(self, error: UserError) -> bool:
        """Whether a refusal comes from the trial's own values, so that other trials can go on.

        A storage that is gone, a full disk or missing rights stop every trial. What else a job refuses is
        taken for the trial's own once another trial has ended well: configuration and data are fine then.
        """
        if isinstance(error, GoneError) or isinstance(error.__cause__, OSError):
            return False
        tally = self.shared.tally()
        return isinstance(error, DoesNotFitError) or tally.done > tally.failed

    def _run_job(self, trial: Trial, overrides: Sequence[str], adopted: bool) -> None:
        began = time.monotonic()
        reporter = TrialReporter(trial, self.by, self._on_report, adopted, self.shared.goes_on)
        with reporting_to(reporter), progress_to(self._on_progress):
            subdir = StudyFolder.trial_name(trial.number)
            job = self.jobs.run(subdir, trial.number, self.shared.space.fixed, overrides)
        if job.status is JobStatus.FAILED:
            error = job._return_value  # the property `return_value` would raise it
            traceback.clear_frames(error.__traceback__)  # they hold the trial's tensors
            self.shared.tell(trial, TrialState.FAIL, error=f"{type(error).__name__}: {error}")
            return
        value = job.return_value
        if isinstance(value, InUseError):  # this worker stood still, lost its lock, and another took over
            self.shared.forgive(trial)
            return
        if isinstance(value, UserError):
            if not self._is_of_this_trial(value):
                raise value
            self.shared.tell(trial, TrialState.FAIL, error=str(value))
            return
        if isinstance(value, Paused):
            if self.shared.now(trial).state.is_finished():  # as in `SharedStudy.tell`
                return
            before = trial.user_attrs.get(WORKED_S, 0.0)
            trial.set_user_attr(WORKED_S, before + time.monotonic() - began)
            return  # its last report says that it waits
        if isinstance(value, Pruned):
            self.shared.tell(trial, TrialState.PRUNED)
        elif isinstance(value, Real) and math.isfinite(value):
            self.shared.tell(trial, TrialState.COMPLETE, float(value))
        else:
            reason = f"the job must return a finite number, got {value!r}"
            self.shared.tell(trial, TrialState.FAIL, error=reason)
