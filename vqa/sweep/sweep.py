"""A whole sweep: open the study, let the workers finish it, write the results, make the final run."""

import logging
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vqa.config.check import language
from vqa.config.messages import plain_message
from vqa.errors import UserError
from vqa.machine import processes
from vqa.machine.interrupt import Interrupt
from vqa.results.folder import StudyFolder
from vqa.sweep.board import Board, write_address
from vqa.sweep.checks import checked, first_tried, read_sweep, refuse_unusable
from vqa.sweep.confirmation import confirm
from vqa.sweep.final_run import make_final_run, read_winner
from vqa.sweep.jobs import HydraJobs
from vqa.sweep.leaderboard import (
    Standing,
    describe_edges,
    describe_front,
    describe_scores,
    describe_ties,
    winner_of,
)
from vqa.sweep.multirun import write_multirun
from vqa.sweep.search.conditions import read_space
from vqa.sweep.search.space import overrides_of
from vqa.sweep.settings import SweepSettings
from vqa.sweep.study import SharedStudy
from vqa.sweep.time_budget import MEASURING, measure, planned, sweeper_under, warn_of_few_trials
from vqa.sweep.worker import Worker
from vqa.sweep.workers.launch import Launches
from vqa.sweep.workers.pool import (
    AUTO,
    WorkerPool,
    note_refusal,
    own_command,
    own_deadline,
    own_slot,
    start_here,
)
from vqa.sweep.workers.state import StateWriter, lock_free_slot, lock_slot

log = logging.getLogger(__name__)

CLOSED = "closed"  # user attribute of the study: how much was done when its results were last written
POLL_S = 1.0  # how often to check whether other workers have left trials
PAGE_EVERY_S, PAGE_SHARE = 60.0, 0.01  # while a search goes on: at most so often, for such a part of its time
PARENT_RUN = "tracking_parent_run_id"


def run_sweep(
    context: HydraContext, task_function: TaskFunction, config: DictConfig, arguments: list[str]
) -> float | None:
    """Run what is missing of a sweep.

    Args:
        context: Hydra's own.
        task_function: What a job runs.
        config: The composed configuration of the sweep.
        arguments: Overrides of the command line, without those of `hydra.*`.

    Returns:
        The objective of the best trial; None while no trial is complete.

    Raises:
        UserError: A key, the search space, the study's state or a job does not allow to go on.
    """
    processes.refuse_several("a sweep, which starts workers of its own (hydra.sweeper.n_workers),")
    asked = read_sweep(config, arguments, context.config_loader)
    settings, space, launcher = asked.settings, asked.space, asked.launcher
    folder = Path(config.hydra.sweep.dir).absolute()
    jobs = HydraJobs(context, task_function, config)
    if not StudyFolder(folder).terms.exists():
        refuse_unusable(asked, jobs.configs)
    if MEASURING in os.environ:
        measure(jobs, space)
        return None
    if (plan := planned(jobs, settings, arguments, folder)) is not None:
        space = read_space(settings, [*arguments, *plan.overrides()], context.config_loader)
        device_map = OmegaConf.select(config, "env.device_map")
        settings = checked(sweeper_under(plan, config), launcher, device_map)
    enqueued = first_tried(settings, space, config)
    if own_slot() is None:
        warn_of_few_trials(settings)
        _warn_of_pruned_costs(settings)
    with Interrupt() as interrupt:
        slot = own_slot()
        shared = SharedStudy(settings, space, folder, enqueued, begun=slot is not None)
        with shared.locked():
            write_address(folder, settings, shared.n_trials, space.keys)
        if slot is None:
            write_multirun(config, folder)
            return Sweep(shared, jobs, interrupt, launcher).run()
        _run_as_copy(shared, jobs, slot, interrupt)
        return None


def _warn_of_pruned_costs(settings: SweepSettings) -> None:
    if settings.costs and settings.pruner["_target_"] != "optuna.pruners.NopPruner":
        log.warning(
            "the pruner goes by NLL alone: a cheap trial with a poor NLL may be stopped, and is not on the "
            "Pareto front then. hydra/sweeper/pruner=none runs every trial to its end."
        )


def _run_as_copy(
    shared: SharedStudy, jobs: HydraJobs, slot: int | Literal["auto"], interrupt: Interrupt
) -> None:
    """Be one of several workers: run trials; the first process writes the results and makes the final run."""
    lock: IO[str] | None
    if slot == AUTO:
        slot, lock = lock_free_slot(shared.locks)
    else:
        lock = lock_slot(shared.locks, slot)
    if lock is None:
        log.info(f"worker {slot} is up already")
        return
    jobs = replace(jobs, parent_run_id=_parent_run(shared, jobs.config, anew=False))
    with lock, _board(shared, jobs.config) as board:
        try:
            Worker(shared, jobs, board, own_deadline(shared.folder), interrupt, slot).run()
        except UserError as error:
            note_refusal(shared.folder, slot, error)
            raise


def _board(shared: SharedStudy, config: DictConfig) -> Board:
    """The live table of a study."""
    folds = OmegaConf.select(config, "budget.folds")  # of a configuration that is not ours: not known
    names, lang = shared.space.keys, language(config)
    return Board(shared.settings.study_name, names, shared.n_trials, lang=lang, folds=folds)


def _parent_run(shared: SharedStudy, config: DictConfig, anew: bool) -> str | None:
    """Return the study's MLflow run, opened when it is missing or `anew`."""
    if not shared.settings.tracked:
        return None
    from vqa.sweep.study_record import open_study  # imports mlflow

    with shared.locked():
        parent: str | None = shared.study.user_attrs.get(PARENT_RUN)
        if parent is None or anew:
            known, parent = parent, open_study(config, shared.folder)
            if parent != known:
                shared.study.set_user_attr(PARENT_RUN, parent)  # for workers in other processes
    return parent


class Sweep:
    """The sweep in the process that the user started.

    Args:
        shared: The study.
        jobs: Runs trials and the final run.
        interrupt: Ctrl-C.
        launcher: Which of Hydra's launchers places the workers; None = none does.
    """

    def __init__(
        self, shared: SharedStudy, jobs: HydraJobs, interrupt: Interrupt, launcher: str | None
    ) -> None:
        self.launcher = launcher
        self.shared = shared
        self.settings = shared.settings
        self.jobs = jobs
        self.interrupt = interrupt
        self.config = jobs.config
        self.name = f"study {self.settings.study_name}"
        self.lang = language(jobs.config)
        self._page_due = time.monotonic() + PAGE_EVERY_S

    def run(self) -> float | None:
        """Run what is missing; see `run_sweep`."""
        if self._is_closed():
            tally = self.shared.tally()
            final = self._say("closed final") if self.settings.final else ""
            log.info(self._say("closed", done=tally.done, n=self.shared.n_trials, final=final))
            log.info(self._say("elsewhere", folder=self.shared.folder))
            return self._best_value()
        self.jobs = replace(self.jobs, parent_run_id=_parent_run(self.shared, self.config, anew=True))
        board = _board(self.shared, self.config)
        deadline = time.time() + (self.settings.timeout_s or float("inf"))
        worker = Worker(self.shared, self.jobs, board, deadline, self.interrupt)
        worker.after_trial = partial(self._refresh_page, worker)
        try:
            with board:
                self._run_trials(worker)
            if self.shared.is_over() and not self.shared.too_many_failures():
                confirm(self.shared, self.jobs, worker)
            complete = self._check_complete(worker.standings())
            of_study = StudyFolder(self.shared.folder).final  # a process may have been killed before its page
            made = of_study.complete and "accuracy" in of_study.metrics()
            if complete and self.settings.final:
                self._run_final(worker.standings())
            if complete and (made or not self.settings.final):
                self._write_page()  # else it is the final run's last act
        except KeyboardInterrupt:
            done = self.shared.tally().done
            log.warning(self._say("interrupted", done=done, n=self.shared.n_trials))
            self._close_tracking("KILLED")
            raise
        self._close_tracking("COMPLETE" if complete else "KILLED")
        if complete:
            if self._best_value() is None:
                raise UserError(self._nothing_complete("there is no winner"))
            self.shared.study.set_user_attr(CLOSED, self._closing_mark())
        return self._best_value()

    def _run_trials(self, worker: Worker) -> None:
        if self.shared.is_over():
            worker.write_results()  # an earlier run may have been killed before it wrote them
        elif self.settings.n_workers == 1 and self.launcher is None and self.settings.final_command is None:
            slot, lock = lock_free_slot(self.shared.locks)
            worker.state = StateWriter(self.shared.folder, slot)
            with lock:
                self._run_alone(worker)
        else:
            self._run_with_workers(worker)
            with self.shared.locked():  # workers that somebody else started may be writing too
                worker.write_results()

    def _run_with_workers(self, worker: Worker) -> None:
        command = own_command(self.config.hydra.callbacks)
        shared, deadline, watch = self.shared, worker.deadline, partial(self._watch, worker)
        if self.launcher is None:
            WorkerPool(shared, start_here(shared, command, deadline), deadline, watch).run()
            return
        with Launches(shared, self.jobs.context, self.config, self.launcher, command, deadline) as launches:
            WorkerPool(shared, launches, deadline, watch).run()

    def _run_alone(self, worker: Worker) -> None:
        """Run trials, then wait for workers that joined, and adopt the trials of those that die."""
        worker.run()
        while self._others_at_work() and time.time() < worker.deadline:
            self._watch(worker)
            time.sleep(POLL_S)
            worker.run()

    def _watch(self, worker: Worker) -> None:
        """Show what others do, in the table and on the page."""
        worker.redraw()
        self._refresh_page(worker)

    def _others_at_work(self) -> bool:
        tally = self.shared.tally()
        return tally.running > 0 and not self.shared.is_over() and not self.shared.too_many_failures()

    def _check_complete(self, standings: list[Standing]) -> bool:
        """Log where the study stands; return whether all trials are done."""
        tally = self.shared.tally()
        if self.shared.too_many_failures():
            failed = [standing for standing in standings if standing.state == "FAIL"]
            raise UserError(
                f"{self.name}: {tally.failed} trials failed, more than hydra.sweeper.max_failures="
                f"{self.settings.max_failures}. The last: {failed[-1].error}\n"
                f"See {StudyFolder(self.shared.folder).trial(failed[-1].trial).path}/run.log. "
                "To go on, mend the cause and repeat the command with a higher hydra.sweeper.max_failures."
            )
        if not self.shared.is_over():
            why = self._say("out of time", s=self.settings.timeout_s)
            if tally.running:
                why = self._say("others", n=tally.running)
            log.warning(self._say("not over", done=tally.done, n=self.shared.n_trials, why=why))
            return False
        best = winner_of(standings)
        if best is None:
            log.warning(self._say("none complete", n=tally.done))
        else:
            scores, chosen = describe_scores(best, self.lang), " ".join(overrides_of(best.params))
            log.info(self._say("over", n=tally.done))
            log.info(self._say("best", n=best.trial, scores=scores, values=chosen))
            log.info(describe_ties(standings, self.lang))
            if text := describe_front(standings, self.settings.final_trial, self.lang):
                log.info(text)
            self._refuse_final_trial(standings)
            if edges := describe_edges(best, StudyFolder(self.shared.folder).ranges(), self.lang):
                log.warning(edges)
            log.info(self._say("files", folder=self.shared.folder))
        return True

    def _run_final(self, standings: list[Standing]) -> None:
        best = winner_of(standings, self.settings.final_trial)
        if best is None:
            raise UserError(self._nothing_complete("there is nothing for the final run"))
        make_final_run(self.shared, self.jobs, best, self.lang)

    def _refuse_final_trial(self, standings: list[Standing]) -> None:
        complete = [standing.trial for standing in standings if standing.state == "COMPLETE"]
        if self.settings.final_trial not in (None, *complete):
            raise UserError(
                f"hydra.sweeper.final_trial must be a complete trial of {self.name}, got "
                f"{self.settings.final_trial}. Complete, the best first: {', '.join(map(str, complete))}."
            )

    def _nothing_complete(self, so: str) -> str:
        return (
            f"{self.name} has no complete trial, so {so}. How each trial ended is in "
            f"{self.shared.folder}/leaderboard.csv, why in its run.log. Widen hydra.sweeper.params, take a "
            "gentler hydra/sweeper/pruner, or raise hydra.sweeper.n_trials."
        )

    def _refresh_page(self, worker: Worker) -> None:
        """Write the study's page while the search goes on: at times, and for a hundredth of the time."""
        begun = time.monotonic()
        if begun < self._page_due:
            return
        self._page_due = begun + PAGE_EVERY_S
        if winner_of(worker.standings()) is None:
            return
        from vqa.report.report import write_report  # imports matplotlib

        try:
            write_report(StudyFolder(self.shared.folder).final.path, self.lang)
        except (UserError, OSError) as error:  # the search needs no page, and its end writes one
            log.info("the page is written at the end: %s", error)
        ended = time.monotonic()
        self._page_due = ended + max(PAGE_EVERY_S, (ended - begun) / PAGE_SHARE)

    def _write_page(self) -> None:
        """Write the study's page, and what its final run hands over, as that run's last act does."""
        from vqa.report.model_card import write_hand_over
        from vqa.report.report import write_report  # imports matplotlib

        final = StudyFolder(self.shared.folder).final
        if final.complete and final.adapter.is_dir():
            write_hand_over(final.path)
        page = write_report(final.path, self.lang)
        log.info(plain_message(self.lang, "look", path=page))

    def _say(self, name: str, **values: object) -> str:
        return plain_message(self.lang, f"study {name}", study=self.settings.study_name, **values)

    def _closing_mark(self) -> str:
        final = " and the final run" if StudyFolder(self.shared.folder).final.complete else ""
        words = (self.settings.objective, *self.settings.costs)
        ranked = "" if words == ("nll",) else f", ranked by {' and '.join(words)}"
        taken = "" if self.settings.final_trial is None else f", trial {self.settings.final_trial} taken"
        return f"{self.shared.tally().done} trials{final}{ranked}{taken}"

    def _is_closed(self) -> bool:
        """Whether all trials, the results and the final run are complete."""
        final = not self.settings.final or StudyFolder(self.shared.folder).final.complete
        marked = self.shared.study.user_attrs.get(CLOSED) == self._closing_mark()
        over = self.shared.is_over() and final and marked and not self.shared.too_many_failures()
        return over and self._results_are_readable()

    def _results_are_readable(self) -> bool:
        """Whether ranking and winner can be read; a power loss may have emptied them."""
        study = StudyFolder(self.shared.folder)
        try:
            if study.winner.exists():
                read_winner(study.winner)
        except UserError:
            return False
        return study.has_results()

    def _best_value(self) -> float | None:
        values: list[Any] = [trial.value for trial in self.shared.trials() if trial.state.name == "COMPLETE"]
        if not values:
            return None
        return float(min(values) if self.settings.direction == "minimize" else max(values))

    def _close_tracking(self, state: str) -> None:
        if self.settings.tracked:
            from vqa.sweep.study_record import close_study

            close_study(self.config, self.shared.folder, state)
