"""The replay of searches: how one is named, and what its gain over the default is."""

import math

import pytest

from benchmarks.search.samplers import Search, gain_over, search_of


def test_a_search_is_named_with_values_of_its_pruner() -> None:
    assert search_of("tpe+median") == Search("tpe", "median")
    named = search_of("thompson+promote+first_rung=2+random_share=0.5")
    assert named == Search("thompson", "promote", (("first_rung", 2), ("random_share", 0.5)))
    assert search_of("thompson+promote+n_trials=1") == Search("thompson", "promote", n_trials=1)


def test_a_gain_is_paired_by_seed() -> None:
    gain = gain_over([0.3, 0.1, 0.2, 0.4], [0.2, 0.0, 0.1, 0.3])
    assert gain["mean"] == pytest.approx(0.1)
    assert gain["se"] == pytest.approx(0.0)
    assert gain["p"] == pytest.approx(2 / 16, abs=0.02)  # all four signs alike: 2 of 16 ways


def test_a_search_that_found_nothing_under_a_seed_has_no_gain() -> None:
    assert gain_over([0.3, 0.1], [0.2, math.inf]) == {"mean": None, "se": None, "p": None}
