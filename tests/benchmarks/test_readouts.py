"""Tables of the read-outs and of the losses, from results written by hand."""

import pytest

from benchmarks.search.losses import best_rate, summarised
from benchmarks.shifts.readouts import READOUTS, SEPARATE, compared, printed


def test_a_read_out_is_compared_with_letters_and_cyclic_orders_with_separate_passes() -> None:
    seconds = {key: [0.001, 0.002] for key in READOUTS} | {"cyclic": [0.002, 0.004], SEPARATE: [0.006, 0.008]}
    answers = {key: [1, 0, 1, 0] for key in READOUTS} | {"cyclic": [1, 1, 1, 0]}
    nll = {key: [0.1, 2.0, 0.1, 2.0] for key in READOUTS} | {"cyclic": [0.1, 0.1, 0.1, 2.0]}
    cell = {"dataset": "d", "shift": "clean", "seed": 0, "right": answers, "nll": nll}
    cell |= {"mcnemar_p": dict.fromkeys(READOUTS, 1.0)}
    table = {row["readout"]: row for row in compared([cell | {"seconds_per_row": seconds}])}
    assert table["cyclic"]["gain"] == 0.25
    assert table["cyclic"]["nll_gain"] == pytest.approx(-1.9 / 4)
    assert table["cyclic"]["cost"] == 2.0
    assert table[SEPARATE]["times_cyclic"] == 2.5
    assert table[SEPARATE]["times_cyclic_range"] == [2.0, 3.0]
    assert "| d, clean | cyclic | 75.0" in printed(list(table.values()))


def test_a_loss_is_judged_at_its_best_rate_on_held_out_rows() -> None:
    cell = {"dataset": "d", "loss": "full", "accuracy": 0.5, "test_accuracy": 0.4, "option_mass": 1.0}
    results = [
        cell | {"lr": lr, "seed": seed, "nll": nll, "test_nll": 10 * nll, "seconds_per_1000": 3.0}
        for lr, seed, nll in ((1e-3, 0, 0.5), (1e-3, 1, 0.7), (3e-3, 0, 0.4), (3e-3, 1, 0.9))
    ]
    assert best_rate(results, "d", "full") == 1e-3
    [row] = summarised(results)
    assert (row["lr"], row["seeds"], row["nll"]) == (1e-3, 2, pytest.approx(0.6))
    assert row["test_nll_by_seed"] == [5.0, 7.0]
