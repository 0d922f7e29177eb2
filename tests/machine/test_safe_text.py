"""What strangers wrote reaches neither terminal nor log as a command, and secrets reach nothing."""

import logging

import pytest

from vqa.config.messages import message
from vqa.machine.safe_text import SafeRecord, mask_secrets, shown


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, 한국어, 👩‍🚀, café", "plain, 한국어, 👩‍🚀, café"),
        ("\x1b[2J\x1b]52;c;ZXZpbA==\x07", r"\x1b[2J\x1b]52;c;ZXZpbA==\x07"),
        ("a\r\nb", "a\\r\n  b"),
        (
            "id\n2026-01-01 00:00 INFO vqa: all good",
            "id\n  2026-01-01 00:00 INFO vqa: all good",
        ),
        ("back\x08space, bell\x07, null\x00, delete\x7f", r"back\x08space, bell\x07, null\x00, delete\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2028line", r"\u2028line"),
        ("\x9b31m", r"\x9b31m"),
        ("\udce9.png", r"\udce9.png"),
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
    ],
)
def test_control_characters_are_written_out_and_lines_cannot_be_forged(text: str, expected: str) -> None:
    assert shown(text) == expected
    record = SafeRecord("vqa", logging.INFO, "", 0, "%s", (text,), None)
    assert record.getMessage() == expected


def test_what_a_secret_variable_holds_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    monkeypatch.setenv("DB_PASSWORD", "correct horse")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    text = {"a": ["see hf_planted_secret", "1"], "uri": "http://correct horse/x"}
    assert mask_secrets(text) == {"a": ["see ***", "1"], "uri": "http://***/x"}


@pytest.mark.hostile
@pytest.mark.parametrize("name", ["[/]", "[bold red]x[/bold red]", "[link=http://evil]x[/link]", "[/x]"])
def test_brackets_in_a_name_are_no_markup(name: str) -> None:
    from rich.console import Console

    console = Console(width=400, color_system=None)
    with console.capture() as captured:
        console.print(message("en", "complete", folder=name))
    assert f"nothing left to do: {name} is complete" in captured.get()
