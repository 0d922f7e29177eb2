"""Which way a batch is cut next when memory does not suffice."""

import logging

import pytest

from vqa.model.memory import Ladder, Rung, rungs


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqa.model.memory._held", {})


def test_computing_twice_comes_before_small_micro_batches() -> None:
    assert rungs(6) == [
        Rung(6, "nothing"),
        Rung(6, "mlp"),
        Rung(6, "layer"),
        Rung(3, "layer"),
        Rung(2, "layer"),
        Rung(1, "layer"),
    ]


def test_large_micro_batches_come_before_computing_twice() -> None:
    keeping = [Rung(size, recompute) for recompute in ("nothing", "mlp") for size in (64, 32, 16)]
    assert rungs(64) == keeping + [Rung(size, "layer") for size in (64, 32, 16, 8, 4, 2, 1)]


def test_one_question_can_still_be_made_leaner() -> None:
    assert rungs(1) == [Rung(1, "nothing"), Rung(1, "mlp"), Rung(1, "layer")]


def test_the_ladder_ends_and_says_each_step(caplog: pytest.LogCaptureFixture) -> None:
    ladder = Ladder(2, ("model",))
    with caplog.at_level(logging.WARNING):
        assert [ladder.step_down() for _ in range(4)] == [True, True, True, False]
    assert ladder.rung == Rung(1, "layer")
    assert "out of memory: micro-batches of 2, computing each mlp twice from here, same result" in caplog.text


def test_the_next_fit_of_the_same_shape_begins_where_the_last_one_held() -> None:
    Ladder(8, ("model",)).step_down()
    assert Ladder(8, ("model",)).rung == Rung(8, "mlp")
    assert Ladder(8, ("another",)).rung == Rung(8, "nothing")
    assert Ladder(4, ("model",)).rung == Rung(4, "nothing")
