"""A study that is killed at every write in turn: does the same command end in the same bytes each time?

Python tells of each file that is opened to write, renamed or removed, and of each folder made
(`sys.addaudithook`); SQLAlchemy tells of each statement that changes the database. A forked process counts
these and kills itself with SIGKILL before number k. A second one repeats the command. Then trials, ranking,
winner and final run are compared with those of a study that nobody killed.

    python -m benchmarks.endurance.writes --every 1 --out FILE
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.record import add_output_arguments, write_rows

SWEEP = ("hydra.sweeper.n_trials=2", "hydra/sweeper/pruner=none")
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Writes:
    """Counts the writes of this process below a folder, and kills it before one of them.

    Args:
        folder: Only what lies below counts.
        fatal: The number of the write that is not made any more, from 1; 0 = none.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal, self.count = str(folder), fatal, 0

    def watch(self) -> None:
        """Begin to count; a hook cannot be taken off again, so the process should end soon."""
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        sys.addaudithook(self._hear)
        event.listen(Engine, "before_cursor_execute", self._hear_database)

    def _hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name not in CHANGES or not isinstance(arguments[0], str | os.PathLike | bytes):
            return
        if name == "open" and not (int(arguments[2] or 0) & WRITING):
            return
        if os.path.abspath(os.fsdecode(arguments[0])).startswith(self.folder):
            self._next()

    def _hear_database(self, *arguments: Any) -> None:
        if str(arguments[2]).lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            self._next()

    def _next(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], int]) -> tuple[int, int]:
    """Run `work` in a forked process; returns how it ended (negative: by a signal) and what it returned."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the process ends with it)
        code = 1
        try:
            os.write(write, str(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()
    return os.waitstatus_to_exitcode(status), int(said or 0)


def run_killed(folder: Path, fatal: int) -> tuple[int, int]:
    """Run the toy study in `folder` up to write number `fatal` (0: to its end); returns as `in_child`."""
    from tests.helpers.toy_app.harness import run_toy

    def work() -> int:
        writes = Writes(folder, fatal)
        writes.watch()
        run_toy(folder, *SWEEP)
        return writes.count

    return in_child(work)


def result_of(folder: Path) -> tuple[Any, bytes]:
    """What must not depend on a kill."""
    from tests.helpers.toy_app.harness import outcome

    return outcome(folder), (folder / "multirun/toy/final/metrics.json").read_bytes()


def kill_at_each(place: Path, every: int, first: int = 1) -> dict[str, Any]:
    """Kill a study at every `every`-th write, repeat the command, and compare.

    Args:
        place: An empty folder.
        every: 1 = at each write.
        first: The first write to be killed at.

    Returns:
        The figures of a row: writes, kills, and the numbers of those after which the result was another.
    """
    whole = place / "whole"
    whole.mkdir(parents=True)
    code, writes = run_killed(whole, 0)
    if code != 0:
        raise RuntimeError(f"the study ended with {code}")
    expected, differing, kills = result_of(whole), [], 0
    for fatal in range(first, writes + 1, every):
        folder = place / str(fatal)
        folder.mkdir()
        code, _ = run_killed(folder, fatal)
        kills += code == -signal.SIGKILL
        again, _ = run_killed(folder, 0)
        if again != 0 or result_of(folder) != expected:
            differing.append(fatal)
    return {"writes": writes, "kills": kills, "every": every, "differing": differing}


def main() -> None:
    """Parse the command line, kill, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    add_output_arguments(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        row = kill_at_each(Path(temporary), given.every)
    print(row)
    write_rows(given.out, "writes", [row], given.machine, append=False)


if __name__ == "__main__":
    main()
