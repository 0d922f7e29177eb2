"""Samplers and pruners from their config nodes, and how a trial's parameters are drawn."""

import inspect
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from optuna.trial import Trial

from vqa.errors import UserError
from vqa.sweep.search.conditions import ImputingSampler
from vqa.sweep.search.space import SearchSpace
from vqa.sweep.search.thompson import ThompsonSampler
from vqa.sweep.settings import BOTORCH, PROMOTION, THOMPSON

SAMPLERS = ("optuna.samplers.*", THOMPSON, BOTORCH)  # what may be built
PRUNERS = ("optuna.pruners.*", PROMOTION)
ONE_SPACE = ("optuna.samplers.GPSampler", THOMPSON, BOTORCH)  # these know no conditions: see ImputingSampler
PROBE_TRIALS = 12  # more than the samplers' default of random trials to begin with


class SamplerFactory:
    """Builds a sampler for each trial, seeded by (seed, trial number).

    Args:
        node: `hydra.sweeper.sampler`; a `seed` in it wins over `seed`.
        seed: `hydra.sweeper.seed`; None = another draw each time.
        space: The search space, which the grid sampler wants beforehand.

    Raises:
        UserError: Optuna has no such sampler, or refuses its arguments.
    """

    def __init__(self, node: Mapping[str, Any], seed: int | None, space: SearchSpace) -> None:
        quieten_optuna()
        self.node = {key: value for key, value in node.items() if key not in ("seed", "_partial_")}
        self.seed: int | None = node.get("seed", seed)
        kind = _class_of(self.node["_target_"])
        if not inspect.isclass(kind):
            raise UserError(f"hydra.sweeper.sampler: Optuna has no {self.node['_target_']}.")
        _refuse_hidden_targets("hydra.sweeper.sampler", node, optuna.samplers)
        self.takes_seed = "seed" in inspect.signature(kind).parameters
        self.space = space
        self._points: list[dict[str, Any]] = []
        self.grid = {"search_space": space.grid()} if is_grid(node) else {}
        tpe = self.node["_target_"] == "optuna.samplers.TPESampler" and node.get("multivariate") is not False
        if space.conditions and tpe:
            self.node = {"group": True, **self.node}  # or what not every trial has would be drawn by itself
        self.build(0)  # refuses a wrong argument before the study exists

    def seed_of(self, *words: int) -> int | None:
        """Derive a seed for some purpose within the study; None = another one each time."""
        if self.seed is None:
            return None
        return int(np.random.SeedSequence([self.seed, *words]).generate_state(1)[0])

    def build(self, number: int) -> optuna.samplers.BaseSampler:
        """Give the sampler of trial `number`."""
        extra: dict[str, Any] = dict(self.grid)
        if self.takes_seed and self.seed is not None:
            # A grid is shuffled, and a QMC sequence scrambled, once for the whole study.
            once = self.node["_target_"].removeprefix("optuna.samplers.") in ("GridSampler", "QMCSampler")
            extra["seed"] = self.seed_of() if once else self.seed_of(number)
        try:
            built = instantiate({**self.node, **extra}, _execution_whitelist_=SAMPLERS)
        except (InstantiationException, TypeError, ValueError) as error:
            raise UserError(f"hydra.sweeper.sampler: {self.node} cannot be built: {error}") from error
        if not isinstance(built, optuna.samplers.BaseSampler):
            raise UserError(f"hydra.sweeper.sampler: {self.node['_target_']} is no sampler.")
        if not self.space.conditions:
            return built
        if is_grid(self.node):
            return optuna.samplers.PartialFixedSampler(self._point(number), optuna.samplers.RandomSampler())
        return ImputingSampler(built, self.space) if self.node["_target_"] in ONE_SPACE else built

    def _point(self, number: int) -> dict[str, Any]:
        """The point of a grid with conditions that trial `number` visits: all in one shuffled order.

        Optuna's own grid is a product, and would visit a point once for each value of what does not apply.
        """
        if not self._points:
            points = list(self.space.points())
            self._points = [
                points[at] for at in np.random.default_rng(self.seed or 0).permutation(len(points))
            ]
        return self._points[number % len(self._points)]


def _class_of(target: str) -> object:
    if target == THOMPSON:
        return ThompsonSampler
    if target == BOTORCH:
        missing = [package for package in ("optuna_integration", "botorch") if not _is_there(package)]
        if missing:
            raise UserError(
                f"hydra.sweeper.sampler: {target} needs {' and '.join(missing)}: "
                "pip install optuna-integration botorch"
            )
        return getattr(import_module("optuna_integration"), "BoTorchSampler")  # noqa: B009  (no types)
    return getattr(optuna.samplers, target.removeprefix("optuna.samplers."), None)


def _is_there(package: str) -> bool:
    """Whether a package can be imported; optuna_integration, once it is, cannot be found any more."""
    return package in sys.modules or find_spec(package) is not None


def probe_sampler(samplers: SamplerFactory, space: SearchSpace) -> None:
    """Draw one trial in memory, so that a sampler that cannot draw shows before any model loads.

    Some samplers draw the first trials at random. Only then do they import their package or read the space.

    Raises:
        UserError: The sampler's package is missing, or it does not support the space.
    """
    study = optuna.create_study()
    for number in range(PROBE_TRIALS):  # a history to draw from; its values mean nothing
        study.sampler = optuna.samplers.RandomSampler(seed=number)
        trial = study.ask()
        draw(trial, space)
        study.tell(trial, number)
    study.sampler = samplers.build(PROBE_TRIALS)
    try:
        draw(study.ask(), space)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise UserError(
            f"hydra.sweeper.sampler: {samplers.node['_target_']} cannot draw from this space: "
            f"{str(error).rstrip('.')}. Install what it needs, or take another hydra/sweeper/sampler."
        ) from error


def quieten_optuna() -> None:
    """Keep Optuna's remarks on each trial, and that a sampler is new, from the user's terminal."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def is_grid(node: Mapping[str, Any]) -> bool:
    """Whether the sampler is Optuna's grid, which has an end."""
    return bool(node["_target_"] == "optuna.samplers.GridSampler")


def build_pruner(node: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """Build the pruner; every process must do so from the same node, since no storage keeps it.

    Raises:
        UserError: Optuna has no such pruner, or refuses its arguments.
    """
    _refuse_hidden_targets("hydra.sweeper.pruner", node, optuna.pruners)
    try:
        built = instantiate(dict(node), _execution_whitelist_=PRUNERS)
    except (InstantiationException, TypeError, ValueError) as error:
        raise UserError(f"hydra.sweeper.pruner: {dict(node)} cannot be built: {error}") from error
    if not isinstance(built, optuna.pruners.BasePruner):
        raise UserError(f"hydra.sweeper.pruner: {node['_target_']} is no pruner.")
    return built


def _refuse_hidden_targets(key: str, node: Any, package: Any) -> None:
    """Refuse a target, at any depth, that is no class of the package itself, and not our own.

    Through a module a name would reach whatever that module imports: `optuna.pruners._percentile.np.load`.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        name = str(target).removeprefix(f"{package.__name__}.")
        ours = target in (THOMPSON, PROMOTION, BOTORCH)
        if target is not None and not ours and not inspect.isclass(getattr(package, name, None)):
            raise UserError(f"{key}: _target_ must be a class of {package.__name__}, got {target!r}.")
        node = list(node.values())
    for part in node if isinstance(node, list | tuple) else ():
        _refuse_hidden_targets(key, part, package)


def draw(trial: Trial, space: SearchSpace) -> None:
    """Suggest every parameter of `trial`.

    A trial that was cut off may have some parameters in the storage. These keep their values, but are drawn
    again, so that those after them get the same random numbers as in an uninterrupted run. A parameter that
    does not apply beside those before it is not drawn.
    """
    known = set(trial.params)
    if known.issuperset(space.applicable(trial.params)):
        return
    filtered = optuna.pruners._filter_study(trial.study, trial._cached_frozen_trial)
    for name, distribution in space.distributions.items():
        if space.conditions and not space.applies(name, trial.params):
            continue
        spent = name in known and not distribution.single() and name not in trial._fixed_params
        if spent and name not in trial.relative_params:
            trial.study.sampler.sample_independent(filtered, trial._cached_frozen_trial, name, distribution)
        trial._suggest(name, distribution)
