"""Run `python -m vqa.run` in a process of its own that is forked: its seconds of imports are paid once.

The process can be interrupted and killed as a fresh one. Fresh interpreters are left to the tests of the wheel
and of the start, and to the study that nothing interrupts.
"""

import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.conftest import environment
from tests.helpers.two_processes import FORKS


def start(folder: Path, *arguments: str) -> BaseProcess:
    """Start the command; all it says goes to `folder/said.log`.

    Args:
        folder: An existing folder, the command's working directory.
        arguments: Of the command.
    """
    process = FORKS.Process(target=_be_command, args=(folder, arguments, environment()))
    process.start()
    return process


def run(folder: Path, *arguments: str, timeout_s: float = 300) -> tuple[int | None, str]:
    """Run the command to its end; returns its exit code and all that it said."""
    process = start(folder, *arguments)
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, (folder / "said.log").read_text(encoding="utf-8")


def _be_command(folder: Path, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with (folder / "said.log").open("wb") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    sys.argv = ["vqa", *arguments]
    del sys.modules["vqa.run"]  # it was only imported to have what it imports
    runpy.run_module("vqa.run", run_name="__main__", alter_sys=True)
