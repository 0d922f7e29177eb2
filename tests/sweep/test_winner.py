"""best.yaml: an experiment file and a command line."""

from pathlib import Path
from typing import Any

import yaml

from vqa.sweep.final_run import read_winner, winner_text, write_winner
from vqa.sweep.leaderboard import Scores, Standing, winner_of


def standing(number: int, state: str = "COMPLETE", **params: Any) -> Standing:
    return Standing(number, state, 0.5, None, 1.0, params, Scores(0, None, {}, {}))


def text(params: dict[str, Any], record: dict[str, Any] | None = None, groups: tuple[str, ...] = ()) -> str:
    best = Standing(3, "COMPLETE", 0.5, None, 1.0, params, Scores(0, None, {}, {}))
    return winner_text([best], record or {}, groups)


def test_only_a_complete_trial_can_win() -> None:
    assert winner_of([]) is None
    assert winner_of([standing(1, "PRUNED"), standing(2, "FAIL")]) is None
    assert winner_of([standing(4), standing(1, "PRUNED")]) == standing(4)


def test_values_are_nested_and_groups_become_defaults() -> None:
    params = {"optimizer.lr": 1e-05, "lora.r": 16, "lora.on": True, "image": "pad_512", "+x.note": "a, b"}
    content = yaml.safe_load(text(params, {"budget.passes": 2}, groups=("image",)))
    assert content == {
        "defaults": [{"override /image": "pad_512"}, "_self_"],
        "optimizer": {"lr": 1e-05},
        "lora": {"r": 16, "on": True},
        "x": {"note": "a, b"},
        "budget": {"passes": 2},
    }


def test_a_group_that_the_configuration_lacks_is_added_and_read_back(tmp_path: Path) -> None:
    written = text({"+image@small": "native", "model": "tiny"}, groups=("+image@small", "model"))
    assert yaml.safe_load(written) == {
        "defaults": [{"/image@small": "native"}, {"override /model": "tiny"}, "_self_"]
    }
    assert "On a command line: +image@small=native model=tiny" in written
    (tmp_path / "best.yaml").write_text(written)
    assert read_winner(tmp_path / "best.yaml") == ["+image@small=native", "model=tiny"]


def test_a_key_that_the_configuration_lacks_is_added_when_it_is_read_back(tmp_path: Path) -> None:
    written = text({"+lora.fan_in_fan_out": False, "lora.r": 8})
    assert "On a command line: +lora.fan_in_fan_out=false lora.r=8" in written
    (tmp_path / "best.yaml").write_text(written)
    assert read_winner(tmp_path / "best.yaml") == ["++lora.fan_in_fan_out=false", "++lora.r=8"]


def test_the_head_tells_score_and_command_line() -> None:
    lines = text({"optimizer.lr": 1e-05, "targets": ["q", "v"]}, {"passes": 2}).splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == "# Trial 3: NLL 0.5000"
    assert lines[3] == "# On a command line: optimizer.lr=1e-05 'targets=[q,v]' passes=2"


def test_a_value_of_several_lines_stays_one_value(tmp_path: Path) -> None:
    words = "Look:\nlora: {r: 1}"
    written = text({"prompt.system": words})
    assert yaml.safe_load(written) == {"prompt": {"system": words}}
    (tmp_path / "best.yaml").write_text(written)
    assert read_winner(tmp_path / "best.yaml") == [f"++prompt.system='{words}'"]


def test_it_is_written_for_config_dir_as_well(tmp_path: Path) -> None:
    write_winner("a: 1\n", tmp_path)
    write_winner("a: 1\n", tmp_path)
    assert (tmp_path / "best.yaml").read_text() == (tmp_path / "experiment/best.yaml").read_text() == "a: 1\n"
