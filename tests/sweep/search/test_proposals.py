"""What a new trial tries: no near-copies, a share at random, Thompson sampling."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from vqa.sweep.search.proposals import Proposer, is_near
from vqa.sweep.search.sampling import SamplerFactory
from vqa.sweep.search.space import SearchSpace
from vqa.sweep.search.thompson import features, first_score, from_unit, thompson_draw, to_unit

RATE = FloatDistribution(1e-4, 1e-2, log=True)
SPACE = SearchSpace({"lr": RATE, "r": CategoricalDistribution((8, 16))}, ())
THOMPSON = {"_target_": "vqa.sweep.search.thompson.ThompsonSampler", "n_startup_trials": 3}


def proposer(space: SearchSpace = SPACE, random_share: float = 0.0, **node: Any) -> Proposer:
    samplers = SamplerFactory({**THOMPSON, **node}, 0, space)
    return Proposer(samplers, space, lambda number: random_share, StudyDirection.MINIMIZE)


def paused(space: SearchSpace, value: float, **params: Any) -> FrozenTrial:
    return create_trial(
        state=TrialState.RUNNING,
        params=params,
        distributions=space.distributions,
        intermediate_values={1: value},
    )


@pytest.mark.parametrize(
    ("left", "right", "ranged", "near"),
    [
        (1e-3, 1.29e-3, RATE, True),
        (1e-3, 1.31e-3, RATE, False),
        (0.50, 0.54, FloatDistribution(0, 1), True),
        (0.50, 0.56, FloatDistribution(0, 1), False),
        (0.5, 0.6, FloatDistribution(0, 1, step=0.1), False),
        (8, 16, IntDistribution(8, 32), False),
        (8, 8, CategoricalDistribution((8, 16)), True),
    ],
)
def test_rates_within_a_factor_count_as_the_same(left: float, right: float, ranged: Any, near: bool) -> None:
    assert is_near(left, right, ranged) is near


def test_no_proposal_is_a_near_copy() -> None:
    draw, trials = proposer(), list[FrozenTrial]()
    for number in range(12):
        params = draw.propose(number, trials)
        same = [t.params["lr"] for t in trials if t.params["r"] == params["r"]]
        assert all(abs(math.log(params["lr"] / rate)) >= math.log(1.3) for rate in same)
        trials.append(paused(SPACE, abs(math.log(params["lr"] / 1e-3)) + 0.1, **params))


def test_a_full_space_still_gives_the_point_that_lies_farthest_off() -> None:
    narrow = SearchSpace({"lr": FloatDistribution(1e-3, 1.2e-3, log=True)}, ())
    params = proposer(narrow).propose(1, [paused(narrow, 0.5, lr=1e-3)])
    assert params["lr"] > 1.1e-3


def test_a_space_of_few_points_is_drawn_without_repeats() -> None:
    few = SearchSpace(
        {"lr": CategoricalDistribution((1e-3, 1e-2)), "r": CategoricalDistribution((8, 16, 32))}, ()
    )
    trials = list[FrozenTrial]()
    for number in range(6):
        trials.append(paused(few, 0.5, **proposer(few).propose(number, trials)))
    assert len({tuple(trial.params.values()) for trial in trials}) == 6


def test_the_same_seed_and_number_propose_the_same() -> None:
    trials = [paused(SPACE, 0.5, lr=1e-3, r=8)]
    assert proposer().propose(1, trials) == proposer().propose(1, trials)
    assert proposer().propose(1, trials) != proposer().propose(2, trials)


def test_a_share_is_drawn_at_random_whatever_the_sampler() -> None:
    class Never(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            raise AssertionError("the sampler was asked")

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, *arguments: Any) -> Any:
            raise AssertionError("the sampler was asked")

    everything = proposer(random_share=1.0)
    everything.samplers.build = lambda number: Never()  # type: ignore[method-assign]
    assert 1e-4 <= everything.propose(0, [])["lr"] <= 1e-2


def test_random_points_keep_away_from_other_trials() -> None:
    def nearest(number: int) -> float:
        rate = proposer(random_share=1.0).propose(number, trials)["lr"]
        return min(abs(math.log10(rate / trial.params["lr"])) for trial in trials)

    trials = [paused(SPACE, 0.5, lr=rate, r=r) for rate in (1e-4, 3e-4, 1e-3) for r in (8, 16)]
    assert np.mean([nearest(number) for number in range(20)]) > 0.45  # of one draw it would be 0.31


def test_workers_that_begin_together_begin_apart() -> None:
    begun: list[FrozenTrial] = []
    for number in range(4):
        params = proposer().propose(number, begun)
        begun.append(create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE.distributions))
    rates = {r: [t.params["lr"] for t in begun if t.params["r"] == r] for r in (8, 16)}
    assert all(len(same) == 2 and abs(math.log10(same[0] / same[1])) > 0.5 for same in rates.values())


def test_thompson_sampling_goes_where_first_reports_were_low() -> None:
    rates = np.geomspace(1e-4, 1e-2, 10)
    trials = [paused(SPACE, 0.3 + abs(math.log10(rate / 1e-3)), lr=float(rate), r=8) for rate in rates]
    drawn = [proposer().propose(number, trials)["lr"] for number in range(10, 26)]
    assert np.median(np.abs(np.log10(np.array(drawn) / 1e-3))) < 0.4  # at random it would be 0.5


def test_a_draw_follows_what_was_seen() -> None:
    # a process with little noise returns what it has seen, and is unsure far away from it
    seen = np.array([[0.0], [1.0], [2.0]])
    draws = np.array(
        [
            thompson_draw(seen, np.array([1.0, 2.0, 4.0]), np.array([[0.0], [2.0], [50.0]]), random)
            for random in map(np.random.default_rng, range(200))
        ]
    )
    assert draws.mean(0)[0] < -0.9 < 0.9 < draws.mean(0)[1]
    assert draws.std(0)[2] == pytest.approx(1.0, abs=0.15)  # the prior's
    assert draws.std(0)[0] < 0.25


def test_a_trial_is_judged_by_its_first_report() -> None:
    assert first_score(create_trial(state=TrialState.PRUNED, intermediate_values={3: 0.2, 1: 0.5})) == 0.5
    assert first_score(create_trial(value=0.7)) == 0.7
    assert first_score(create_trial(state=TrialState.PRUNED, intermediate_values={1: math.nan})) is None


def test_numbers_lie_along_their_range_and_names_in_corners() -> None:
    assert to_unit(1e-3, RATE) == pytest.approx(0.5)
    assert from_unit(0.5, RATE) == pytest.approx(1e-3)
    assert from_unit(0.52, IntDistribution(0, 10, step=5)) == 5
    space = {"r": CategoricalDistribution((8, 16, 32)), "loss": CategoricalDistribution(("a", "b"))}
    left, right = features({"r": 8, "loss": "a"}, space), features({"r": 8, "loss": "b"}, space)
    assert np.linalg.norm(np.array(left) - np.array(right)) == pytest.approx(1.0)
    assert features({"r": 32, "loss": "a"}, space)[0] == pytest.approx(1 / 1.5)


def test_points_of_one_product_lie_closer_together() -> None:
    space = {
        "lr": RATE,
        "alpha": CategoricalDistribution((16, 32)),
        "loss": CategoricalDistribution(("a", "b")),
    }
    products = [["lr", "alpha"], ["lr", "loss"], ["lr", "elsewhere"]]

    def distance(rate: float, alpha: int) -> float:
        one = features({"lr": 1e-3, "alpha": 32, "loss": "a"}, space, products)
        other = features({"lr": rate, "alpha": alpha, "loss": "a"}, space, products)
        assert len(one) == 2 + 2 + 1  # names and absent keys make no product
        return math.dist(one, other)

    assert distance(2e-3, 16) < distance(1e-3, 16) < distance(0.5e-3, 16)
