"""Every key of hydra.sweeper is checked, by name."""

from typing import Any

import pytest

from vqa.errors import UserError
from vqa.sweep.settings import read_settings

GOOD: dict[str, Any] = {
    "_target_": "vqa.sweep.sweeper.StudySweeper",
    "study_name": "lora",
    "storage": "sqlite:///study.db",
    "storage_wait_s": 600,
    "direction": "minimize",
    "objective": "nll",
    "n_trials": 16,
    "whole_trials": None,
    "n_workers": 1,
    "worker_command": None,
    "final_command": None,
    "sampler": {"_target_": "optuna.samplers.TPESampler"},
    "pruner": {"_target_": "optuna.pruners.HyperbandPruner", "max_resource": 9},
    "params": {"lr": "interval(0,1)"},
    "conditions": {},
    "enqueue": [{"lr": 0.5}],
    "final": True,
    "final_trial": None,
    "final_overrides": ["stage=final"],
    "record": {},
    "confirm": 0,
    "max_failures": 2,
    "max_retries": 3,
    "budget_minutes": None,
    "timeout_s": None,
    "seed": 0,
    "tracked": False,
}


def test_a_good_node_becomes_settings() -> None:
    settings = read_settings(GOOD)
    assert settings.n_trials == 16
    assert settings.timeout_s is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("study_name", "a/b", "a name without a slash"),
        ("study_name", None, "a name without a slash"),
        ("storage", "mysql://x", r"sqlite:///path, journal:path or postgresql\+psycopg"),
        ("direction", "up", "minimize or maximize"),
        ("objective", "f1", "one of nll, accuracy, calibrated_nll"),
        ("n_trials", 0, "a whole number >= 1, got 0"),
        ("n_trials", 2.5, "a whole number >= 1"),
        ("n_workers", True, "a whole number >= 1 or auto, got True"),
        ("sampler", {"_target_": "os.system"}, r"a node with `_target_: optuna.samplers.<class>`"),
        ("pruner", None, r"a node with `_target_: optuna.pruners.<class>`"),
        ("params", ["lr"], "a mapping of key -> value"),
        ("enqueue", {"lr": 1}, "a list of mappings"),
        ("final", "yes", "true or false"),
        ("final_overrides", [1], "a list of overrides"),
        ("max_failures", -1, "a whole number >= 0"),
        ("timeout_s", 0, "a number of seconds > 0 or null, got 0"),
        ("budget_minutes", 0, "a number of minutes > 0 or null, got 0"),
        ("storage_wait_s", -1, "a number of seconds > 0, got -1"),
        ("worker_command", "", "a command or null"),
        ("final_command", "torchrun '", "a command or null"),
        ("n_workers", "all", "a whole number >= 1 or auto"),
        ("seed", -1, "a whole number >= 0 or null"),
    ],
)
def test_a_wrong_value_is_refused_with_key_rule_and_value(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"hydra.sweeper.{key} must be {message}"):
        read_settings({**GOOD, key: value})


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"hydra.sweeper has no key 'n_trails'. Keys: study_name, storage"):
        read_settings({**GOOD, "n_trails": 3})


def test_a_missing_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.seed is missing"):
        read_settings({key: value for key, value in GOOD.items() if key != "seed"})


@pytest.mark.parametrize("resource", [{}, {"max_resource": "auto"}])
def test_hyperband_needs_to_know_how_many_reports_a_trial_makes(resource: dict[str, Any]) -> None:
    pruner = {"_target_": "optuna.pruners.HyperbandPruner", **resource}
    with pytest.raises(UserError, match="max_resource must be a whole number"):
        read_settings({**GOOD, "pruner": pruner})


def test_another_objective_takes_jobs_that_return_an_nll() -> None:
    with pytest.raises(UserError, match=r"objective must be nll with hydra\.sweeper\.direction=maximize"):
        read_settings({**GOOD, "objective": "accuracy", "direction": "maximize"})


def test_code_that_is_fetched_while_it_runs_is_refused_with_what_to_take() -> None:
    node = {"_target_": "optunahub.load_module", "package": "samplers/auto_sampler"}
    with pytest.raises(UserError, match=r"would fetch and run code of OptunaHub.*BoTorchSampler"):
        read_settings({**GOOD, "sampler": node})
