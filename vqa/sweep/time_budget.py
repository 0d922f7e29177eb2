"""What a study's time buys: `budget_minutes` becomes trials x folds x questions.

One small trial is timed before the study begins. The study is then planned to fit the minutes. Also here: how
many trials a pruner needs before it can stop any.
"""

import copy
import json
import logging
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf

from vqa.errors import UserError
from vqa.machine.files import replace_text, wait_for_lock
from vqa.results.folder import SPEED, StudyFolder, read_json
from vqa.sweep.jobs import HydraJobs
from vqa.sweep.search.conditions import read_space
from vqa.sweep.search.promotion import PromotionPruner
from vqa.sweep.search.sampling import build_pruner, quieten_optuna
from vqa.sweep.search.space import SearchSpace, overrides_of
from vqa.sweep.settings import SweepSettings
from vqa.sweep.workers.pool import own_command, own_slot, share_out, visible_gpus, worker_environment

log = logging.getLogger(__name__)

PLAN = "plan.json"
LEAST_QUESTIONS = 120  # fewer make the standard error of a trial larger than most differences between trials
MOST_QUESTIONS = 4  # x the configured number; beyond that more trials are worth more
LEAST_TRIALS, MOST_TRIALS = 6, 3  # the latter x the configured number
SCORING = 1 / 3  # a question scored costs about a third of one trained on: no backward pass


@dataclass(frozen=True)
class StudySize:
    """How much a study computes.

    Args:
        n_trials: Trials.
        folds: Folds of each.
        subsample: Questions that the folds share out.
    """

    n_trials: int
    folds: int
    subsample: int


@dataclass(frozen=True)
class Speed:
    """What one finished fold cost.

    Args:
        seconds: Wall time of the fold.
        folds: Folds of its trial.
        subsample: Questions of its trial.
        epochs: Passes over the training part.
        evaluations: How often the other part is scored.
    """

    seconds: float
    folds: int
    subsample: int
    epochs: int
    evaluations: int

    def seconds_of(self, size: StudySize) -> float:
        """Seconds of one whole trial of that size on one worker."""
        per_question = self.seconds / (self.subsample * self._share(self.folds))
        return size.folds * size.subsample * self._share(size.folds) * per_question

    def _share(self, folds: int) -> float:
        """Work of a fold per question of the subsample, in questions trained on."""
        return ((folds - 1) * self.epochs + SCORING * self.evaluations) / folds


@dataclass(frozen=True)
class StudyPlan:
    """A size for a span of time.

    Args:
        budget_minutes: What was asked for.
        size: What is computed in it.
        trial_s: Seconds of one trial that runs to its end.
    """

    budget_minutes: float
    size: StudySize
    trial_s: float

    def overrides(self) -> list[str]:
        """The overrides that each trial gets."""
        return [f"budget.subsample={self.size.subsample}", f"budget.folds={self.size.folds}"]

    def describe(self, workers: int) -> str:
        """Describe the plan in one line."""
        minutes = self.size.n_trials * self.trial_s / workers / 60
        return (
            f"hydra.sweeper.budget_minutes={self.budget_minutes:g}: {self.size.n_trials} trials x "
            f"{self.size.folds} folds x {self.size.subsample} questions, {self.trial_s:.0f} s per trial as "
            f"measured, about {minutes:.1f} min with {workers} worker(s) if nothing is pruned; "
            "a final run comes after it"
        )


def plan_study(minutes: float, workers: int, speed: Speed, wanted: StudySize, least_trials: int) -> StudyPlan:
    """Fit a study into a span of time.

    The configured trials stay while they can, and get as many questions as the time allows, between 120 and
    four times the configured number; then two folds; then fewer trials. Time beyond that buys more trials.

    Args:
        minutes: Of wall time, for the trials alone.
        workers: Workers that share them.
        speed: As measured.
        wanted: As configured.
        least_trials: Fewer than these are of no use to the pruner.

    Raises:
        UserError: Even the smallest study takes longer.
    """
    budget_s = minutes * 60 * workers

    def cost(size: StudySize) -> float:
        return size.n_trials * speed.seconds_of(size)

    least = min(wanted.subsample, LEAST_QUESTIONS)
    questions = math.floor(wanted.subsample * budget_s / cost(wanted))
    size = replace(wanted, subsample=max(least, min(questions, MOST_QUESTIONS * wanted.subsample)))
    if cost(size) > budget_s:
        size = replace(size, folds=2)
    fitting = math.floor(budget_s / speed.seconds_of(size))
    if fitting < size.n_trials or questions > MOST_QUESTIONS * wanted.subsample:
        size = replace(size, n_trials=min(fitting, MOST_TRIALS * wanted.n_trials))
    least_trials = min(wanted.n_trials, max(LEAST_TRIALS, least_trials))
    if size.n_trials < least_trials:
        needed = cost(replace(size, n_trials=least_trials)) / 60 / workers
        raise UserError(
            f"hydra.sweeper.budget_minutes must be >= {needed:.1f} for {least_trials} trials x "
            f"{size.folds} folds x {size.subsample} questions at the measured speed, got {minutes:g}. "
            "Give more time or workers."
        )
    return StudyPlan(minutes, size, speed.seconds_of(size))


def more_time(plan: StudyPlan, minutes: float, workers: int) -> StudyPlan:
    """Plan again for a study that has begun: its folds and questions stay, the number of trials changes."""
    trials = max(1, math.floor(minutes * 60 * workers / plan.trial_s))
    return StudyPlan(minutes, replace(plan.size, n_trials=trials), plan.trial_s)


def read_plan(folder: Path) -> StudyPlan | None:
    """The plan that a study was begun with; None when it was begun without."""
    if not (folder / PLAN).exists():
        return None
    values = read_json(folder / PLAN)
    try:
        return StudyPlan(**{**values, "size": StudySize(**values["size"])})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / PLAN}: is no plan of a study ({error}); remove it to have the study planned again"
        ) from error


def write_plan(folder: Path, plan: StudyPlan) -> None:
    """Write the plan, so that the same command goes on with it."""
    replace_text(folder / PLAN, json.dumps(asdict(plan)) + "\n")


def trials_needed(pruner: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many trials a pruner needs before it can stop any, and why."""
    built = build_pruner(pruner)
    if isinstance(built, optuna.pruners.HyperbandPruner):
        quieten_optuna()
        built._try_initialization(optuna.create_study(pruner=built))
        brackets = built._trial_allocation_budgets
        needed = math.ceil(built._reduction_factor * sum(brackets) / min(brackets))
        return needed, (
            f"Hyperband shares them out to {len(brackets)} brackets, and each needs "
            f"reduction_factor={built._reduction_factor} of them to compare"
        )
    if isinstance(built, PromotionPruner):
        return (
            built.rungs.factor,
            f"one of reduction_factor={built.rungs.factor} trials at a rung is promoted",
        )
    if isinstance(built, optuna.pruners.SuccessiveHalvingPruner):
        return built._reduction_factor, f"a rung compares reduction_factor={built._reduction_factor} trials"
    if isinstance(built, optuna.pruners.PercentilePruner):
        return built._n_startup_trials + 2, f"the first n_startup_trials={built._n_startup_trials} all run on"
    return 1, ""


def warn_of_few_trials(settings: SweepSettings) -> None:
    """Warn where the study has too few trials for its pruner to stop any."""
    needed, why = trials_needed(settings.pruner)
    if settings.n_trials < needed:
        log.warning(
            f"hydra.sweeper.n_trials={settings.n_trials} is too few for the pruner: {why}. "
            f"Take {needed} or more, or hydra/sweeper/pruner=none."
        )


log = logging.getLogger(__name__)

MEASURING = "VQA_MEASURING"  # in the environment of a copy that only measures
QUESTIONS = 60  # of the small trial


def planned(
    jobs: HydraJobs, settings: SweepSettings, arguments: Sequence[str], folder: Path
) -> StudyPlan | None:
    """Return the plan of a study with `budget_minutes`, made now or by an earlier run; None without it.

    Args:
        jobs: Runs the small trial.
        settings: The checked keys of `hydra.sweeper`.
        arguments: Overrides of the command line.
        folder: The study's folder.

    Raises:
        UserError: The time is too short, or `budget.subsample` is not a number.
    """
    minutes, workers = settings.budget_minutes, settings.n_workers
    if minutes is None:
        return None
    locks = StudyFolder(folder).locks
    locks.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(locks / "plan"):  # of workers that start together one plans
        plan = read_plan(folder)
        if plan is not None and (plan.budget_minutes == minutes or own_slot() is not None):
            return plan
        if plan is None:
            space = read_space(settings, arguments, jobs.context.config_loader)
            least, _ = trials_needed(settings.pruner)
            wanted = StudySize(settings.n_trials, *size_of(jobs.config))
            plan = plan_study(minutes, workers, _speed(jobs, space, workers, folder), wanted, least)
        else:
            plan = more_time(plan, minutes, workers)
        log.info(plan.describe(workers))
        write_plan(folder, plan)
    return plan


def size_of(config: DictConfig) -> tuple[int, int]:
    """Folds and questions of a trial as configured."""
    folds, subsample = config.budget.folds, config.budget.subsample
    if not isinstance(subsample, int):
        raise UserError(
            f"budget.subsample must be a number with hydra.sweeper.budget_minutes, got {subsample}; "
            "it is what the plan begins with. Take budget=trial."
        )
    return folds, subsample


def _speed(jobs: HydraJobs, space: SearchSpace, workers: int, folder: Path) -> Speed:
    """Time the small trial. With several workers a process of its own runs it: this one keeps no model."""
    if workers == 1:
        measure(jobs, space)
    else:
        gpus = share_out(visible_gpus(), workers)
        environment = os.environ | worker_environment(0, gpus, float("inf"), elsewhere=False)
        place = StudyFolder(folder).speed.path
        place.mkdir(exist_ok=True)
        with (place / "process.log").open("wb") as out:
            command = own_command(jobs.config.hydra.callbacks)
            subprocess.run(
                command, env=environment | {MEASURING: "1"}, stdout=out, stderr=subprocess.STDOUT, check=False
            )
    return _read_speed(jobs.config, folder)


def measure(jobs: HydraJobs, space: SearchSpace) -> None:
    """Run the small trial, in the folder `speed` of the study.

    Raises:
        UserError: The job refused its configuration or data.
    """
    chosen = [*overrides_of(space.samples()[0]), f"budget.subsample={QUESTIONS}"]
    alone = replace(jobs, parent_run_id=None)
    value = alone.run(SPEED, 0, [*space.fixed, *chosen, *_untracked(jobs.config)], []).return_value
    if isinstance(value, UserError):
        raise value


def _untracked(config: DictConfig) -> list[str]:
    return ["tracking.enabled=false"] if "enabled" in config.tracking else []


def _read_speed(config: DictConfig, folder: Path) -> Speed:
    measured = StudyFolder(folder).speed
    rows = measured.folds()
    if not rows:
        raise UserError(f"the small trial that measures the speed did not end; see {measured.path}.")
    last = rows[-1]  # the first one loads the model and sees each picture for the first time
    questions = last.n_train + last.n_valid
    return Speed(last.seconds, len(rows), questions, config.budget.epochs, config.budget.evaluations_per_fit)


def sweeper_under(plan: StudyPlan, config: DictConfig) -> dict[str, Any]:
    """Resolve `hydra.sweeper` with the plan's folds and questions, from which some of its keys follow."""
    planned_config = copy.deepcopy(config)
    OmegaConf.update(planned_config, "budget.subsample", plan.size.subsample)
    OmegaConf.update(planned_config, "budget.folds", plan.size.folds)
    node = OmegaConf.to_container(planned_config.hydra.sweeper, resolve=True)
    if not isinstance(node, dict):
        raise TypeError(f"hydra.sweeper must be a mapping, got {node!r}")
    return {**{str(key): value for key, value in node.items()}, "n_trials": plan.size.n_trials}
