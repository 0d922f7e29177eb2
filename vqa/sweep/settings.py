"""The keys under `hydra.sweeper`, checked, and what the objectives among them mean.

By `hydra.sweeper.objective` complete trials are ranked. Only the ranking changes, and with it the winner and
who is trained again. Sampler and pruner go on by the NLL, which tells two settings apart with far fewer
questions than right and wrong answers do.

Costs may stand beside it: `hydra.sweeper.objective=[nll,seconds]`. The leaderboard then marks the Pareto
front of the complete trials. The search stays one for a low NLL, and is no multi-objective study of Optuna's:
such a study takes no reports, so that nothing could be pruned, paused or taken up again within a trial, and
its objectives are fixed when it is created, so that a finished study could not be asked about another cost.
The price: trials crowd where the NLL is low, and a cheap one that was pruned is not on the front.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from vqa.errors import UserError
from vqa.results.calibration import cross_fitted
from vqa.results.metrics import per_question_nll
from vqa.results.predictions import Prediction

Objective = Literal["nll", "accuracy", "calibrated_nll"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
Cost = Literal["seconds", "parameters"]  # of a trial, per question scored; weights that were trained
COSTS: tuple[Cost, ...] = get_args(Cost)
THOMPSON = "vqa.sweep.search.thompson.ThompsonSampler"
PROMOTION = "vqa.sweep.search.promotion.PromotionPruner"
BOTORCH = "optuna_integration.BoTorchSampler"
STOCK_KEYS = {  # of hydra-optuna-sweeper -> what to write here
    "n_jobs": "set hydra.sweeper.n_workers, the number of worker processes",
    "max_failure_rate": "set hydra.sweeper.max_failures, a number of trials",
    "search_space": "set hydra.sweeper.params",
    "custom_search_space": "set hydra.sweeper.params, or give ranges on the command line",
}
Rule = tuple[str, Callable[[Any], bool]]
_NAME: Rule = ("a name without a slash", lambda v: isinstance(v, str) and v != "" and "/" not in v)
_MAPPING: Rule = ("a mapping of key -> value", lambda v: isinstance(v, dict))
_SWITCH: Rule = ("true or false", lambda v: isinstance(v, bool))
_SECONDS: Rule = (
    "a number of seconds > 0",
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v > 0,
)


def is_objective(value: object) -> bool:
    """Whether a value is a `hydra.sweeper.objective`: a word, or a list of a word and different costs."""
    first, *costs = value if isinstance(value, list) and value else [value]
    return first in OBJECTIVES and all(c in COSTS for c in costs) and len(set(costs)) == len(costs)


def question_losses(predictions: Sequence[Prediction], objective: Objective) -> dict[str, float]:
    """What each question adds to the loss that trials are ranked by, by id; lower is better.

    Args:
        predictions: Labelled, out of fold.
        objective: nll: -log p of the right letter, nats. calibrated_nll: the same after a temperature
            that was fitted without the question. accuracy: 1 for a wrong answer, 0 for a right one.

    Raises:
        ValueError: There are no predictions, or one has no gold letter.
    """
    if objective == "accuracy":
        return {p.id: float(p.answer != p.gold) for p in predictions}
    return per_question_nll(cross_fitted(predictions) if objective == "calibrated_nll" else predictions)


def shown_objective(loss: float, objective: Objective) -> float:
    """A mean loss as people read it: the share of right answers for accuracy, else nats."""
    return 1 - loss if objective == "accuracy" else loss


@dataclass(frozen=True)
class SweepSettings:
    """The keys of `hydra.sweeper`. Their defaults stand in `conf/hydra/sweeper/`, none here.

    Args:
        study_name: Name of the study in its storage; Hyperband derives a trial's bracket from it.
        storage: `sqlite:///path`, `journal:path` or `postgresql+psycopg://...`.
        storage_wait_s: Seconds to wait for a database that goes away while the sweep runs.
        direction: "minimize" or "maximize" the value that a job returns.
        objective: What complete trials are ranked by: nll, accuracy or calibrated_nll. The search itself
            goes by NLL. As a key, it may be a list of it and costs.
        costs: What else shall be small: seconds (per question), parameters. No key of its own.
        n_trials: Trials of the study in all, over all runs of the command.
        whole_trials: Work of a search that promotes, in trials that run to their end; it may start less than
            n_trials then. null = n_trials are started, and the pruner says how many run to their end.
        n_workers: Worker processes; 1 = in this process. `auto` has become a number: one a GPU, or 1.
        worker_command: What to put in front of each worker's command, for instance
            `srun --ntasks=1 --gpus=1`; null = workers are plain processes on this machine.
        final_command: What to put in front of this command for the final run, for instance
            `torchrun --nproc-per-node=8`; null = the process that the user started makes it.
        sampler: `_target_: optuna.samplers.*`, or our ThompsonSampler, and its arguments.
        pruner: `_target_: optuna.pruners.*`, or our PromotionPruner, and its arguments.
        params: Search space: key -> Hydra sweep syntax such as `tag(log, interval(1e-4, 1e-2))`;
            null takes a key out of the space.
        conditions: Key -> other key -> its choices under which the key is searched: see
            `vqa.sweep.search.conditions`.
        enqueue: Configurations to try first, each a mapping of searched key -> value.
        final: Whether the final run follows with the winner.
        final_trial: The trial that best.yaml and the final run take; null = the first of the leaderboard.
        final_overrides: Overrides that turn the winner's job into the final run.
        record: Facts about the search that go with the winner, as overrides of the final run and in
            best.yaml: key -> value.
        confirm: Trainings that may be spent, after the trials, on training those that are tied with the best
            again with other `train_seed`s; 0 = none. Each costs as much as a whole trial.
        max_failures: Trials that may fail before the sweep stops.
        max_retries: How often a trial may be cut off and taken up again, or a worker may die before any
            trial ends well.
        budget_minutes: Minutes for all trials together. Their number, folds and questions are planned to fit.
            null = as configured.
        timeout_s: Seconds after which no new trial starts; null = no limit.
        seed: Seed of the sampler; null = another search each time.
        tracked: Whether the study gets an MLflow run of its own, with its trials under it.
    """

    study_name: str
    storage: str
    storage_wait_s: float
    direction: str
    objective: Objective
    costs: tuple[Cost, ...]
    n_trials: int
    whole_trials: float | None
    n_workers: int
    worker_command: str | None
    final_command: str | None
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    params: dict[str, Any]
    conditions: dict[str, dict[str, Any]]
    enqueue: list[dict[str, Any]]
    final: bool
    final_trial: int | None
    final_overrides: list[str]
    record: dict[str, Any]
    confirm: int
    max_failures: int
    max_retries: int
    budget_minutes: float | None
    timeout_s: float | None
    seed: int | None
    tracked: bool


def _whole_from(low: int) -> Rule:
    return f"a whole number >= {low}", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low


def _target_in(package: str, *others: str) -> Rule:
    def fits(value: Any) -> bool:
        target = str(value.get("_target_", "")) if isinstance(value, dict) else ""
        return target in others or target.startswith(package + ".")

    return f"a node with `_target_: {package}.<class>`, or {', '.join(others)}", fits


def _or_null(rule: Rule) -> Rule:
    return f"{rule[0]} or null", lambda v: v is None or rule[1](v)


def _list_of(kind: type, what: str) -> Rule:
    return f"a list of {what}", lambda v: isinstance(v, list) and all(isinstance(x, kind) for x in v)


def _is_command(value: Any) -> bool:
    try:
        return value is None or (isinstance(value, str) and bool(shlex.split(value)))
    except ValueError:  # a quote is open
        return False


_COMMAND: Rule = ("a command or null", _is_command)
_RULES: dict[str, Rule] = {
    "study_name": _NAME,
    "storage": (
        "sqlite:///path, journal:path or postgresql+psycopg://...",
        lambda v: isinstance(v, str) and v.startswith(("sqlite:///", "journal:", "postgresql")),
    ),
    "storage_wait_s": _SECONDS,
    "direction": ("minimize or maximize", lambda v: v in ("minimize", "maximize")),
    "objective": (
        f"one of {', '.join(OBJECTIVES)}, or a list of it and costs ({', '.join(COSTS)}), as [nll,seconds]",
        is_objective,
    ),
    "n_trials": _whole_from(1),
    "whole_trials": _or_null(("a number of trials > 0", _SECONDS[1])),
    "n_workers": (f"{_whole_from(1)[0]} or auto", _whole_from(1)[1]),
    "worker_command": _COMMAND,
    "final_command": _COMMAND,
    "sampler": _target_in("optuna.samplers", THOMPSON, BOTORCH),
    "pruner": _target_in("optuna.pruners", PROMOTION),
    "params": _MAPPING,
    "conditions": (
        "a mapping of key -> other key -> its choices",
        lambda v: isinstance(v, dict) and all(isinstance(wanted, dict) and wanted for wanted in v.values()),
    ),
    "enqueue": _list_of(dict, "mappings of searched key -> value"),
    "final": _SWITCH,
    "final_trial": _or_null(_whole_from(0)),
    "final_overrides": _list_of(str, "overrides such as stage=final"),
    "record": _MAPPING,
    "confirm": _whole_from(0),
    "max_failures": _whole_from(0),
    "max_retries": _whole_from(0),
    "budget_minutes": _or_null(("a number of minutes > 0", _SECONDS[1])),
    "timeout_s": _or_null(_SECONDS),
    "seed": _or_null(_whole_from(0)),
    "tracked": _SWITCH,
}


def _refuse_downloaded_code(sampler: Any) -> None:
    target = str(sampler.get("_target_")) if isinstance(sampler, Mapping) else ""
    if target.startswith("optunahub"):
        raise UserError(
            f"hydra.sweeper.sampler: {target} would fetch and run code of OptunaHub, which anybody may "
            f"publish, so it is not run here. Take a class of optuna.samplers, {THOMPSON} or {BOTORCH}."
        )


def read_settings(node: Mapping[str, Any]) -> SweepSettings:
    """Check the resolved node `hydra.sweeper`.

    Args:
        node: Its plain content; Hydra's own `_target_` is left out.

    Raises:
        UserError: A key is unknown, missing, of the wrong type or out of range.
    """
    names = [field.name for field in fields(SweepSettings) if field.name != "costs"]
    values = {key: value for key, value in node.items() if key != "_target_"}
    for key in values:
        if key in STOCK_KEYS:
            raise UserError(
                f"hydra.sweeper has no key {key!r}, as Hydra's own sweeper has: {STOCK_KEYS[key]}."
            )
        if key not in names:
            raise UserError(f"hydra.sweeper has no key {key!r}. Keys: {', '.join(names)}.")
    _refuse_downloaded_code(values.get("sampler"))
    for name in names:
        if name not in values:
            raise UserError(f"hydra.sweeper.{name} is missing; conf/hydra/sweeper/study.yaml has them all.")
        rule, fits = _RULES[name]
        if not fits(values[name]):
            raise UserError(f"hydra.sweeper.{name} must be {rule}, got {values[name]!r}.")
    objective = values["objective"]
    values["objective"], *costs = objective if isinstance(objective, list) else [objective]
    values["costs"] = tuple(costs)
    if costs and values["confirm"]:
        raise UserError(
            f"hydra.sweeper.confirm={values['confirm']} trains those again that tie by one objective; with "
            f"hydra.sweeper.objective=[{','.join(objective)}] it must be 0."
        )
    if objective != "nll" and values["direction"] != "minimize":
        raise UserError(
            f"hydra.sweeper.objective must be nll with hydra.sweeper.direction={values['direction']}, got "
            f"{values['objective']!r}: with another one the jobs' value is an NLL, which is minimised."
        )
    _refuse_groups_of_keys(values["params"])
    pruner = values["pruner"]
    if pruner["_target_"].endswith(".HyperbandPruner") and not isinstance(pruner.get("max_resource"), int):
        raise UserError(
            "hydra.sweeper.pruner.max_resource must be a whole number (reports per trial), "
            f"got {pruner.get('max_resource')!r}: with 'auto' the brackets would differ between processes."
        )
    return SweepSettings(**values)


def _refuse_groups_of_keys(params: Mapping[str, Any]) -> None:
    for key, value in params.items():
        if isinstance(value, Mapping):
            inner = next(iter(value), "key")
            raise UserError(
                f"hydra.sweeper.params must name whole keys, got {key!r} with keys below it. In a file write "
                f"{key}.{inner} as one key, on the command line a range without hydra.sweeper.params: "
                f"'{key}.{inner}=choice(1,2)'."
            )
