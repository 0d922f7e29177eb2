"""Run `vqa` inside the test process: seconds of imports are paid once."""

import logging
import sys
from dataclasses import dataclass

import pytest
from hydra.core.global_hydra import GlobalHydra

from vqa import run
from vqa.config.messages import speak


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def vqa(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    """Run `python -m vqa.run` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["vqa", *arguments])
    GlobalHydra.instance().clear()
    handlers = list(logging.getLogger().handlers)
    capsys.readouterr()
    code = 0
    try:
        run.main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        logging.getLogger().handlers[:] = handlers
        speak("en")  # what the next test expects
    shown = capsys.readouterr()
    return Outcome(code, shown.out, shown.err)
