"""A run at work in its folder: claimed for one configuration, by one process, complete at its end.

`begin` claims the folder; a run of another configuration is refused. `at_work` keeps a second process out,
and tells which one works there. The lock is that of `vqa.machine.files`: the kernel drops it when its holder
dies, so nobody has to clean up after a kill. What stands in the file is for the message alone. `finish_run`
writes what was found out, and the manifest last: its presence means "complete".
"""

import functools
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vqa.config.settings import is_under
from vqa.errors import InUseError, UserError
from vqa.machine.files import NoLocksError, holder, replace_text, try_lock
from vqa.machine.safe_text import mask_secrets
from vqa.results.folder import MAY_DIFFER, RUN_LOCK, RunFolder, flatten, read_yaml
from vqa.results.predictions import Prediction, write_predictions, write_submission

PACKAGES = (
    *("vqa", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "optuna", "hydra-core"),
    *("omegaconf", "scikit-learn", "numpy", "pillow", "mlflow"),
)
log = logging.getLogger(__name__)
# A process that ends closes its files one by one; `is_locked` holds the lock for an instant.
TRIES, PAUSE_S = 20, 0.05


def folder_of_file(folder: Path, cfg: DictConfig) -> Path:
    """Where the answers to a test file go: the first folder that is free, or that has that file's already.

    The first file's answers go to the stage's own folder, such as `predict`, those of further files beside
    it: `predict_new`, `predict_new_2`.

    Args:
        folder: The stage's own folder.
        cfg: The composed configuration.
    """
    file = cfg.data.get("test_csv")
    named = f"{folder.name}_{Path(str(file)).stem}" if file else folder.name
    numbered = (f"{named}_{number}" for number in count(2))
    return next(
        path
        for path in (folder.with_name(name) for name in chain((folder.name, named), numbered))
        if not (RunFolder(path).claimed or _in_use(path))
        or _test_file(RunFolder(path).config()) == _absolute(file)
    )


def _in_use(folder: Path) -> bool:
    """Whether a run that has begun in a folder, with a configuration of its own, is at work now."""
    return RunFolder(folder).config_file.exists() and RunFolder(folder).in_use


def _test_file(config: Mapping[str, Any]) -> str | None:
    return _absolute(config.get("data", {}).get("test_csv"))


def _absolute(file: str | None) -> str | None:
    return None if file is None else str(Path(file).expanduser().absolute())


def begin(folder: Path, cfg: DictConfig, taken: Sequence[str] = ()) -> bool:
    """Claim a folder for a configuration.

    Args:
        folder: The run's output folder; made when missing.
        cfg: The composed configuration.
        taken: Overrides in it that Hydra does not know of, such as those of the study's winner.

    Returns:
        False when the folder holds the complete result of this very configuration already.

    Raises:
        UserError: It holds a run of another configuration, or cannot be written.
    """
    run = RunFolder(folder)
    stored = run.config_file
    if run.claimed:
        refuse_other_run(folder, cfg)
        return not run.complete
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        hydra_cfg = HydraConfig.get()
        replace_text(run.overrides_file, _yaml(list(hydra_cfg.overrides.task)))
        replace_text(run.hydra_file, _yaml(OmegaConf.create({"hydra": _with_choices(hydra_cfg, taken)})))
        replace_text(stored, _yaml(cfg))  # the last: with it the folder is claimed
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error}); set VQA_OUTPUT=/a/writable/folder or env.output_root=..."
        ) from error
    return True


def _with_choices(hydra_cfg: Any, taken: Sequence[str]) -> Any:
    """Hydra's own node, with the options that these overrides choose."""
    node: Any = OmegaConf.create(OmegaConf.to_container(hydra_cfg, resolve=False))
    for name, _, option in (override.partition("=") for override in taken):
        if name in node.runtime.choices:
            node.runtime.choices[name] = option
    return node


def _yaml(node: Any) -> str:
    """A configuration as text, interpolations as they were written, secrets masked."""
    plain = OmegaConf.to_container(OmegaConf.create(node), resolve=False)
    masked = mask_secrets(plain)
    return OmegaConf.to_yaml(OmegaConf.create(node if masked == plain else masked))


def refuse_other_run(folder: Path, cfg: DictConfig) -> None:
    """Refuse a folder in which a run of another configuration has begun; changes nothing.

    Raises:
        UserError: Names the keys that differ.
    """
    run = RunFolder(folder)
    if not run.claimed:
        return
    old, new = _asked(read_yaml(run.config_file)), _asked(cfg)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        shown = "; ".join(f"{key}: {old.get(key)} there, {new.get(key)} now" for key in differing[:5])
        raise UserError(
            f"{folder} holds a run of another configuration ({shown}). Nothing was changed: "
            "name another study (study=other), or another folder (hydra.run.dir=...)"
        )


def _asked(cfg: Any) -> dict[str, str]:
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    # what is stored is masked, so that both sides are: a changed password is no other configuration
    asked = flatten(mask_secrets(plain))
    return {key: text for key, text in asked.items() if not is_under(key, MAY_DIFFER)}


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Keep every other process out of a run's folder for the length of the block.

    A complete run is not locked: nobody writes into it, and it may lie where nothing can be written. Where
    the file system knows no locks, a warning says so.

    Args:
        folder: The run's folder; made when missing.

    Raises:
        InUseError: Another process is at work there.
        UserError: The folder cannot be written.
    """
    if RunFolder(folder).complete:
        yield
        return
    path = folder / RUN_LOCK
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(_taken(path))
            _note(lock)
        except NoLocksError as error:
            log.warning("%s. Here: do not start the same command twice at once", error)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error}); set VQA_OUTPUT=/a/writable/folder or "
                "env.output_root=..."
            ) from error
        yield


def _taken(path: Path) -> IO[str]:
    for _ in range(TRIES):
        if (lock := try_lock(path)) is not None:
            return lock
        time.sleep(PAUSE_S)
    raise InUseError(
        f"{path.parent} is in use by {_holder(path)}. Nothing was changed: wait for its end, or end it; the "
        "same command then goes on from there. Another study (study=other) may run beside it"
    )


def _note(lock: IO[str]) -> None:
    """Write into the lock file who holds it, for processes of other machines too."""
    lock.truncate(0)
    lock.write(
        f"process {os.getpid()} of {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n"
    )
    lock.flush()
    os.fsync(lock.fileno())


def _holder(path: Path) -> str:
    """Who holds the lock: what that process wrote into the file, else what this machine's kernel knows."""
    noted = path.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
    return noted[0][:200] if noted and noted[0] else holder(path)


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


@dataclass(frozen=True)
class Results:
    """What a run found out.

    Args:
        metrics: The content of metrics.json.
        predictions: The rows of each predictions file, by the file's path; at least one row each.
        submitted: Ids of the test questions as their file gives them; None writes no submission.csv.
        as_sample: The submission once more, as the contest's sample has it; None where no sample is given.
    """

    metrics: Mapping[str, Any]
    predictions: Mapping[Path, Sequence[Prediction]] = field(default_factory=dict)
    submitted: Sequence[str] | None = None
    as_sample: str | None = None


def finish_run(
    run: RunFolder,
    results: Results,
    provenance: Provenance,
    show: Callable[[], object] | None = None,
) -> None:
    """Write what a run found out, each file complete or not at all; the manifest last.

    Args:
        run: The run's folder.
        results: What to write.
        provenance: What made the run, for the manifest.
        show: Called between results and manifest: draws them, copies them to where the run is tracked.

    Raises:
        UserError: A test question has no answer to submit.
        ValueError: A predictions file would be empty.
    """
    replace_text(run.metrics_file, json.dumps(results.metrics, indent=2, ensure_ascii=False) + "\n")
    for path, predictions in results.predictions.items():
        write_predictions(path, predictions)
    if results.submitted is not None:
        write_submission(run.submission, results.predictions[run.test_predictions], results.submitted)
        if results.as_sample is not None:
            replace_text(run.as_sample, results.as_sample)
    if show:
        show()
    run.checkpoint.unlink(missing_ok=True)
    write_manifest(run.manifest_file, provenance)


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
