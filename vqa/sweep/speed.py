"""How fast a trial is here: one small trial, timed before the study is planned."""

import copy
import csv
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vqa.errors import UserError
from vqa.machine.files import try_lock
from vqa.sweep.jobs import HydraJobs
from vqa.sweep.pool import own_slot, visible_gpus, worker_environment
from vqa.sweep.settings import SweepSettings
from vqa.sweep.space import SearchSpace, overrides_of, read_search_space
from vqa.sweep.time_budget import (
    Speed,
    StudyPlan,
    StudySize,
    more_time,
    plan_study,
    read_plan,
    trials_needed,
    write_plan,
)

log = logging.getLogger(__name__)

MEASURING = "VQA_MEASURING"  # in the environment of a copy that only measures
QUESTIONS = 60  # of the small trial


def planned(
    jobs: HydraJobs, settings: SweepSettings, arguments: Sequence[str], folder: Path
) -> StudyPlan | None:
    """Give the plan of a study with `budget_minutes`, made now or by an earlier run; None without.

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
    (folder / ".locks").mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".locks" / "plan", wait=True)  # of workers that start together one plans
    if lock is None:
        raise RuntimeError(f"the lock {folder / '.locks' / 'plan'} was waited for but not given")
    with lock:
        plan = read_plan(folder)
        if plan is not None and (plan.budget_minutes == minutes or own_slot() is not None):
            return plan
        if plan is None:
            space = read_search_space(settings.params, arguments)
            least, _ = trials_needed(settings.pruner)
            wanted = StudySize(settings.n_trials, *_size_of(jobs.config))
            plan = plan_study(minutes, workers, _speed(jobs, space, workers, folder), wanted, least)
        else:
            plan = more_time(plan, minutes, workers)
        log.info(plan.describe(workers))
        write_plan(folder, plan)
    return plan


def _size_of(config: DictConfig) -> tuple[int, int]:
    """Folds and questions of a trial as configured."""
    folds, subsample = config.budget.folds, config.budget.subsample
    if not isinstance(subsample, int):
        raise UserError(
            f"budget.subsample must be a number with hydra.sweeper.budget_minutes, got {subsample}; "
            "it is what the plan begins with. Take budget=trial."
        )
    return folds, subsample


def _speed(jobs: HydraJobs, space: SearchSpace, workers: int, folder: Path) -> Speed:
    """Time the small trial; with several workers in a process of its own, or this one would keep a model."""
    if workers == 1:
        measure(jobs, space)
    else:
        environment = os.environ | worker_environment(0, visible_gpus(), float("inf"), elsewhere=False)
        (folder / "speed").mkdir(exist_ok=True)
        with (folder / "speed" / "process.log").open("wb") as out:
            command = [sys.executable, *sys.orig_argv[1:]]
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
    value = alone.run("speed", 0, [*space.fixed, *chosen, *_untracked(jobs.config)], []).return_value
    if isinstance(value, UserError):
        raise value


def _untracked(config: DictConfig) -> list[str]:
    return ["tracking.enabled=false"] if "enabled" in config.tracking else []


def _read_speed(config: DictConfig, folder: Path) -> Speed:
    path = folder / "speed" / "folds.csv"
    if not path.exists():
        raise UserError(f"the small trial that measures the speed did not end; see {folder / 'speed'}.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]  # the first one loads the model and sees each picture for the first time
    questions = int(last["n_train"]) + int(last["n_valid"])
    return Speed(
        float(last["seconds"]), len(rows), questions, config.budget.epochs, config.budget.evaluations_per_fit
    )


def told_of(plan: StudyPlan, config: DictConfig) -> dict[str, Any]:
    """Give `hydra.sweeper` as it resolves under the plan, whose numbers others are computed from."""
    told = copy.deepcopy(config)
    OmegaConf.update(told, "budget.subsample", plan.size.subsample)
    OmegaConf.update(told, "budget.folds", plan.size.folds)
    node = OmegaConf.to_container(told.hydra.sweeper, resolve=True)
    if not isinstance(node, dict):
        raise TypeError(f"hydra.sweeper must be a mapping, got {node!r}")
    return {**{str(key): value for key, value in node.items()}, "n_trials": plan.size.n_trials}
