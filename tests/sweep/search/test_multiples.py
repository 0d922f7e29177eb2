"""Alpha searched as a multiple of r: the study draws the ratio, everybody else sees alpha."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution

from tests.helpers.toy_app.harness import board_rows, run_toy, trials_of
from vqa.errors import UserError
from vqa.sweep.search.space import (
    drawn_values,
    key_of,
    other_of,
    overrides_of,
    plain_values,
    read_enqueued,
    read_search_space,
    searched_name,
)

ALPHA = "lora.lora_alpha / lora.r"
PARAMS = {"lora.r": "choice(8, 16)", "lora.lora_alpha": "tag(times:lora.r, choice(1, 2, 4))"}


def test_a_tag_of_hydras_grammar_makes_a_multiple() -> None:
    space = read_search_space(PARAMS, [])
    assert space.distributions == {
        "lora.r": CategoricalDistribution((8, 16)),
        ALPHA: CategoricalDistribution((1, 2, 4)),
    }
    assert space.keys == ["lora.r", "lora.lora_alpha"]
    assert (key_of(ALPHA), other_of(ALPHA), other_of("lora.r")) == ("lora.lora_alpha", "lora.r", "")
    logged = read_search_space(
        {**PARAMS, "lora.lora_alpha": "tag(log, times:lora.r, interval(0.5, 4.0))"}, []
    )
    assert logged.distributions[ALPHA] == FloatDistribution(0.5, 4.0, log=True)


@pytest.mark.parametrize(
    ("drawn", "plain"),
    [
        ({"lora.r": 16, ALPHA: 2}, {"lora.r": 16, "lora.lora_alpha": 32}),
        ({ALPHA: 0.5, "lora.r": 16}, {"lora.r": 16, "lora.lora_alpha": 8}),
        ({"lora.r": 8, ALPHA: 0.3}, {"lora.r": 8, "lora.lora_alpha": 2.4}),
    ],
)
def test_drawn_and_plain_values_turn_into_each_other(drawn: dict[str, Any], plain: dict[str, Any]) -> None:
    assert plain_values(drawn) == pytest.approx(plain)
    assert drawn_values("here", plain, drawn) == pytest.approx(drawn)


def test_whole_numbers_stay_whole() -> None:
    assert overrides_of(plain_values({"lora.r": 16, ALPHA: 0.5})) == ["lora.r=16", "lora.lora_alpha=8"]


def test_a_multiple_waits_for_its_other_number() -> None:
    assert plain_values({ALPHA: 2}) == {}


@pytest.mark.parametrize("argument", ["lora.lora_alpha=32", "lora.lora_alpha=16,32"])
def test_the_command_line_wins_over_a_multiple(argument: str) -> None:
    assert ALPHA not in read_search_space(PARAMS, [argument]).distributions


def test_a_multiple_can_be_asked_for_on_the_command_line() -> None:
    space = read_search_space(
        {"lora.r": "choice(8, 16)"}, ["lora.lora_alpha=tag(times:lora.r, choice(1, 2))"]
    )
    assert list(space.distributions) == ["lora.r", ALPHA]


@pytest.mark.parametrize(("params", "arguments"), [(PARAMS, ["lora.r=64"]), ({**PARAMS, "lora.r": 64}, [])])
def test_a_fixed_other_number_becomes_a_range_of_one_value(
    params: dict[str, Any], arguments: list[str]
) -> None:
    space = read_search_space(params, arguments)
    assert space.distributions["lora.r"] == CategoricalDistribution((64,))
    assert space.fixed == ("lora.r=64",)
    assert {sample["lora.lora_alpha"] for sample in space.samples()} == {64, 128, 256}
    # 32 = 2 x 16 was known to be good: twice the rank, whatever the rank is now
    assert read_enqueued([{"lora.r": 16, "lora.lora_alpha": 32}], space) == [{ALPHA: 2}]


def test_enqueued_values_are_plain() -> None:
    entries: list[dict[str, Any]] = [{"lora.r": 16, "lora.lora_alpha": 32}, {"lora.r": 8}]
    assert read_enqueued(entries, read_search_space(PARAMS, [])) == [{"lora.r": 16, ALPHA: 2}, {"lora.r": 8}]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"lora.r": 16, "lora.lora_alpha": 128},
            r"lora.lora_alpha / lora.r must lie in .*\(1, 2, 4\)\), got 8",
        ),
        ({"lora.r": 16, "lora.lora_alpha": "high"}, r"lora.lora_alpha / lora.r must lie in .*, got nan"),
        (
            {"lora.lora_alpha": 32},
            r"enqueue\[0\] names lora.lora_alpha without lora.r, of which it is a multi",
        ),
    ],
)
def test_an_enqueued_value_that_is_no_such_multiple_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_enqueued([entry], read_search_space(PARAMS, []))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"a": "tag(times:b, choice(1, 2))"},
            "a is searched as a multiple of b, so b must be searched by itse",
        ),
        (
            {"a": "tag(times:b, choice(1, 2))", "b": "tag(times:c, choice(1, 2))", "c": 3},
            "multiple of b, so b must be searched by itself or fixed",
        ),
        ({"a": "tag(times:b, choice(x, y))", "b": 3}, "a / b must be numbers, as a / b is searched"),
        ({"a": "tag(times:b, choice(1, 2))", "b": "native"}, "b must be numbers, as a / b is searched"),
        ({"a": "tag(times:b, choice(1, 2))", "b": "choice(true, false)"}, "b must be numbers"),
        ({"a": "tag(time:b, choice(1, 2))", "b": 3}, "a: tag must be log or one times:KEY, got time:b"),
        ({"a": "tag(times:b, times:c, choice(1, 2))"}, "one times:KEY, got times:b, times:c"),
        ({"a": "tag(times:, choice(1, 2))"}, "a: tag must be log or one times:KEY, got times:"),
    ],
)
def test_a_multiple_of_nothing_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_search_space(params, [])


def test_tags_other_than_multiples_leave_the_name() -> None:
    assert searched_name("optimizer.lr", {"log"}) == "optimizer.lr"


def test_a_study_draws_the_ratio_and_shows_the_plain_value(tmp_path: Path) -> None:
    multiple = "pause_s=tag(times:lora.r, choice(0.0, 0.001))"
    run_toy(
        tmp_path, multiple, "hydra.sweeper.n_trials=4", "hydra.sweeper.enqueue=[{lora.r: 16, pause_s: 0.016}]"
    )
    study = tmp_path / "multirun/toy"
    first = trials_of(tmp_path)[0]
    assert {name: first.params[name] for name in ("lora.r", "pause_s / lora.r")} == {
        "lora.r": 16,
        "pause_s / lora.r": 0.001,
    }
    assert "pause_s=0.016" in (study / "trials/000/.hydra/overrides.yaml").read_text()
    rows = {row["trial"]: row for row in board_rows(tmp_path)}
    assert (rows["0"]["lora.r"], rows["0"]["pause_s"]) == ("16", "0.016")
    best = OmegaConf.load(study / "best.yaml")
    assert best.pause_s in {0.0, 0.001 * best.lora.r}
    assert f"pause_s={best.pause_s}" in (study / "final/.hydra/overrides.yaml").read_text()
    with pytest.raises(UserError, match=r"space pause_s / lora\.r: .* before, nothing now"):
        run_toy(
            tmp_path, "pause_s=choice(0.0, 0.001)", "hydra.sweeper.n_trials=4", "hydra.sweeper.enqueue=[]"
        )
