"""Rules that choose among trials which were trained once."""

import numpy as np

from benchmarks.search.ranking import choices

PARAMS = [{"optimizer.lr": lr, "lora.r": r} for lr, r in ((4e-3, 8), (1e-3, 32), (2e-3, 8), (5e-4, 8))]


def test_each_rule_chooses_among_those_within_its_width() -> None:
    scores, widths = np.array([0.40, 0.42, 0.43, 0.90]), np.array([0.0, 0.04, 0.04, 0.04])
    far = np.array([[0.0], [9.0], [18.0], [27.0]])
    chosen = choices(scores, widths, PARAMS, far, 0.01)
    assert chosen["lowest_score"] == 0
    assert chosen["lowest_rate_within_0.25"] == 0
    assert chosen["lowest_rate_within_0.5"] == 1
    assert chosen["plainest_within_0.5"] == 0
    assert chosen["plainest_within_1.0"] == 2
    assert chosen["lowest_rate_within_2.0"] == 1
    assert chosen["smoothed"] == 0  # nobody has a neighbour


def test_a_lucky_score_among_bad_neighbours_is_smoothed_away() -> None:
    scores = np.array([0.40, 0.60, 0.61, 0.42, 0.43, 0.42])
    near = np.array([[0.0], [0.1], [-0.1], [5.0], [5.1], [4.9]])
    params = [{"optimizer.lr": 1e-3, "lora.r": 8}] * 6
    chosen = choices(scores, np.full(6, 0.05), params, near, 0.1)
    assert chosen["lowest_score"] == 0
    assert chosen["smoothed"] in (3, 4, 5)
