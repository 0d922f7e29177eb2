"""A bar for people at a terminal, silence for everybody else."""

import pytest

from vqa.progress import progress, shown_progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes standard output for a terminal that understands colours; the console is made anew for it."""
    monkeypatch.setattr("vqa.terminal._console", None)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def advance() -> None:
    for done in (1, 2, 3):
        progress("training", done, 3)
    progress("held-out part", 16, 64)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_each_piece_of_work_and_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress():
        advance()
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("training", "3/3", "held-out part", "16/64"):
        assert text in shown.out


@pytest.mark.usefixtures("terminal")
def test_nothing_is_shown_after_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress():
        pass
    capsys.readouterr()
    advance()
    assert capsys.readouterr().out == ""


def test_a_file_or_pipe_gets_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with shown_progress():
        advance()
    assert capsys.readouterr().out == ""
