"""From Hydra's sweep syntax to Optuna's distributions and back to overrides."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from vqa.errors import UserError
from vqa.sweep.search.space import override_value, overrides_of, plain_value, read_enqueued, read_search_space

PARAMS = {
    "lr": "tag(log, interval(1e-5, 1e-3))",
    "lora.r": "choice(8,16,32)",
    "image": "choice(native,pad_512)",
}


@pytest.mark.parametrize(
    ("syntax", "distribution"),
    [
        ("tag(log, interval(1e-5, 1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("interval(0.0, 0.5)", FloatDistribution(0.0, 0.5)),
        ("choice(8,16,32)", CategoricalDistribution((8, 16, 32))),
        ("choice(true,false)", CategoricalDistribution((True, False))),
        ("range(1,4)", IntDistribution(1, 3)),
        ("native,pad_512", CategoricalDistribution(("native", "pad_512"))),
    ],
)
def test_hydras_sweep_syntax_is_understood(syntax: str, distribution: object) -> None:
    assert read_search_space({"key": syntax}, []).distributions == {"key": distribution}


@pytest.mark.parametrize(
    ("arguments", "searched", "fixed"),
    [
        ([], ["lr", "lora.r", "image"], ()),
        (["lora.r=16"], ["lr", "image"], ("lora.r=16",)),
        (["++lora.r=16"], ["lr", "image"], ("++lora.r=16",)),
        (["+sweep=lora", "~extra"], ["lr", "lora.r", "image"], ("+sweep=lora", "~extra")),
        (["lora.r=4,8"], ["lr", "lora.r", "image"], ()),
        (["model=tiny,big"], ["lr", "lora.r", "image", "model"], ()),
    ],
)
def test_the_command_line_wins_over_the_space(
    arguments: list[str], searched: list[str], fixed: tuple[str, ...]
) -> None:
    space = read_search_space(PARAMS, arguments)
    assert list(space.distributions) == searched
    assert space.fixed == fixed


def test_a_range_on_the_command_line_replaces_the_configs() -> None:
    space = read_search_space({"lora.r": "choice(8,16)", "a": 3}, ["lora.r=4,8", "a=1,2"])
    assert space.distributions["lora.r"] == CategoricalDistribution((4, 8))
    assert space.distributions["a"] == CategoricalDistribution((1, 2))
    assert space.fixed == ()


class Groups:
    """Stands in for Hydra's loader: knows the options of one group."""

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        return ["native", "pad_512", "pad_448"] if group == "image" else []


@pytest.mark.parametrize(
    ("glob", "choices"), [("glob(*)", ("native", "pad_512", "pad_448")), ("glob(*,exclude=p*)", ("native",))]
)
def test_a_glob_is_a_choice_of_the_groups_options(glob: str, choices: tuple[str, ...]) -> None:
    groups: Any = Groups()
    assert read_search_space({}, [f"image={glob}"], groups).distributions == {
        "image": CategoricalDistribution(choices)
    }
    assert read_search_space({"image": glob}, [], groups).keys == ["image"]


@pytest.mark.parametrize("argument", ["lora.r=glob(*)", "image=glob(big*)"])
def test_a_glob_that_matches_nothing_is_refused(argument: str) -> None:
    groups: Any = Groups()
    with pytest.raises(UserError, match=r"command line: cannot read .*: no option of a config group matches"):
        read_search_space({}, [argument], groups)


def test_plain_values_and_nulls_among_the_params_are_not_searched() -> None:
    space = read_search_space({**PARAMS, "lr": None, "seed": 3, "flag": True}, [])
    assert list(space.distributions) == ["lora.r", "image"]
    assert space.fixed == ("seed=3", "flag=true")


@pytest.mark.parametrize(
    ("params", "arguments", "message"),
    [
        ({"lr": "interval(1,"}, [], r"hydra.sweeper.params.lr: cannot read 'lr=interval\(1,'"),
        ({"lr": "tag(log, interval(-1.0, 1.0))"}, [], "hydra.sweeper.params.lr: cannot read"),
        (PARAMS, ["lora.r=choice("], "command line: cannot read"),
        ({}, ["lr=3"], "hydra.sweeper.params is empty, or the command line fixes every searched key"),
        ({"lr": "choice(1,2)"}, ["lr=3"], "nothing to search"),
    ],
)
def test_a_space_that_cannot_be_read_is_refused(
    params: dict[str, Any], arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_search_space(params, arguments)


def test_enqueued_configurations_lose_what_the_command_line_fixes() -> None:
    space = read_search_space(PARAMS, ["lora.r=16"])
    entries: list[dict[str, Any]] = [
        {"lr": 1e-4, "lora.r": 8},
        {"lr": 1e-4, "lora.r": 32},
        {"lora.r": 8},
        {"image": "pad_512"},
    ]
    assert read_enqueued(entries, space) == [{"lr": 1e-4}, {"image": "pad_512"}]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"lr": 1.0}, r"hydra.sweeper.enqueue\[0\]: lr must lie in FloatDistribution"),
        (
            {"lora.r": 64},
            r"enqueue\[0\]: lora.r must lie in CategoricalDistribution\(choices=\(8, 16, 32\)\), got 64",
        ),
        ({"lr": "fast"}, r"enqueue\[0\]: lr must lie in"),
        ({"rank": 8}, r"enqueue\[0\] names 'rank', which is not searched. Searched: lr, lora.r, image"),
    ],
)
def test_an_enqueued_configuration_outside_the_space_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_enqueued([entry], read_search_space(PARAMS, []))


@pytest.mark.parametrize("value", [1e-05, 0.00012345678901234567, 16, True, None, "pad_512", [1, 2]])
def test_a_value_survives_the_way_through_an_override(value: object) -> None:
    [parsed] = OverridesParser.create().parse_overrides([f"key={override_value(value)}"])
    assert parsed.value() == value
    assert plain_value(override_value(value)) == value


def test_overrides_of_a_mapping() -> None:
    assert overrides_of({"lr": 1e-5, "on": False, "x": None}) == ["lr=1e-05", "on=false", "x=null"]


def test_samples_name_every_choice() -> None:
    samples = read_search_space(PARAMS, []).samples()
    assert samples[0] == {"lr": 1e-5, "lora.r": 8, "image": "native"}
    assert {sample["lora.r"] for sample in samples} == {8, 16, 32}
    assert {sample["image"] for sample in samples} == {"native", "pad_512"}
