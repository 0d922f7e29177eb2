"""One JSON file per benchmark run: what ran, where, with which code, and its rows."""

import json
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
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def write_rows(path: Path | None, name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows to `path`, or print them when there is none; rows of an earlier call in one file stay."""
    result = {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "commit": commit(),
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "rows": rows,
    }
    if path is None:
        print(json.dumps(result, indent=1))
        return
    if path.exists():
        earlier = json.loads(path.read_text())
        result["rows"] = [*earlier["rows"], *rows]
        result["command"] = "; ".join([earlier["command"], str(result["command"])])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
