"""Weights of an ensemble: families share, few rows change little, gains are of rows that were left out."""

import numpy as np
import pytest
from scipy.optimize import brute

from vqa.answer.weighing import (
    _Pool,
    average,
    best_member,
    cross_fitted_average,
    family_shares,
    fitted_weights,
    gains,
    greedy_weights,
    likeness,
)
from vqa.results.metrics import nll
from vqa.results.predictions import Prediction

P = tuple[float, ...]


def row(name: str, p: P, gold: str = "a", picture: str = "") -> Prediction:
    return Prediction(name, "abcdef"[p.index(max(p))], p, 1.0, gold, image_sha256=picture)


def answers(n: int, skill: float, noise: float, seed: int, shared: int = 0) -> list[Prediction]:
    """A member of so much skill and noise; members of one `shared` seed make the same mistakes.

    Every third question has three options, and two questions are about one picture.
    """
    golds = np.random.default_rng(7).integers(0, 3, n)
    common, own = np.random.default_rng(1000 + shared), np.random.default_rng(seed)
    found = []
    for i, gold in enumerate(golds):
        scores = noise * common.normal(size=4) + 0.1 * own.normal(size=4)
        scores[gold] += skill
        scores = scores[: 3 if i % 3 == 0 else 4]
        p = np.exp(scores) / np.exp(scores).sum()
        found.append(row(f"q{i}", tuple(p.tolist()), "abc"[gold], f"picture{i // 2}"))
    return found


def test_a_family_counts_once_however_many_members_it_has() -> None:
    assert family_shares(["a", "a", "b", "a"]) == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6])


def test_the_greedy_selection_leaves_a_useless_member_out() -> None:
    assert greedy_weights([[row("1", (0.1, 0.7, 0.2))], [row("1", (0.7, 0.1, 0.2))]]) == [0, 1]


def test_weights_without_a_pull_have_the_lowest_nll() -> None:
    members = [answers(120, 1.0, 1.0, 1, shared=1), answers(120, 0.8, 1.0, 2, shared=2)]
    found = _Pool.of(members).weights(np.array([0.5, 0.5]), 0.0)
    by_search = brute(
        lambda w: nll(average(members, [w[0], 1 - w[0]]))[0], [(0.001, 0.999)], Ns=200, finish=None
    )
    assert found[0] == pytest.approx(float(by_search), abs=0.01)
    assert sum(found) == pytest.approx(1)


def test_the_pools_nll_and_slope_are_those_of_the_average() -> None:
    members = [answers(60, 1.0, 1.0, 1, shared=1), answers(60, 0.8, 1.0, 2, shared=2)]
    pool, weights = _Pool.of(members), np.array([0.3, 0.7])
    values, slope = pool.nll(weights)
    assert values.mean() == pytest.approx(nll(average(members, [0.3, 0.7]))[0])
    step = 1e-6
    numeric = [
        (pool.nll(weights + step * unit)[0].mean() - pool.nll(weights - step * unit)[0].mean()) / (2 * step)
        for unit in np.eye(2)
    ]
    assert slope == pytest.approx(numeric, rel=1e-4)


def test_a_useless_member_loses_its_weight_where_rows_are_many() -> None:
    good, useless = answers(400, 1.5, 0.7, 1, shared=1), answers(400, 0.0, 2.0, 2, shared=2)
    weights = fitted_weights([good, useless], [0.5, 0.5])
    assert weights[1] < 0.15
    assert sum(weights) == pytest.approx(1)


def test_members_that_tell_no_difference_keep_the_shares_of_their_families() -> None:
    members = [answers(200, 1.0, 1.0, 1), answers(200, 1.0, 1.0, 2), answers(200, 1.0, 1.0, 3, shared=1)]
    shares = family_shares(["a", "a", "b"])
    assert fitted_weights(members, shares) == pytest.approx(shares)


def test_few_rows_change_nothing() -> None:
    members = [[row("1", (0.1, 0.9))], [row("1", (0.9, 0.1))]]
    assert fitted_weights(members, [0.5, 0.5]) == [0.5, 0.5]
    assert gains(members, lambda rows: [0.5] * 2) == {}


def test_a_row_is_weighed_by_the_pictures_of_other_parts() -> None:
    members = [answers(60, 1.0, 1.0, 1, shared=1), answers(60, 1.0, 1.0, 2, shared=2)]
    seen: list[set[str]] = []

    def weigh(others: object) -> list[float]:
        rows = others[0]  # type: ignore[index]
        seen.append({p.image_sha256 for p in rows})
        return [1.0, 0.0]

    found = cross_fitted_average(members, weigh)
    assert found is not None
    assert [p.id for p in found] == [p.id for p in members[0]]
    everything = {p.image_sha256 for p in members[0]}
    left_out = [everything - pictures for pictures in seen]
    assert sum(map(len, left_out)) == len(everything)
    assert set.union(*left_out) == everything


def test_noise_alone_gains_nothing_over_equal_weights() -> None:
    """Ten small sets of members that are equally good: fitting them in full would report a gain."""
    by = []
    for seed in range(10):
        members = [answers(60, 0.6, 1.5, 10 * seed + i, shared=10 * seed + i) for i in range(5)]
        found = gains(members, lambda rows: fitted_weights(rows, [0.2] * 5))
        by.append(found["over_equal_weights"]["nll"][0])
    assert abs(float(np.mean(by))) < 0.01
    assert max(by) < 0.05


def test_members_of_other_families_gain_over_the_best_one_and_the_interval_says_so() -> None:
    members = [answers(600, 1.0, 1.2, i, shared=i) for i in range(3)]
    found = gains(members, lambda rows: fitted_weights(rows, [1 / 3] * 3))
    assert found["over_best_member"]["nll"][2] < 0
    assert found["over_best_member"]["accuracy"][1] > 0


def test_likeness_is_high_for_members_that_miss_the_same_questions() -> None:
    alike = [
        answers(200, 1.0, 1.0, 1, shared=1),
        answers(200, 1.0, 1.0, 2, shared=1),
        answers(200, 1, 1, 3, 3),
    ]
    first, second, third = likeness(alike)
    assert min(first, second) > third + 0.2
    assert best_member([alike[0], answers(200, 3.0, 0.1, 9, shared=9)]) == [0.0, 1.0]
