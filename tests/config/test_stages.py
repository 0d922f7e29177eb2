"""The table of stages names every stage that a run may be told, and functions that exist."""

import inspect
from typing import get_args

import pytest

from vqa.config.settings import Stage
from vqa.config.stages import STAGES, stages_text


def test_every_stage_stands_in_the_table() -> None:
    assert tuple(STAGES) == get_args(Stage)


@pytest.mark.parametrize("name", STAGES)
def test_a_stages_function_takes_settings_and_folder(name: Stage) -> None:
    function = STAGES[name].load()
    inspect.signature(function).bind("settings", "folder")
    assert function.__doc__


def test_the_help_has_a_line_for_each_stage() -> None:
    assert [line.split()[0] for line in stages_text().splitlines()] == list(STAGES)
