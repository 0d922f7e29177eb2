"""Run a command in a process of its own that is forked: its seconds of imports are paid once.

The process can be interrupted and killed as a fresh one. Fresh interpreters are left to the tests of the
wheel, to those of the start, and to the study that nothing interrupts.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

from tests.conftest import environment
from tests.helpers.two_processes import FORKS

MODULE = "vqa.run"


class Forked:
    """A command at work, with the part of `subprocess.Popen` that tests use; what it says: `folder/said.log`.

    Args:
        folder: An existing folder, the command's working directory.
        arguments: Of the command.
        program: A Python file, or the module as `python -m` takes it.
        variables: Of its environment, beside those of a test.
    """

    def __init__(self, folder: Path, *arguments: str, program: str = MODULE, **variables: str) -> None:
        self.log = folder / "said.log"
        env = environment(**variables)
        self._process = FORKS.Process(target=_be, args=(folder, program, arguments, env))
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it TERM."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """Wait for its end and give what it said; killed when it outlives the time."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self.log.read_text(encoding="utf-8"), None


def _be(folder: Path, program: str, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    os.setpgid(0, 0)  # Ctrl-C in the tests' terminal is not meant for it
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with (folder / "said.log").open("wb") as log:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(log.fileno(), number)
    command = [program] if program.endswith(".py") else ["-m", program]
    sys.orig_argv = [sys.executable, *command, *arguments]  # of which copies are started
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        sys.modules.pop(program, None)  # it was only imported to have what it imports
        runpy.run_module(program, run_name="__main__", alter_sys=True)
