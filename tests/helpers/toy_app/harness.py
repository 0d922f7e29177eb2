"""Ways to run the toy app from a test, and to look at what it left."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.helpers.toy_app.app import main
from vqa.results.trials import RESULT_COLUMNS


def run_toy(folder: Path, *overrides: str, charts: bool = False) -> None:
    """Run `app.py -m +sweep=toy <overrides>` in this process; see `run_multirun`."""
    run_multirun(folder, "+sweep=toy", *overrides, charts=charts)


def run_multirun(folder: Path, *overrides: str, charts: bool = False) -> None:
    """Run `app.py -m <overrides>` in this process, with `folder` as working directory.

    Args:
        folder: An existing folder.
        overrides: Hydra's.
        charts: Whether the page of a search gets its charts; drawing takes longer than eight toy trials.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in () if charts else ("study_charts", "run_charts"):
            patch.setattr(f"vqa.report.report.{name}", lambda *arguments: {})
        patch.chdir(folder)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(sys, "argv", ["app.py", "-m", *overrides])
        main()


def run_toy_cut_off(folder: Path, after_s: float, how: signal.Signals, *overrides: str) -> bool:
    """Run the toy app in a forked process and send it a signal; returns whether it had ended before."""
    held = {signal.SIGINT}  # until the child is ready: outside of its try it would be a second test process
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the process ends with it)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
            run_toy(folder, *overrides)
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, how)
    os.waitpid(child, 0)
    return False


def trials_of(folder: Path, study: str = "toy") -> list[optuna.trial.FrozenTrial]:
    """Every trial of the study `multirun/<study>`."""
    storage = f"sqlite:///{folder}/multirun/{study}/study.db"
    return optuna.load_study(study_name=study, storage=storage).get_trials()


def outcome(folder: Path, study: str = "toy") -> dict[str, Any]:
    """What must not depend on how often a study was cut off: trials, leaderboard without seconds, best."""
    place = folder / "multirun" / study
    trials = [
        (t.number, t.state.name, t.value, t.params, t.intermediate_values) for t in trials_of(folder, study)
    ]
    seconds = RESULT_COLUMNS.index("seconds")
    table = [line.split(",") for line in (place / "leaderboard.csv").read_text().splitlines()]
    board = [row[:seconds] + row[seconds + 1 :] for row in table]
    return {"trials": trials, "leaderboard": board, "best": (place / "best.yaml").read_text()}


def starts(folder: Path) -> list[str]:
    """Names of the job folders in the order in which they were started."""
    return (folder / "multirun/toy/trials/starts.txt").read_text().split()


def stamps(folder: Path) -> dict[Path, int]:
    """Time of change of every file and folder."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def board_rows(folder: Path, study: str = "toy") -> Sequence[dict[str, str]]:
    """The leaderboard's rows."""
    import csv

    with (folder / "multirun" / study / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))
