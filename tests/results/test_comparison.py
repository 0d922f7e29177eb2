"""Trials together: ties, trials trained again, and who goes on in the race."""

import math

import numpy as np
import pytest

from vqa.results.comparison import Trained, compare, next_trainings, retraining_noise, standing_order
from vqa.results.uncertainty import picked_value, picture_codes, tie_widths

N = 60


def trial(number: int, *shifts: float, seed: int = 0, spread: float = 0.05) -> Trained:
    """A trial trained once for each shift; the questions' own difficulty is the same in all."""
    hard = np.random.default_rng(99).gamma(1.0, 0.5, N)
    nll = []
    for again, shift in enumerate(shifts):
        own = np.random.default_rng([number, again, seed]).normal(0, spread, N)
        nll.append({f"q{i}": float(value) for i, value in enumerate(hard + own - own.mean() + shift)})
    return Trained(number, tuple(nll), {f"q{i}": f"picture{i // 2}" for i in range(N)})


def test_ties_are_the_range_over_all_trials() -> None:
    trials = [trial(3, 0.0), trial(1, 0.005), trial(0, 0.2)]
    found = compare(trials)
    assert found.tied == {3: True, 1: True, 0: False}
    names = sorted(trials[0].nll[0])
    values = np.array([[t.nll[0][name] for name in names] for t in trials])
    codes = picture_codes([trials[0].pictures[name] for name in names])
    one, other = tie_widths(values, codes, 0)[1:]
    edge = compare([trials[0], trial(1, 0.99 * one), trial(0, 1.01 * other)])
    assert [edge.tied[1], edge.tied[0]] == [True, False]
    assert found.corrected == picked_value(values, codes, 0)
    assert (found.retraining_sd, found.retraining_share) == (None, None)


def test_other_questions_are_compared_by_themselves_or_not_at_all() -> None:
    best, same, far = trial(0, 0.0), trial(1, 0.001), trial(2, 0.3)
    half = Trained(3, ({f"q{i}": far.nll[0][f"q{i}"] for i in range(30)},), far.pictures)
    foreign = Trained(4, ({"x": 0.1, "y": 0.2},), {})
    assert compare([best, same, half, foreign]).tied == {0: True, 1: True, 3: False, 4: None}
    assert compare([Trained(0, ({},), {}), same]).tied == {0: True, 1: None}


def test_the_noise_of_training_is_the_spread_over_seeds() -> None:
    a, b = trial(0, 0.10, 0.16, 0.07), trial(1, 0.12, 0.17, 0.10)
    sd, apart = retraining_noise([a, b, trial(2, 0.3)])
    pooled = (np.var([0.10, 0.16, 0.07], ddof=1) + np.var([0.12, 0.17, 0.10], ddof=1)) / 2
    assert sd == pytest.approx(math.sqrt(pooled))
    assert apart == pytest.approx(math.sqrt(np.var([0.02, 0.01, 0.03], ddof=1) / 2))
    assert retraining_noise([trial(0, 0.1), trial(1, 0.2)]) == (None, 0.0)


def test_trials_are_compared_on_the_seeds_that_both_have() -> None:
    best = trial(0, 0.0, 0.30, 0.31)  # the other seeds are unlucky for all
    once = trial(1, 0.001)
    found = compare([best, trial(2, 0.002, 0.302, 0.311), once])
    assert found.tied == {0: True, 2: True, 1: True}
    share = found.retraining_share
    assert found.retraining_sd is not None
    assert share is not None
    assert found.retraining_sd > 0.15
    assert 0.5 < share < 1


def test_noise_of_training_makes_ties_of_what_the_questions_tell_apart() -> None:
    quiet = [trial(0, 0.0, 0.0, 0.0), trial(1, 0.05, 0.05, 0.05)]
    noisy = [trial(0, 0.0, 0.1, -0.1), trial(1, 0.15, -0.05, 0.05)]
    assert compare(quiet).tied[1] is False
    assert compare(noisy).tied[1] is True


def test_what_was_trained_again_stands_in_front() -> None:
    trials = [trial(0, 0.1), trial(1, 0.2, 0.3), trial(2, 0.3, 0.3, 0.3), trial(3, 0.25, 0.25, 0.3)]
    assert [t.trial for t in sorted(trials, key=standing_order)] == [3, 2, 1, 0]


def test_the_race_takes_the_tied_and_drops_the_worse() -> None:
    tied = [trial(n, 0.001 * n) for n in range(5)]
    assert next_trainings([*tied, trial(5, 0.5)], left=6) == [0, 1, 2]
    assert next_trainings([*tied, trial(5, 0.5)], left=3) == [0, 1]
    assert next_trainings([trial(0, 0.0), trial(1, 0.5)], left=6) == []
    after = [trial(0, 0.0, 0.0), trial(1, 0.001, 0.001), trial(2, 0.002, 0.4), trial(3, 0.01)]
    assert 2 not in next_trainings(after, left=3) or compare(after).tied[2]
    assert next_trainings([trial(0, 0.0, 0.0), trial(1, 0.0, 0.4)][:1], left=3) == []
    assert next_trainings(after, left=1) == []
