"""Pictures to vision features, once: the tower is frozen, so epochs, folds and trials share them."""

import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

import torch
from PIL import Image

from vqa.config.settings import ImageSettings
from vqa.data.image import fit_image, load_image
from vqa.errors import UserError
from vqa.machine.device import prefetched, spare_bytes
from vqa.model.vision.disk import FeatureStore, Tensors, tower_digest
from vqa.model.vision.features import HostCopies, VisionFeatures
from vqa.model.vision.tower import Tower
from vqa.model.vision.views import look
from vqa.progress import progress
from vqa.question import Picture, Question

log = logging.getLogger(__name__)
PICTURES_AT_ONCE = 32
ON_THE_WAY = 2  # so many times that: a GPU copies them, and has work, while the tower gets the next ones
Key = tuple[Any, ...]  # the picture's digest, how it is processed, its view


class Pictures(Protocol):
    """A frozen vision part: `tower.py` for Qwen-VL's, `generic_pictures.py` for any.

    Args:
        device: Where it computes.
        visual: Its modules.
        arguments: What the image processor was told besides its own settings.
    """

    device: torch.device
    visual: Any
    arguments: dict[str, Any]

    @property
    def merge(self) -> int:
        """Patches along a cell of `VisionFeatures.grid`."""

    def prepare(self, picture: Image.Image, image: ImageSettings) -> Any:
        """A picture as it goes to the device, within the budget of visual tokens."""

    def join(self, parts: Sequence[Any]) -> Any:
        """Several prepared pictures for one call of `features`."""

    def features(self, pictures: Any) -> list[VisionFeatures]:
        """What the tower makes of each picture, on the device."""

    def unpark(self) -> None:
        """Bring it back to the device."""

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it."""


@dataclass(frozen=True)
class _Asked:
    """A picture to look at, in one view, and the question that asks about it."""

    picture: Picture
    view: str
    question: str


@dataclass(frozen=True)
class _Read:
    """What was read from disk: features stored there, and the other pictures, in the order of `keys`.

    `pictures` is as the tower takes them; None when there are none.
    """

    stored: dict[Key, VisionFeatures]
    keys: list[Key]
    pictures: Any


@dataclass(frozen=True)
class _Arriving:
    """Features on their way to host memory. `kept` stay there; those `stored` are on disk already."""

    keys: list[Key]
    features: Future[list[VisionFeatures]]
    kept: set[Key]
    stored: set[Key]


class VisionCache:
    """Features of the pictures seen so far, in host memory (on the CPU: simply kept).

    Keyed by picture bytes and processing; it belongs to one loaded model, so the revision needs no key.
    With `image.cache_dir` what is not in memory is looked for on disk, under the tower's digest too.
    A full cache takes nothing new: dropping the oldest would miss every time when epochs go round in order.
    Views are neither kept nor counted: each is looked at once, and many would crowd pictures out.

    Args:
        model: The whole model; only its vision tower is used.
        processor: The model's image processor: sizes, mean and standard deviation.
        limit_gib: Largest size, GiB; 0 keeps nothing; None: while a quarter of the machine's memory is free.
        tower: What computes features; None: our own code around Qwen-VL's tower.
    """

    def __init__(
        self, model: Any, processor: Any, limit_gib: float | None, tower: Pictures | None = None
    ) -> None:
        self.tower: Pictures = tower or Tower(model, processor)
        self.processor = processor
        self.limit(limit_gib)
        self.nbytes = self.hits = self.disk_hits = self.misses = 0
        self.disk: FeatureStore | None = None
        self.digest = ""
        self.said_full = False
        self.kept: dict[Key, VisionFeatures] = {}
        self.arriving: deque[_Arriving] = deque()
        self.lock = RLock()  # batches are made in a thread while the tower gets the next pictures
        # Decoding and resizing release the interpreter lock for most of their time.
        self.pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="pixels")
        self.copies = HostCopies()

    def limit(self, gib: float | None) -> None:
        """Set the largest size, GiB, from now on; None: while a quarter of the machine's memory is free."""
        self.limit_bytes = None if gib is None else int(gib * 2**30)

    def features(
        self, questions: Sequence[Question], image: ImageSettings
    ) -> list[tuple[VisionFeatures, ...]]:
        """Features of each question's pictures, in their order.

        Raises:
            UserError: A picture cannot be read or is far too long and thin.
        """
        of_each = [self._keyed(q, image) for q in questions]
        asked = {key: picture for keyed in of_each for key, picture in keyed}
        with self.lock:
            if any(not asked.keys().isdisjoint(arriving.keys) for arriving in self.arriving):
                self.settle()
            missing = {key: picture for key, picture in asked.items() if key not in self.kept}
            fresh = self._obtain(self._read(missing, image)) if missing else {}
        self.hits += sum(not key[-1] for keyed in of_each for key, _ in keyed)
        self.hits -= sum(not key[-1] for key in fresh)
        return [tuple(fresh.get(key) or self.kept[key] for key, _ in keyed) for keyed in of_each]

    def fill(self, questions: Sequence[Question], image: ImageSettings) -> None:
        """Compute features that are missing, until the memory for them is full.

        Raises:
            UserError: A picture cannot be read or is far too long and thin.
        """
        try:
            for done, total in self.filling(questions, image):
                progress("pictures", done, total)
        finally:
            self.settle()

    def filling(self, questions: Sequence[Question], image: ImageSettings) -> Iterator[tuple[int, int]]:
        """The same in steps of some pictures: how many were given to the tower so far, and of how many."""
        whole = [q for q in questions if not q.view]
        with self.lock:
            keyed = {
                key: asked for q in whole for key, asked in self._keyed(q, image) if not self._knows(key)
            }
        items = iter(list(keyed.items()))
        chunks = list(iter(lambda: dict(itertools.islice(items, PICTURES_AT_ONCE)), {}))
        reads = prefetched(lambda chunk: self._read(chunk, image), chunks, self.tower.device)
        for step, read in enumerate(reads, start=1):
            with self.lock:
                before = self.nbytes
                self._obtain(read)
                full = self.nbytes == before
            yield min(step * PICTURES_AT_ONCE, len(keyed)), len(keyed)
            if full:
                return

    def knows(self, questions: Sequence[Question], image: ImageSettings) -> bool:
        """Whether no picture of these questions has to be given to the tower; views always have to."""
        with self.lock:
            return all(self._knows(key) for q in questions for key, _ in self._keyed(q, image))

    def _knows(self, key: Key) -> bool:
        return key in self.kept or any(key in arriving.kept for arriving in self.arriving)

    def settle(self, leave: int = 0) -> None:
        """Wait for features on their way to host memory, all but the last so many calls', and keep them."""
        with self.lock:
            while len(self.arriving) > leave:
                self._keep(self.arriving.popleft())

    def use_disk(self, image: ImageSettings) -> None:
        """Take and keep features in `image.cache_dir` too; never those of a tower that is being trained.

        Raises:
            UserError: The folder cannot be written.
        """
        before, self.disk = self.disk, None
        visual = self.tower.visual
        if image.cache_dir is None or any(weight.requires_grad for weight in visual.parameters()):
            return
        made = FeatureStore(Path(image.cache_dir).expanduser(), image.cache_disk_gib)
        same = before and (before.folder, before.limit_bytes) == (made.folder, made.limit_bytes)
        self.digest = self.digest or tower_digest(visual, self.processor)
        self.disk = before if same else made  # one that goes on knows since when its files are in use

    def figures(self) -> dict[str, float]:
        """Size, hits in memory and on disk, and misses since the model was loaded, for metrics."""
        found = self.hits + self.disk_hits
        figures = {
            "vision_cache_gib": self.nbytes / 2**30,
            "vision_cache_hits": self.hits,
            "vision_cache_misses": self.misses,
            "vision_cache_hit_rate": found / max(found + self.misses, 1),
        }
        if self.disk:
            figures |= {"vision_disk_gib": self.disk.nbytes / 2**30, "vision_disk_hits": self.disk_hits}
        return figures

    def forget(self) -> None:
        """Keep nothing in memory of the pictures seen so far."""
        self.settle()
        self.kept.clear()
        self.nbytes = 0
        self.said_full = False

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it; for when the GPU's memory is short."""
        self.tower.park()

    def unpark(self) -> None:
        """Bring the tower back: transformers takes the device of a model's first weight for that of all."""
        self.tower.unpark()

    def _keyed(self, question: Question, image: ImageSettings) -> list[tuple[Key, _Asked]]:
        """The question's pictures under their keys, in their order."""
        shape = (image.mode, image.size, image.min_visual_tokens, image.max_visual_tokens)
        view = question.view
        return [((p.sha256, *shape, view), _Asked(p, view, question.id)) for p in question.pictures]

    def _read(self, missing: dict[Key, _Asked], image: ImageSettings) -> _Read:
        futures = {key: self.pool.submit(self._found, key, asked, image) for key, asked in missing.items()}
        found = {key: future.result() for key, future in futures.items()}
        stored = {key: value for key, value in found.items() if isinstance(value, VisionFeatures)}
        pictures = {key: value for key, value in found.items() if key not in stored}
        joined = self.tower.join(list(pictures.values())) if pictures else None
        return _Read(stored, list(pictures), joined)

    def _found(self, key: Key, asked: _Asked, image: ImageSettings) -> Any:
        """The picture's features from disk, or else the picture to make them from."""
        stored = self.disk.read(self._disk_key(key)) if self.disk and not asked.view else None
        if stored is None:
            return self._picture(asked, image)
        try:
            return self._features(*stored)
        except (LookupError, ValueError) as error:  # somebody else's file, with a checksum that fits
            log.warning("image.cache_dir: the features of %s are made again: %s", asked.picture.path, error)
            return self._picture(asked, image)

    def _features(self, tensors: Tensors, notes: dict[str, str]) -> VisionFeatures:
        """What a file holds.

        Raises:
            LookupError: A tensor or note is missing.
            ValueError: A note or shape is none that a picture has.
        """
        height, width = (int(side) for side in notes["grid_hw"].split())
        merge = self.tower.merge
        made = VisionFeatures(
            pooled=tensors["pooled"],
            deepstack=tuple(tensors[f"deepstack.{tap}"] for tap in range(len(tensors) - 1)),
            grid=(height // merge, width // merge),
            grid_thw=(1, height, width),
            placeholder=notes.get("placeholder", ""),
            listed=notes.get("listed", "True") == "True",
        )
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        visual = made.grid[0] * made.grid[1]
        if len(shapes) != 1 or (not made.placeholder and made.pooled.shape[0] != visual):
            raise ValueError(f"{visual} visual tokens do not have the shapes {sorted(shapes)}")
        return made

    def _disk_key(self, key: Key) -> str:
        return hashlib.sha256(f"{self.digest} {key[:-1]}".encode()).hexdigest()  # views are not stored

    def _obtain(self, read: _Read) -> dict[Key, VisionFeatures]:
        """Features from disk or computed; those to keep, in memory or on disk, are on their way there."""
        computed = self.tower.features(read.pictures) if read.pictures else []
        found = read.stored | dict(zip(read.keys, computed, strict=True))
        pictures = {key: value for key, value in found.items() if not key[-1]}  # views are not kept
        self.disk_hits += len(read.stored)
        self.misses += len(pictures) - len(read.stored)
        kept = set()
        room = spare_bytes() if self.limit_bytes is None else self.limit_bytes - self.nbytes
        for key, features in pictures.items():
            if features.nbytes <= room:
                kept.add(key)
                self.nbytes += features.nbytes
                room -= features.nbytes
        if len(kept) < len(pictures):
            self._say_full()
        moving = [key for key in pictures if key in kept or (self.disk and key not in read.stored)]
        copies = self.copies.begin([found[key] for key in moving])
        if moving:
            self.arriving.append(_Arriving(moving, copies, kept, set(read.stored)))
        self.settle(leave=ON_THE_WAY if self.tower.device.type == "cuda" else 0)
        return found

    def _say_full(self) -> None:
        """Say once that pictures go through the tower again; not where that was asked for."""
        if self.said_full or self.disk or self.limit_bytes == 0:
            return
        self.said_full = True
        log.info(
            "no memory for the features of more pictures (%.1f GiB are kept): others are computed again "
            "whenever they are needed; image.cache_dir=FOLDER keeps them on a disk%s",
            self.nbytes / 2**30,
            "" if self.limit_bytes is None else ", a larger image.cache_gib in memory",
        )

    def _keep(self, arriving: _Arriving) -> None:
        for key, features in zip(arriving.keys, arriving.features.result(), strict=True):
            if key in arriving.kept:
                self.kept[key] = features
            if self.disk and key not in arriving.stored:
                tensors = {f"deepstack.{tap}": value for tap, value in enumerate(features.deepstack)}
                notes = {"grid_hw": " ".join(map(str, features.grid_thw[1:]))}
                if features.placeholder:
                    notes |= {"placeholder": features.placeholder, "listed": str(features.listed)}
                tensors["pooled"] = features.pooled
                # in the pool that reads: a slow disk holds reading up instead of filling the memory
                self.pool.submit(self.disk.write, self._disk_key(key), tensors, notes)

    def _picture(self, asked: _Asked, image: ImageSettings) -> Any:
        path = asked.picture.path
        try:
            picture = fit_image(look(load_image(path), asked.view), image.mode, image.size)
            return self.tower.prepare(picture, image)
        except ValueError as error:  # ImageError, or sides that differ by more than the processor takes
            raise UserError(
                f"{path} (question {asked.question}): {error}; mend it, or look with stage=doctor"
            ) from error
