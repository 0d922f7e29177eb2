"""Every message exists in both languages, with the same fields."""

import io
import re
import string
import sys
from pathlib import Path

import pytest

import vqa
from vqa.config.messages import MESSAGES, message, worded


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("name", MESSAGES)
def test_both_languages_have_the_same_fields(name: str) -> None:
    english, korean = MESSAGES[name]
    assert fields(english) == fields(korean)


def test_a_message_is_filled_in_in_the_users_language() -> None:
    assert message("en", "next", what="x") == "next: x"
    assert message("ko", "next", what="x") == "다음: x"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "next: x"), ("utf-8", "다음: x"), ("cp949", "다음: x")]
)
def test_a_terminal_without_korean_letters_gets_english(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert message("ko", "next", what="x") == shown


def test_every_piece_of_work_that_reports_progress_has_korean_words() -> None:
    told = set()
    for path in Path(vqa.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        told |= set(re.findall(r'(?<!def )\bprogress\(f?"([^"]+)"', text))
        told |= set(re.findall(r'\bscore\([^)]*, f?"([^"]+)"\)', text))
    filled = {re.sub(r"\{[^}]*method\}", "sar", name) for name in told}
    filled = {re.sub(r"\{[^}]*\}", "2", name) for name in filled}
    assert len(filled) >= 8
    assert {name for name in filled if worded("ko", name) == name} == set()
    assert worded("en", "training") == "training"
