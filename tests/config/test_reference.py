"""Every setting has a meaning, and the documentation's page says what the code says."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from vqa.config import settings
from vqa.config.reference import help_text, keys, meanings, page, rule, type_of
from vqa.config.settings import is_under

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "python -m vqa.config.reference > docs/settings.md"


def test_every_key_has_a_meaning() -> None:
    for name, found in meanings().items():
        group: Any = getattr(settings, name)
        if issubclass(group, settings.Group) and group is not settings.Group:
            hints = get_type_hints(group)
            own = {f.name for f in fields(group) if f.name != "plain" and not is_dataclass(hints[f.name])}
            assert own == set(found)


def test_help_names_every_key_once() -> None:
    lines = help_text().splitlines()
    assert [line.split()[0] for line in lines] == [key for key, _, _ in keys()]
    assert len(set(lines)) > 80


def test_a_key_is_under_its_own_names_only() -> None:
    assert is_under("env.device", ["winner", "env"])
    assert is_under("winner", ["winner", "env"])
    assert not is_under("environment", ["winner", "env"])
    assert not is_under("env", ["env.device"])


@pytest.mark.parametrize(
    ("key", "short", "whole"),
    [
        ("budget.epochs", ">= 1", "a whole number >= 1"),
        ("budget.holdout_share", "in (0, 0.5]", "a number in (0, 0.5]"),
        ("scheduler.warmup_ratio", "in [0, 1)", "a number in [0, 1)"),
        ("image.cache_gib", ">= 0 GiB or null", "a number >= 0 GiB or null"),
        ("ensemble.selection", "one of all, greedy, fitted", "one of all, greedy, fitted"),
        ("quantization.weights", "a mapping or null", "a mapping or null"),
        ("ensemble.members", "a list", "a list"),
        ("final.members", "folds or >= 1", "folds or a whole number >= 1"),
    ],
)
def test_a_type_is_a_rule_in_words(key: str, short: str, whole: str) -> None:
    declared = type_of(key.split("."))
    assert (rule(declared), rule(declared, with_kind=True)) == (short, whole)
