"""Runs that are killed at every write in turn: does the same command end in the same bytes each time?

Python tells of each file that is opened to write, renamed or removed, and of each folder made
(`sys.addaudithook`); SQLAlchemy tells of each statement that changes the database, and of each commit;
`os.fsync` is wrapped. A forked process counts these and kills itself with SIGKILL before number k. A second
one repeats the command. Then every file that it left is compared with that of a run which nobody killed: byte
by byte, or without times and speeds where a file holds some. No file may be missing, none left over.

    python -m benchmarks.endurance.writes --run study final predict evaluate sweep --out FILE

`study` is a sweep of a formula in place of a model; the others are the embedded model, trained on 16
questions.
"""

import argparse
import csv
import functools
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.record import add_output_arguments, write_rows

STUDY = ("hydra.sweeper.n_trials=2", "hydra/sweeper/pruner=none")
SMALL = (
    *("tracking=none", "env.threads=1", "env.output_root=out", "study=x", "budget=smoke"),
    *("data.train_size=40", "data.test_size=8", "budget.subsample=16", "budget.checkpoint_steps=2"),
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "final": ("stage=final",),
    "predict": ("stage=predict",),
    "evaluate": ("stage=evaluate",),
    "sweep": ("-m", "+sweep=lora", "budget.folds=2", *STUDY),
}
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# these name the process, the folder or the hour; what the database holds is in the leaderboard
NOT_COMPARED = (
    ".run.lock",
    "hydra.yaml",
    "report.html",
    "multirun.yaml",
    ".sweep.json",
    "study.db",
)
LOG = "run.log"  # tells of each attempt
FOLDERS_NOT_COMPARED = (".locks", "workers")
OF_THE_CLOCK = (
    *("seconds", "wall_time_s", "finished_utc", "train_samples_per_s", "rows_per_s", "peak_memory_gib"),
    *("vision_cache_hits", "vision_cache_hit_rate"),  # a resumed process looks fewer pictures up
    *("config", "git"),  # the manifest's: the folder's name, and whether the checkout was changed meanwhile
)


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
        event.listen(Engine, "commit", lambda connection: self._next())
        to_disk = os.fsync

        def fsync(handle: int) -> None:
            self._next()
            to_disk(handle)

        os.fsync = fsync  # type: ignore[assignment]

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


def in_child(work: Callable[[], int], said: Path | None = None) -> tuple[int, int]:
    """Run `work` in a forked process.

    Args:
        work: What to do.
        said: The file for what it prints; None: nowhere.

    Returns:
        How the process ended (negative: by a signal) and what `work` returned.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(said or os.devnull, "w")  # noqa: SIM115  (the process ends with it)
        code = 1
        try:
            os.write(write, str(work()).encode())
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        returned = answer.read()
    return os.waitstatus_to_exitcode(status), int(returned or 0)


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Args:
        prepare: Puts what the command needs into an empty folder.
        run: Runs the command with that folder as working directory; raises when it fails.
        results: What it left in the folder and must not depend on a kill.
    """

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    results: Callable[[Path], Mapping[str, Any]]


def study_case() -> Case:
    """A sweep over a formula, with its final run."""
    from tests.helpers.toy_app.harness import outcome, run_toy

    def results(folder: Path) -> dict[str, Any]:
        return outcome(folder) | {"final": (folder / "multirun/toy/final/metrics.json").read_bytes()}

    return Case(lambda folder: None, lambda folder: run_toy(folder, *STUDY), results)


def with_imports(case: Case, place: Path) -> None:
    """Import here what a run of the command imports: each forked process would spend most of its time on it.

    Args:
        case: The command; it is run once, in a forked process.
        place: An empty folder.

    Raises:
        RuntimeError: The command failed.
    """
    names = place / "modules"

    def work() -> int:
        case.prepare(place)
        case.run(place)
        names.write_text("\n".join(name for name, module in sys.modules.items() if module is not None))
        return 0

    if in_child(work) != (0, 0):
        raise RuntimeError("the undisturbed command failed")
    for name in names.read_text().splitlines():
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            importlib.import_module(name)


def model_case(name: str, trained: Path) -> Case:
    """A stage of the embedded model, or a sweep of two trials.

    Args:
        name: A key of `COMMANDS`.
        trained: As `warm_up` left it; predict and evaluate work with the adapter in it.
    """
    run = functools.partial(run_stage, arguments=COMMANDS[name])
    if name in ("final", "sweep"):
        return Case(lambda folder: None, run, files_of)
    return Case(lambda folder: shutil.copytree(trained / "out", folder / "out"), run, files_of)


def warm_up(trained: Path) -> None:
    """Make a final run, and import and load what the others need, so that a forked process need not.

    The training itself is done by a forked process: after a gradient here the others could compute none.

    Args:
        trained: An empty folder.

    Raises:
        RuntimeError: The final run failed.
    """
    import torch

    from vqa.model.base import _resident

    torch.set_num_threads(1)
    final = functools.partial(run_stage, arguments=COMMANDS["final"])
    code, _ = run_killed(Case(lambda folder: None, final, files_of), trained, 0)
    if code != 0:
        raise RuntimeError(f"the final run ended with {code}")
    shutil.copytree(trained, trained.with_name("warm"))
    for stage in ("predict", "report"):
        run_stage(trained.with_name("warm"), (f"stage={stage}",))
    _resident.clear()  # its threads, which look at pictures, do not live on in a fork


def run_stage(folder: Path, arguments: tuple[str, ...]) -> None:
    """Run a small `vqa` in this process, with `folder` as working directory.

    Raises:
        RuntimeError: It ended with another code than 0.
    """
    from tests.helpers.forked import run_vqa

    os.chdir(folder)
    if code := run_vqa(*arguments, *SMALL):
        raise RuntimeError(f"{arguments} ended with {code}")


def files_of(folder: Path) -> dict[str, Any]:
    """Every file below a folder, by name: its bytes, or what it holds without times and speeds."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        if path.is_dir() or path.name == LOG or any(part in FOLDERS_NOT_COMPARED for part in within.parts):
            continue
        name = str(within)
        if path.name in NOT_COMPARED:
            found[name] = "there"
        elif path.name in ("metrics.json", "manifest.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.name in ("leaderboard.csv", "folds.csv"):
            with path.open(newline="") as file:
                found[name] = [_timeless(row) for row in csv.DictReader(file)]
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in OF_THE_CLOCK}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def run_killed(case: Case, folder: Path, fatal: int) -> tuple[int, int]:
    """Run a command in `folder` up to write number `fatal` (0: to its end); returns as `in_child`."""

    def work() -> int:
        writes = Writes(folder, fatal)
        writes.watch()
        case.run(folder)
        return writes.count

    return in_child(work)


def kill_at_each(case: Case, place: Path, every: int, first: int = 1) -> dict[str, Any]:
    """Kill a command at every `every`-th write, repeat it, and compare.

    Args:
        case: The command.
        place: A folder.
        every: 1 = at each write.
        first: The first write to be killed at.

    Returns:
        The figures of a row: writes, kills, the numbers of those after which the result was another, with
        the files that differed, and seconds.
    """
    began, whole = time.perf_counter(), place / "whole"
    whole.mkdir(parents=True)
    case.prepare(whole)
    code, writes = run_killed(case, whole, 0)
    if code != 0:
        raise RuntimeError(f"the undisturbed command ended with {code}")
    expected, differing, kills = case.results(whole), {}, 0
    for fatal in range(first, writes + 1, every):
        folder = place / str(fatal)
        folder.mkdir()
        case.prepare(folder)
        code, _ = run_killed(case, folder, fatal)
        kills += code == -signal.SIGKILL
        again, _ = run_killed(case, folder, 0)
        if again != 0:
            differing[fatal] = [f"the repeated command ended with {again}"]
        elif (found := case.results(folder)) != expected:
            names = sorted(expected.keys() | found.keys())
            differing[fatal] = [name for name in names if found.get(name) != expected.get(name)]
        else:
            shutil.rmtree(folder)
    seconds = round(time.perf_counter() - began, 1)
    return {"writes": writes, "kills": kills, "every": every, "differing": differing, "seconds": seconds}


def main() -> None:
    """Parse the command line, kill, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs="+", default=["study"], choices=["study", *COMMANDS])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has")
    add_output_arguments(parser)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        trained = Path(temporary) / "trained"
        if set(given.run) & COMMANDS.keys():
            trained.mkdir()
            warm_up(trained)
        for name in given.run:
            place = Path(temporary) / name
            case = study_case() if name == "study" else model_case(name, trained)
            with_imports(case, Path(tempfile.mkdtemp(dir=temporary)))
            rows.append({"run": name, **kill_at_each(case, place, given.every, given.first)})
            print(rows[-1], flush=True)
    write_rows(given.out, "writes", rows, given.machine, append=given.append)


if __name__ == "__main__":
    main()
