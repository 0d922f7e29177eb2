"""A cache of fold adapters: trials that differ only in the read-out or adaptation share their training."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from vqa.config.settings import Settings, is_under
from vqa.data.source import split_questions
from vqa.errors import UserError
from vqa.machine.files import replacing_folder, try_lock
from vqa.model.adapter import attached, loaded, write_adapter
from vqa.model.base import Base
from vqa.progress import progress
from vqa.results.folder import MAY_DIFFER, StudyFolder, flatten, read_json
from vqa.train.fit import Evaluation

log = logging.getLogger(__name__)
TRAINING = "training.json"
POLL_S = 0.5  # between two checks whether another worker has trained the fold
# Keys that do not change a trained adapter. Every other key is part of the digest, new ones included.
NOT_TRAINING = (
    *MAY_DIFFER,
    "study",
    "stage",
    "adapter",
    "final",
    "ensemble",
    "inference",
    "adapt",
    "budget.test_limit",
    "budget.keep_fold_adapters",
)


@dataclass(frozen=True)
class TrainedFold:
    """How a fold's training went.

    Args:
        evaluations: Each with the held-out letters' NLL, nats; NaN where nobody asked.
        train_samples_per_s: Questions per second.
    """

    evaluations: list[tuple[Evaluation, float]]
    train_samples_per_s: float


def fold_digest(settings: Settings) -> str:
    """Name what fold adapters depend on: the settings that training reads, and all labelled questions.

    Returns:
        20 hexadecimal digits; equal digests mean equal adapters on one machine.
    """
    asked = {key: text for key, text in flatten(settings.plain).items() if not is_under(key, NOT_TRAINING)}
    _, data_sha256 = split_questions(settings)
    text = json.dumps([asked, data_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextmanager
def fold_adapter(
    settings: Settings, base: Base, number: int, train: Callable[[Any], TrainedFold]
) -> Iterator[tuple[Any, TrainedFold, bool]]:
    """Put a fold's trained adapter on the base for the length of the block: trained now, or taken from disk.

    With budget.keep_fold_adapters the first worker of a study trains and keeps it, the others wait for that.

    Args:
        settings: The run.
        base: The resident model.
        number: The fold's number, from 0.
        train: Trains the fresh adapter on the PEFT model it is given.

    Yields:
        The PEFT model in evaluation mode, how its training went, and whether that was another trial's.
    """
    if not settings.budget.keep_fold_adapters:
        with attached(base, settings.lora, settings.train_seed) as model:
            yield model, train(model), False
        return
    folder = StudyFolder.of(settings).fold_adapter(fold_digest(settings), number)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _turn(folder.with_suffix(".lock")):
        found = folder.exists()
        if not found:
            with attached(base, settings.lora, settings.train_seed) as model:
                _keep(model, base, train(model), folder)
    if found:
        log.info("fold %d: the adapter was trained before, see %s", number + 1, folder)
    with loaded(base, folder) as model:
        yield model, _read(folder), found


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold a lock; poll while another process holds it, so that Ctrl-C interrupts the wait."""
    lock: IO[str] | None = try_lock(path)
    while lock is None:
        progress("waiting for a fold that another worker trains", 0, 1)
        time.sleep(POLL_S)
        lock = try_lock(path)
    with lock:
        yield


def _keep(model: Any, base: Base, trained: TrainedFold, folder: Path) -> None:
    """Write the adapter and how its training went; the folder appears complete or not at all."""
    with replacing_folder(folder) as unfinished:
        write_adapter(model, unfinished, base)
        (unfinished / TRAINING).write_text(json.dumps(asdict(trained)) + "\n", encoding="utf-8")


def _read(folder: Path) -> TrainedFold:
    values = read_json(folder / TRAINING)
    try:
        evaluations = [(Evaluation(**at), float(mean)) for at, mean in values["evaluations"]]
        return TrainedFold(evaluations, float(values["train_samples_per_s"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / TRAINING}: cannot be read ({error!r}); remove {folder} to train the fold again"
        ) from error
