"""One JSON file per benchmark run: what ran, where, with which code, and its rows."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def machine() -> str:
    """The GPU's name, or "CPU"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def commit() -> str:
    """The commit of the code that runs; "unknown" outside a checkout."""
    here = Path(__file__).parent  # the working directory may be another by now
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def command() -> str:
    """The command line that runs, without what only says where the result goes."""
    module = Path(sys.argv[0]).with_suffix("").parts
    given = iter(sys.argv[1:])
    kept = []
    for word in given:
        if word in ("--out", "--machine"):
            next(given, None)
        elif not word.startswith(("--out=", "--machine=")):
            kept.append(word)
    rooms = len(module) - module[::-1].index(
        "benchmarks"
    )  # the folder nearest to the file: a checkout's name may be it
    return shlex.join(["python", "-m", ".".join(("benchmarks", *module[rooms:])), *kept])


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark on the CPU be told where its result goes, and what to call the machine in it."""
    parser.add_argument("--machine", default="CPU")
    parser.add_argument("--out", type=Path, required=True)


def write_rows(
    path: Path | None, name: str, rows: list[dict[str, Any]], where: str | None = None, append: bool = True
) -> None:
    """Write the result of one run.

    Args:
        path: The file; None = print it.
        name: Of the benchmark.
        rows: What was measured.
        where: The machine; None = the GPU's name, or "CPU".
        append: Whether rows of an earlier call in the same file stay, before the new ones.
    """
    result = {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": where or machine(),
        "commit": commit(),
        "command": command(),
        "rows": rows,
    }
    if path is None:
        print(json.dumps(result, indent=1))
        return
    if append and path.exists():
        earlier = json.loads(path.read_text())
        result["rows"] = [*earlier["rows"], *rows]
        result["command"] = "; ".join([earlier["command"], str(result["command"])])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
