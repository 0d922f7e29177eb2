"""A Gaussian process that proposes by Thompson sampling, from what every trial first reported.

One draw from the process's belief about all candidates is made, and its best candidate is proposed. Workers
that ask at the same time draw differently, so none has to know what the others try. The process models the
first report of each trial, the one number that all trials have: on the recorded grids its rank correlation
with the end is 0.90 to 0.94.

Source: W. Thompson (1933); K. Kandasamy and others (2018), "Parallelised Bayesian Optimisation via Thompson
Sampling". Length scales and noise are fixed, so a draw costs no fit; they were chosen by replay
(docs/benchmarks.md, "Search"). Products: under Adam the size of a LoRA update goes by learning rate x alpha,
and its best value hardly by the rank (J. Schulman and Thinking Machines Lab (2025), "LoRA Without Regret").
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

CONTINUOUS_SCALE = 0.6  # length scale of a float, in widths of its range
STEPPED_SCALE = 1.5  # of whole numbers and of choices that are numbers, from the lowest to the highest
NAMED_SCALE = 1.0  # between any two choices that are not numbers
PRODUCT_SCALE = 0.7  # of the logarithm of a product: a factor of two
NOISE = 0.2  # standard deviation of a first report, in standard deviations of all of them
JITTER = 1e-8


class ThompsonSampler(optuna.samplers.BaseSampler):
    """Proposes the best candidate of one draw from a Gaussian process.

    Args:
        n_startup_trials: Trials drawn at random before the process has its say.
        n_candidates: Points that are compared at each draw.
        seed: Of both.
        products: Keys whose values act by their product; what a space lacks, or has no positive numbers for,
            is left out with its product.
    """

    def __init__(
        self,
        n_startup_trials: int = 3,
        n_candidates: int = 200,
        seed: int | None = None,
        products: Sequence[Sequence[str]] = (),
    ) -> None:
        if n_candidates < 1:
            raise ValueError(f"n_candidates must be >= 1, got {n_candidates}")
        self.products = [tuple(keys) for keys in products]
        self.n_startup_trials = n_startup_trials
        self.n_candidates = n_candidates
        self.random = np.random.default_rng(seed)
        drawn = int(self.random.integers(2**31))
        self._independent = optuna.samplers.RandomSampler(seed=drawn)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that all trials had."""
        return IntersectionSearchSpace(include_pruned=True).calculate(study)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw all parameters together; nothing while there are too few reports."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        known = [
            (t.params, score)
            for t in study.get_trials(deepcopy=False, states=states)
            if search_space.keys() <= t.params.keys() and (score := first_score(t)) is not None
        ]
        if not search_space or len(known) < max(2, self.n_startup_trials):
            return {}
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1.0
        scores = sign * np.array([score for _, score in known])
        candidates = [self._candidate(search_space) for _ in range(self.n_candidates)]
        tried = np.array([features(params, search_space, self.products) for params, _ in known])
        open_ = np.array([features(params, search_space, self.products) for params in candidates])
        return candidates[int(np.argmin(thompson_draw(tried, scores, open_, self.random)))]

    def _candidate(self, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        return {name: self._value(distribution) for name, distribution in search_space.items()}

    def _value(self, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[int(self.random.integers(len(distribution.choices)))]
        return from_unit(float(self.random.random()), distribution)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter at random: at the start, or one that not all trials had."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def first_score(trial: FrozenTrial) -> float | None:
    """What a trial reported first, else its objective; None where neither is a finite number."""
    reports = trial.intermediate_values
    score = reports[min(reports)] if reports else trial.value
    return score if score is not None and math.isfinite(score) else None


def thompson_draw(
    tried: np.ndarray, scores: np.ndarray, candidates: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Draw the scores of all candidates, together, from the process that has seen `scores`.

    Args:
        tried: Features of the trials, [trials, features].
        scores: Their scores, [trials]; positive ones are modelled by their logarithm.
        candidates: Features, [candidates, features].
        random: The source of the draw.

    Returns:
        Scores in standard deviations from the mean, [candidates]; low is good.
    """
    from scipy.linalg import cho_factor, cho_solve  # a quarter of a second, in every worker

    modelled = np.log(scores) if scores.min() > 0 else scores
    centred = (modelled - modelled.mean()) / max(float(modelled.std()), 1e-6)
    factor = cho_factor(matern(tried, tried) + NOISE**2 * np.eye(len(tried)))
    across = matern(candidates, tried)
    mean = across @ cho_solve(factor, centred)
    spread = matern(candidates, candidates) - across @ cho_solve(factor, across.T)
    spread += JITTER * np.eye(len(candidates))
    return random.multivariate_normal(mean, spread, method="cholesky")


def matern(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Matern kernel with smoothness 5/2 and length scale 1, [left, right].

    Source: C. Rasmussen and C. Williams (2006), "Gaussian Processes for Machine Learning", equation 4.17.
    """
    squared = ((left[:, None, :] - right[None, :, :]) ** 2).sum(-1)
    scaled = np.sqrt(5.0 * squared)
    kernel: np.ndarray = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return kernel


def features(
    params: Mapping[str, Any],
    search_space: Mapping[str, BaseDistribution],
    products: Sequence[Sequence[str]] = (),
) -> list[float]:
    """Where a point lies, in length scales: numbers along their range, names in a corner each, products."""
    place: list[float] = []
    for name, distribution in search_space.items():
        place += _coordinates(params[name], distribution)
    for keys in products:
        if all(name in search_space and _is_positive(search_space[name]) for name in keys):
            place.append(sum(math.log(params[name]) for name in keys) / PRODUCT_SCALE)
    return place


def _is_positive(distribution: BaseDistribution) -> bool:
    """Whether all values of a parameter are numbers above 0."""
    if isinstance(distribution, CategoricalDistribution):
        return _are_numbers(distribution.choices) and all(choice > 0 for choice in distribution.choices)  # type: ignore[operator]
    return isinstance(distribution, FloatDistribution | IntDistribution) and distribution.low > 0


def _are_numbers(choices: Sequence[Any]) -> bool:
    return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)


def _coordinates(value: Any, distribution: BaseDistribution) -> list[float]:
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if _are_numbers(choices):
            ordered = sorted(set(choices))  # type: ignore[type-var]
            return [ordered.index(value) / max(1, len(ordered) - 1) / STEPPED_SCALE]
        corner = NAMED_SCALE / math.sqrt(2)  # two corners then lie one length scale apart
        return [corner if choice == value else 0.0 for choice in choices]
    scale = CONTINUOUS_SCALE if isinstance(distribution, FloatDistribution) else STEPPED_SCALE
    return [to_unit(float(value), distribution) / scale]


def to_unit(value: float, distribution: BaseDistribution) -> float:
    """Place a number in its range, 0 to 1, on the range's own scale."""
    low, high = _ends(distribution)
    at = math.log(value) if getattr(distribution, "log", False) else value
    return (at - low) / (high - low) if high > low else 0.0


def from_unit(share: float, distribution: BaseDistribution) -> float | int:
    """The inverse of `to_unit`, on the range's steps."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"{distribution} is no range of numbers")
    low, high = _ends(distribution)
    at = low + share * (high - low)
    value = math.exp(at) if distribution.log else at
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def _ends(distribution: BaseDistribution) -> tuple[float, float]:
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"{distribution} is no range of numbers")
    low, high = float(distribution.low), float(distribution.high)
    return (math.log(low), math.log(high)) if distribution.log else (low, high)
