"""What a new trial tries: a sampler's proposal that is no near-copy of a trial, now and then a random one.

Of several random points the one that lies farthest from all trials is taken: workers that begin at the same
time then begin at different places.

The sampler draws in a copy of the study in memory. There a trial that pauses, or is being run, counts as a
pruned one with the reports that it has, so that the sampler learns from it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from vqa.sweep.search.sampling import SamplerFactory, draw
from vqa.sweep.search.space import SearchSpace
from vqa.sweep.search.thompson import first_score, to_unit

NEAR_FACTOR = 1.3  # rates closer than this score alike: their difference drowns in a trial's noise
NEAR_SHARE = 0.05  # of a range that is not logarithmic
MOST_POINTS = 10_000  # a space of more is treated as one without an end
SPREAD = 4  # random draws, of which the one that lies farthest from all trials is taken
TRIES = 10  # proposals of the sampler, and as many random draws, before a near-copy is accepted


class Proposer:
    """Draws the parameters of new trials.

    Args:
        samplers: Builds the sampler of each trial.
        space: What is searched.
        random_share: A trial's number -> the probability that it is drawn at random.
        direction: Of the study.
    """

    def __init__(
        self,
        samplers: SamplerFactory,
        space: SearchSpace,
        random_share: Callable[[int], float],
        direction: StudyDirection,
    ) -> None:
        self.samplers = samplers
        self.space = space
        self.random_share = random_share
        self.direction = direction

    def propose(self, number: int, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Draw the parameters of trial `number`.

        Args:
            number: Its number; with the study's seed it fixes every random draw.
            trials: The others, with what they have reported.
        """
        taken = [
            trial.params for trial in trials if trial.params.keys() >= {*self.space.applicable(trial.params)}
        ]
        random = np.random.default_rng(self.samplers.seed_of(number, 1))
        study = optuna.create_study(direction=self.direction)
        study.add_trials([_as_known(trial) for trial in trials if trial.params])
        unknown = all(first_score(trial) is None for trial in trials)
        by_sampler = 0 if random.random() < self.random_share(number) or unknown else TRIES
        drawn: list[dict[str, Any]] = []
        fresh: list[dict[str, Any]] = []  # random draws that are no near-copies
        study.sampler = self.samplers.build(number)
        for attempt in range(by_sampler + TRIES):
            if attempt == by_sampler:
                study.sampler = optuna.samplers.RandomSampler(seed=int(random.integers(2**31)))
            trial = study.ask()
            draw(trial, self.space)
            study.tell(trial, state=TrialState.FAIL)  # a proposal that is not taken teaches nothing
            drawn.append(trial.params)
            if any(self._near(trial.params, other) for other in taken):
                continue
            if attempt < by_sampler or not taken:
                return trial.params
            fresh.append(trial.params)
            if len(fresh) == SPREAD:
                break
        if fresh:
            return self._farthest(fresh, taken)
        if left := self._untried(taken):
            return left[int(random.integers(len(left)))]
        return self._farthest(drawn, taken)

    def _farthest(
        self, points: Sequence[dict[str, Any]], taken: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        return max(points, key=lambda params: min(self._distance(params, other) for other in taken))

    def _untried(self, taken: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The points of a space without ranges that no trial has; [] for a space with ranges."""
        if not self.space.is_finite() or self.space.size() > MOST_POINTS:
            return []
        return [point for point in self.space.points() if point not in taken]

    def _near(self, left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
        ranges = self.space.distributions.items()
        return left.keys() == right.keys() and all(
            is_near(left[name], right[name], ranged) for name, ranged in ranges if name in left
        )

    def _distance(self, left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
        """How far two points are apart: choices that differ, and a name that one has not, count as a whole
        range."""
        total = 0.0
        for name, ranged in self.space.distributions.items():
            if name not in left or name not in right:
                total += (name in left) != (name in right)
            elif isinstance(ranged, FloatDistribution):
                total += abs(to_unit(left[name], ranged) - to_unit(right[name], ranged))
            else:
                total += left[name] != right[name]
        return total


def is_near(left: Any, right: Any, distribution: BaseDistribution) -> bool:
    """Whether two values of one parameter are as good as the same."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is not None or left == right:
        return bool(left == right)
    if distribution.log:
        return bool(abs(math.log(left / right)) < math.log(NEAR_FACTOR))
    return bool(abs(left - right) < NEAR_SHARE * (distribution.high - distribution.low))


def _as_known(trial: FrozenTrial) -> FrozenTrial:
    """A trial as the sampler may see it: what has not ended counts as pruned, with its reports."""
    state = trial.state if trial.state.is_finished() else TrialState.PRUNED
    if state is TrialState.PRUNED and not trial.intermediate_values:
        state = TrialState.FAIL  # nothing is known of it yet
    return create_trial(
        params=trial.params,
        distributions=trial.distributions,
        value=trial.value if state is TrialState.COMPLETE else None,
        state=state,
        intermediate_values=trial.intermediate_values,
    )
