"""Every message exists in both languages, with the same fields."""

import io
import string
import sys

import pytest

from vqa.config.messages import MESSAGES, message


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
