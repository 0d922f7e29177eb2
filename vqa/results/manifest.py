"""The manifest of a finished run: what made it. Written last, so that its presence means "complete"."""

import functools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vqa.machine.files import replace_text
from vqa.machine.safe_text import mask_secrets

PACKAGES = (
    *("vqa", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "optuna", "hydra-core"),
    *("omegaconf", "scikit-learn", "numpy", "pillow", "mlflow"),
)


@dataclass(frozen=True)
class Provenance:
    """What made a run, as its stage knows it.

    Args:
        config: The resolved configuration as plain dicts and lists; secrets in it are masked.
        seed: The run's seed.
        started: When the run began, seconds since the epoch (`time.time()`).
        data_sha256: Digest of the questions; "" where none were read.
        split_sha256: Digest of the split; "" where nothing was split.
        extra: More facts, on the top level of the file.
    """

    config: Mapping[str, Any]
    seed: int
    started: float
    data_sha256: str = ""
    split_sha256: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(path: Path, made: Provenance) -> None:
    """Write what made a run as JSON; the file appears complete or not at all.

    Args:
        path: The file to write, normally `final/manifest.json`.
        made: What the stage knows; code, packages, machine and time are added.

    Raises:
        ValueError: A name in `extra` is one of the manifest's own.
    """
    content: dict[str, Any] = {
        "finished_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_time_s": round(max(0.0, time.time() - made.started), 3),  # the clock may have been set back
        "git": git_state(),
        "versions": package_versions(),
        "platform": platform.platform(),
        "device": device_name(),
        "seed": made.seed,
        "data_sha256": made.data_sha256,
        "split_sha256": made.split_sha256,
        "config": made.config,
    }
    if taken := sorted(content.keys() & made.extra.keys()):
        raise ValueError(f"extra must not use the manifest's own names, got {', '.join(taken)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(mask_secrets(content | dict(made.extra)), indent=2, ensure_ascii=False, default=str)
    replace_text(path, text + "\n")


@functools.cache
def git_state() -> dict[str, Any] | None:
    """The checkout's `commit` and whether it is `dirty`; None outside git or without a commit.

    Asked once per process, of the folder that holds this package: the code that runs, wherever from.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def package_versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that decide a run's numbers."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # optional on this machine, for instance bitsandbytes
    return versions


def device_name() -> str:
    """The name of the first GPU, or "cpu".

    A process that never imported torch used no GPU; torch is not imported just to say so.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "cpu"
    return f"{torch.cuda.get_device_name(0)} x {torch.cuda.device_count()}"


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git on this machine, or a file system too slow to ask
    return done.stdout.strip() if done.returncode == 0 else None
