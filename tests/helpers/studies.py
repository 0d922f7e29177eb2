"""Settings of a small study."""

from typing import Any

from vqa.sweep.settings import SweepSettings


def settings(**changed: Any) -> SweepSettings:
    values: dict[str, Any] = {
        "study_name": "s",
        "storage": "sqlite:///study.db",
        "storage_wait_s": 20,
        "direction": "minimize",
        "objective": "nll",
        "costs": (),
        "n_trials": 3,
        "whole_trials": None,
        "n_workers": 1,
        "worker_command": None,
        "final_command": None,
        "sampler": {"_target_": "optuna.samplers.RandomSampler"},
        "pruner": {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 1},
        "params": {},
        "conditions": {},
        "enqueue": [],
        "final": False,
        "final_trial": None,
        "final_overrides": [],
        "record": {},
        "confirm": 0,
        "max_failures": 1,
        "max_retries": 1,
        "budget_minutes": None,
        "timeout_s": None,
        "seed": 0,
        "tracked": False,
    }
    return SweepSettings(**{**values, **changed})
