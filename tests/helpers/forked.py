"""Commands in processes forked from one that has the imports behind it."""

import logging
import os
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from tests.helpers.two_processes import FORKS


@dataclass
class Forked:
    """A command that runs.

    Args:
        process: Its process.
        said: The file that its output goes to.
    """

    process: ForkServerProcess
    said: Path

    def ended(self) -> tuple[int, str]:
        """Wait for its end; returns the exit code, negative where a signal ended it, and its output."""
        self.process.join()
        code = self.process.exitcode
        return 1 if code is None else code, self.said.read_text(encoding="utf-8", errors="replace")


def forked(said: Path, *arguments: str, **environment: str) -> Forked:
    """Start `vqa` with these arguments; what it says goes to the file `said`."""
    process = FORKS.Process(target=_work, args=(said, arguments, environment))
    process.start()
    return Forked(process, said)


def _work(said: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    code = run_vqa(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_vqa(*arguments: str) -> int:
    """Run `vqa` in this process; returns its exit code, 1 with a traceback on the console."""
    from vqa import run

    logging.getLogger().handlers.clear()
    GlobalHydra.instance().clear()
    typed, sys.argv = sys.argv, ["vqa", *arguments]
    try:
        run.main()
    except SystemExit as left:
        return int(left.code or 0)
    except BaseException:  # noqa: BLE001  (printed, and ended with 1, as Python itself would)
        traceback.print_exc()
        return 1
    finally:
        sys.argv = typed
    return 0
