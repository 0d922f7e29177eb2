"""How every run works in its folder: alone, and at the end its files are written, the manifest last.

A second process in a run's folder is refused, and told which process works there (`at_work`). The lock is
that of `vqa.machine.files`: the kernel drops it when its holder dies, so nobody has to clean up after a kill.
What stands in the file is for the message alone.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from vqa.errors import InUseError, UserError
from vqa.machine.files import NoLocksError, holder, replace_text, try_lock
from vqa.results.folder import RUN_LOCK, RunFolder
from vqa.results.manifest import Provenance, write_manifest
from vqa.results.predictions import Prediction, write_predictions, write_submission

log = logging.getLogger(__name__)
TRIES, PAUSE_S = (
    20,
    0.05,
)  # a process that ends closes its files one by one; `is_locked` holds the lock for an instant


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
