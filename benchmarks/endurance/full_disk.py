"""Disks that fill at twelve sizes in each of five stages: a message and exit code 2, and right with room.

A stage writes into a memory file system (tmpfs) of its own, which has room for 1/14, 2/14, ... 12/14 of what
the stage needs. Then the file system gets room, the command is repeated, and every file is compared with that
of a run on a large disk, as `benchmarks.endurance.writes` does. Mounting needs root.

    python -m benchmarks.endurance.full_disk --out FILE
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.endurance.writes import COMMANDS, SMALL, files_of, in_child, warm_up
from benchmarks.harness.record import add_output_arguments, write_rows

SIZES = 12
LARGE = 64 * 2**20
MORE = ("data.test_size=150", "budget.test_limit=null")  # answers enough to fill pages of 4 KiB
STAGES = {name: COMMANDS[name] for name in ("sweep", "final")} | {
    "predict": (*COMMANDS["predict"], *MORE),
    "evaluate": (*COMMANDS["evaluate"], *MORE),
    "report": ("stage=report",),
}
NEEDS_ADAPTER = ("predict", "evaluate", "report")


@dataclass(frozen=True)
class Disk:
    """A small file system at `folder`/out.

    Args:
        folder: The working directory of the commands.
    """

    folder: Path

    def mount(self, room: int) -> None:
        """Begin with so many bytes of room."""
        (self.folder / "out").mkdir(parents=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", self.folder / "out"], check=True
        )

    def resize(self, room: int) -> None:
        """Have so many bytes of room, what is there included."""
        subprocess.run(["mount", "-o", f"remount,size={room}", self.folder / "out"], check=True)

    def used(self) -> int:
        """Bytes that are in use."""
        return shutil.disk_usage(self.folder / "out").used

    def unmount(self) -> None:
        """Lose all that is there."""
        subprocess.run(["umount", self.folder / "out"], check=True)


def ended(folder: Path, arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run a command in a forked process; returns its exit code and what it printed."""
    from tests.helpers.forked import run_vqa

    def work() -> int:
        os.chdir(folder)
        return run_vqa(*SMALL, *arguments)

    said = folder / "said"
    how, code = in_child(work, said)
    return (code if how == 0 else how), said.read_text(encoding="utf-8", errors="replace")


def differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The files that differ, as `files_of` gives them; of a JSON object its keys that do."""
    words = []
    for name in sorted(expected.keys() | found.keys()):
        before, after = expected.get(name), found.get(name)
        if before == after:
            continue
        keys: list[str] = []
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
        words.append(" ".join([name, *keys]))
    return words


def fill(name: str, trained: Path, place: Path) -> dict[str, Any]:
    """Run a stage on disks of every size, and again when there is room.

    Args:
        name: A key of `STAGES`.
        trained: As `warm_up` left it.
        place: A folder.

    Returns:
        The figures of a row: sizes in KiB, exit codes, and what was wrong at which size.
    """
    began, arguments = time.perf_counter(), STAGES[name]

    def prepared(folder: Path) -> Disk:
        disk = Disk(folder)
        disk.mount(LARGE)
        if name in NEEDS_ADAPTER:
            shutil.copytree(trained / "out", folder / "out", dirs_exist_ok=True)
            if name == "report":
                (folder / "out/x/report.html").unlink()
        return disk

    whole = prepared(place / "whole")
    before = whole.used()
    code, said = ended(whole.folder, arguments)
    if code != 0:
        raise RuntimeError(f"stage={name} ended with {code} on a large disk: {said[-500:]}")
    expected, needed = files_of(whole.folder / "out"), whole.used() - before
    whole.unmount()
    codes: list[int] = []
    wrong: dict[int, list[str]] = {}
    sizes = [before + needed * part // (SIZES + 2) for part in range(1, SIZES + 1)]
    for size in sizes:
        disk = prepared(place / str(size))
        disk.resize(max(size, before + 4096))
        code, said = ended(disk.folder, arguments)
        codes.append(code)
        troubles = [] if code == 2 else [f"it ended with {code}: {said[-300:]}"]
        troubles += ["a traceback"] * ("Traceback" in said)
        troubles += ["no word of the disk"] * ("o space left" not in said and "disk is full" not in said)
        disk.resize(LARGE)
        code, again = ended(disk.folder, arguments)
        found = files_of(disk.folder / "out") if code == 0 else {}
        if code != 0:
            troubles.append(f"with room it ended with {code}: {again[-300:]}")
        elif found != expected:
            troubles.append(f"other files: {differing(expected, found)}")
        disk.unmount()
        if troubles:
            wrong[size // 1024] = troubles
    return {
        "stage": name,
        "sizes_kib": [size // 1024 for size in sizes],
        "needed_kib": needed // 1024,
        "codes": codes,
        "wrong": wrong,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Parse the command line, fill the disks, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has")
    add_output_arguments(parser)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        trained = Path(temporary) / "trained"
        trained.mkdir()
        warm_up(trained)
        for name in given.run:
            rows.append(fill(name, trained, Path(temporary) / name))
            print(rows[-1], flush=True)
    write_rows(given.out, "full_disk", rows, given.machine, append=given.append)


if __name__ == "__main__":
    main()
