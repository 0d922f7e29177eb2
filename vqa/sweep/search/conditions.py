"""Conditional parameters: `hydra.sweeper.conditions` says beside which choices a key is searched at all.

    conditions:
      scheduler.warmup_ratio: {scheduler: [cosine, linear]}   # a constant schedule has no use for it

A trial in which a key does not apply gets no override for it, so the configuration's own value holds, and its
cell in `leaderboard.csv` is empty. Conditions are flat, and not ranges nested below each choice: a key keeps
one range, one column and one line on the command line, whoever opens it.

How each sampler copes:

- TPE draws each group of parameters that occur together by itself (`group`, which is set here).
- Gaussian processes need one fixed space: see `ImputingSampler`.
- Random and brute force draw what applies. The grid visits every point that differs once.
- Optuna's others draw what not every trial has at random, as Optuna does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from vqa.config.near import nearest
from vqa.errors import UserError
from vqa.sweep.search.space import (
    SearchSpace,
    drawn_value,
    key_of,
    other_of,
    override_value,
    plain_value,
    read_search_space,
)
from vqa.sweep.search.thompson import from_unit
from vqa.sweep.settings import SweepSettings

KEY = "hydra.sweeper.conditions"
Conditions = dict[str, dict[str, tuple[Any, ...]]]


def read_space(
    settings: SweepSettings, arguments: Sequence[str], groups: ConfigLoader | None = None
) -> SearchSpace:
    """Put `params`, `conditions` and the command line together.

    A condition on a key that has one value only is decided here: it is dropped, or the key that it governs
    leaves the search. A condition of a key that is not searched is dropped: what was typed for it holds for
    all trials.

    Args:
        settings: The checked keys of `hydra.sweeper`.
        arguments: Overrides of the command line.
        groups: As for `read_search_space`.

    Raises:
        UserError: As `read_search_space`; or a condition names a key or a choice that is not there, depends
            on what is no choice, goes round in a circle, or can never hold.
    """
    space = read_search_space(settings.params, arguments, groups)
    if not settings.conditions:
        return space
    known = [_bare(word) for word in (*settings.params, *(a.split("=", 1)[0] for a in arguments))]
    fixed = {_bare(key): text for key, _, text in (given.partition("=") for given in space.fixed)}
    names = {_bare(key_of(name)): name for name in space.distributions}
    conditions: Conditions = {}
    gone: set[str] = set()
    for key, wanted in settings.conditions.items():
        if _bare(key) not in known:
            raise UserError(
                f"{KEY}.{key} names a key that is not searched{nearest(key, known)}. "
                f"Searched: {', '.join(space.keys)}."
            )
        if _bare(key) not in names:
            continue
        for other, value in wanted.items():
            choices = tuple(drawn_value(choice) for choice in (value if isinstance(value, list) else [value]))
            where = f"{KEY}.{key}.{other}"
            if _bare(other) in fixed:
                if drawn_value(plain_value(fixed[_bare(other)])) not in choices:
                    gone.add(names[_bare(key)])
                continue
            if _bare(other) not in names:
                raise UserError(
                    f"{where} names a key that is neither searched nor fixed{nearest(other, names)}. Give it "
                    f"a range or a value, such as {other}={override_value(choices[0])}."
                )
            parent = names[_bare(other)]
            _refuse_choices(where, choices, parent, space.distributions[parent])
            conditions.setdefault(names[_bare(key)], {})[parent] = choices
    return _checked(space, conditions, gone)


def _bare(key: str) -> str:
    return key.lstrip("+")


def _refuse_choices(where: str, choices: Sequence[Any], other: str, distribution: BaseDistribution) -> None:
    if not isinstance(distribution, CategoricalDistribution) or other_of(other):
        raise UserError(f"{where} must name a key that is searched by choice(...), got {distribution}.")
    for choice in choices:
        if choice not in distribution.choices:
            words = [str(known) for known in distribution.choices]
            raise UserError(
                f"{where} must be among the choices of {other}, got {choice}{nearest(str(choice), words)}. "
                f"Choices: {', '.join(words)}."
            )


def _checked(space: SearchSpace, conditions: Conditions, gone: set[str]) -> SearchSpace:
    """The space with its conditions, each name behind those that it depends on."""
    for name in space.distributions:
        other = other_of(name)  # a multiple of a number that is not drawn cannot be drawn either
        if other in gone:
            gone.add(name)
        for deciding, choices in conditions.get(other, {}).items():
            mine = conditions.setdefault(name, {})
            mine[deciding] = tuple(c for c in choices if c in mine.get(deciding, choices))
    while more := {n for n, wanted in conditions.items() if n not in gone and wanted.keys() & gone}:
        gone |= more  # what they depend on is not searched
    left = {name: ranged for name, ranged in space.distributions.items() if name not in gone}
    conditions = {name: wanted for name, wanted in conditions.items() if name in left}
    if not left:
        raise UserError(f"{KEY}: no searched key applies under the values that are fixed: nothing to search.")
    ordered: dict[str, BaseDistribution] = {}
    while len(ordered) < len(left):
        ready = [n for n in left if n not in ordered and conditions.get(n, {}).keys() <= ordered.keys()]
        if not ready:
            circle = ", ".join(name for name in left if name not in ordered)
            raise UserError(f"{KEY} must not go round in a circle, got one among {circle}.")
        ordered[ready[0]] = left[ready[0]]
    whole = SearchSpace(ordered, space.fixed, conditions, frozenset(_bare(key_of(name)) for name in gone))
    reached = {name for branch in whole.branches() for name in whole.applicable(branch)}
    for name in ordered:
        if name not in reached:
            raise UserError(f"{KEY}.{key_of(name)} can never hold: {in_words(conditions[name])}. Mend it.")
    return whole


def in_words(wanted: Mapping[str, Sequence[Any]]) -> str:
    """Say what must hold for a name to be searched: `scheduler in [cosine, linear]`."""
    return " and ".join(f"{other} in [{', '.join(map(str, choices))}]" for other, choices in wanted.items())


class ImputingSampler(optuna.samplers.BaseSampler):
    """Lets a sampler that knows one fixed space draw from one with conditions.

    It sees every trial with all names: those that did not apply stand at the middle of their range, or at
    their first choice, always the same, so that they make no difference between two trials without them. It
    proposes all names; what does not apply is not drawn from the proposal.

    Args:
        inner: The sampler.
        space: The space.

    Source: F. Hutter, H. Hoos and K. Leyton-Brown (2011), "Sequential Model-Based Optimization for General
    Algorithm Configuration", section 4.1: an inactive parameter is held at its default.
    """

    def __init__(self, inner: optuna.samplers.BaseSampler, space: SearchSpace) -> None:
        self.inner = inner
        self.space = space
        self.neutral = {name: _neutral(ranged) for name, ranged in space.distributions.items()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All names."""
        return dict(self.space.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Let the sampler propose all names, from all trials whose values are drawn."""
        whole = optuna.create_study(direction=study.direction, sampler=self.inner)
        whole.add_trials(
            [
                self._whole(known)
                for known in study.get_trials(deepcopy=False)
                if known.number != trial.number and known.params and known.state != TrialState.FAIL
            ]
        )
        return whole.ask(search_space).params

    def _whole(self, trial: FrozenTrial) -> FrozenTrial:
        return create_trial(
            params={**self.neutral, **trial.params},
            distributions=self.space.distributions,
            value=trial.value,
            state=trial.state,
            intermediate_values=trial.intermediate_values,
        )

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not reached: all names are proposed together."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)


def _neutral(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    return from_unit(0.5, distribution)
