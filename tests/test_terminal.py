"""Log lines, bars and the live table share one terminal: nothing is overwritten, nothing piles up."""

import logging
import logging.config
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from tests.helpers.screen import Screen
from vqa import terminal as terminal_module
from vqa.config.place import CONF
from vqa.progress import progress, shown_progress
from vqa.sweep.board import Board
from vqa.terminal import TOLD_AGAIN, LivePart, left_to_others

log = logging.getLogger("vqa.stages.final")


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Put a terminal of 80 x 24 on standard output and standard error; pytest would take it off a fixture."""
    screen = Screen()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vqa.terminal._console", Console(color_system=None))
    return screen


@pytest.fixture
def plain_log() -> Iterator[dict[str, Any]]:
    """What a run configures its log with, without its file."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    with initialize_config_dir(str(CONF)):
        cfg = compose("config", return_hydra_config=True)
    plain: Any = OmegaConf.to_container(cfg.hydra.job_logging, resolve=False)
    del plain["handlers"]["file"]
    plain["root"]["handlers"] = ["console"]
    yield plain
    root.handlers[:], root.level = before, level


def test_log_lines_of_a_final_run_stay_above_its_bars(
    monkeypatch: pytest.MonkeyPatch, plain_log: dict[str, Any]
) -> None:
    screen = terminal(monkeypatch)
    logging.config.dictConfig(plain_log)
    with shown_progress():
        for evaluation in (1, 2, 3):
            progress("training", evaluation, 3)
            progress("held-out part", 240, 240)
            log.info("evaluation %d: NLL 0.5", evaluation)
    lines = [line.strip() for line in screen.lines() if line.strip()]
    assert [line.split(" ", 1)[1] for line in lines] == [f"evaluation {n}: NLL 0.5" for n in (1, 2, 3)]


def test_log_lines_of_a_sweep_stay_above_its_table(
    monkeypatch: pytest.MonkeyPatch, plain_log: dict[str, Any]
) -> None:
    screen = terminal(monkeypatch)
    logging.config.dictConfig(plain_log)
    with Board("lora", ["lr"], 4) as board:
        board.show(())
        for number in (1, 2):
            log.info("event %d", number)
            board.show(())
    lines = [line for line in screen.lines() if line.strip()]
    assert [line.split(" ", 1)[1] for line in lines[:2]] == ["event 1", "event 2"]
    assert sum("study lora" in line for line in lines) == 1


def test_the_bar_of_a_final_run_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, clock = terminal(monkeypatch), iter(range(0, 10_000, 10))
    monkeypatch.setattr(terminal_module._console, "get_time", lambda: float(next(clock)))
    with shown_progress():
        progress("training", 1, 100)
        progress("training", 2, 100)
        progress("training", 3, 100)
        terminal_module._shown[-1].redraw()
        bar = next(line for line in reversed(screen.lines()) if "training" in line)
    assert re.search(r"3/100 +\d+:\d\d$", bar.rstrip())


def test_a_finished_bar_makes_room_for_the_next_piece_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with shown_progress():
        progress("pictures", 5, 5)
        progress("training", 1, 9)
        progress("held-out part", 3, 3)
        progress("training", 2, 9)
        screen.truncate(0)
        screen.seek(0)
        progress("scoring", 1, 4)
        terminal_module._shown[-1].redraw()
        lines = [line for line in screen.lines() if line.strip()]
    assert [line.split()[0] for line in lines[-2:]] == ["training", "scoring"]
    assert not any("pictures" in line or "held-out" in line for line in lines[-2:])


def test_a_long_warning_is_shown_whole(monkeypatch: pytest.MonkeyPatch, plain_log: dict[str, Any]) -> None:
    screen = terminal(monkeypatch)
    logging.config.dictConfig(plain_log)
    address = "/where/the/results/are/" + "x" * 150
    with shown_progress():
        log.warning("see %s", address)
    assert address in screen.getvalue()


def test_log_lines_are_broken_at_spaces(monkeypatch: pytest.MonkeyPatch, plain_log: dict[str, Any]) -> None:
    screen = terminal(monkeypatch)
    logging.config.dictConfig(plain_log)
    log.info("a word and another " * 8)
    first, second, *_ = screen.lines()
    assert len(first) <= 80
    assert {*first.split(), *second.split()} - {first.split()[0]} == {"a", "word", "and", "another"}


def test_what_the_end_of_a_run_prints_is_not_on_the_terminal_before(
    monkeypatch: pytest.MonkeyPatch, plain_log: dict[str, Any]
) -> None:
    screen = terminal(monkeypatch)
    logging.config.dictConfig(plain_log)
    log.warning("every answer is a", extra={TOLD_AGAIN: True})
    log.warning("something else")
    assert "every answer" not in screen.getvalue()
    assert "something else" in screen.getvalue()


def test_a_library_draws_its_own_bar_while_the_live_part_is_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with LivePart(lambda: "table") as part:
        part.redraw()
        with left_to_others():
            assert "table" not in "".join(screen.lines())
            sys.stderr.write("\rdownload 50 %\rdownload 100 %\n")
        assert [line for line in screen.lines() if line] == ["download 100 %", "table"]
    with left_to_others():
        pass


def test_a_pipe_gets_whole_log_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plain_log: dict[str, Any]
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr("vqa.terminal._console", Console())
    logging.config.dictConfig(plain_log)
    log.warning("see %s", "x" * 300)
    assert f"WARNING vqa.stages.final: see {'x' * 300}\n" in capsys.readouterr().out
