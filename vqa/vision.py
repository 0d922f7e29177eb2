"""Pictures to vision features, once: the tower is frozen, so epochs, folds and trials share them."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vqa.device import release_memory, to_device
from vqa.errors import UserError
from vqa.feature_store import FeatureStore, tower_digest
from vqa.image import fit_image, load_image
from vqa.question import Question
from vqa.reporting import progress
from vqa.settings import ImageSettings
from vqa.views import look

UNLIMITED_TOKENS = 1 << 20
PICTURES_AT_ONCE = 16
Key = tuple[Any, ...]  # the picture's digest, how it is processed, its view
Patches = tuple[torch.Tensor, torch.Tensor]  # pixels of the patches as bytes; rows and columns of patches


@dataclass(frozen=True)
class VisionFeatures:
    """What the tower and its merger made of one picture.

    Args:
        pooled: (N, hidden) one row per visual token.
        deepstack: One (N, hidden) per tap of Qwen3-VL's DeepStack; empty for Qwen2.5-VL.
        grid: Rows and columns of visual tokens, rows x columns = N.
        grid_thw: The same in patches, as the model wants it: (1, height, width).
    """

    pooled: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    grid: tuple[int, int]
    grid_thw: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.pooled, *self.deepstack))

    def to(self, device: torch.device) -> "VisionFeatures":
        """The same features on another device."""
        if self.pooled.device == device:
            return self
        moved = [t.to(device, non_blocking=True) for t in (self.pooled, *self.deepstack)]
        return replace(self, pooled=moved[0], deepstack=tuple(moved[1:]))


Found = VisionFeatures | Patches


@dataclass(frozen=True)
class JoinedFeatures:
    """Features of several pictures, one after the other: `pooled` (N, hidden) and each tap of `deepstack`."""

    pooled: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]


def join_features(features: Sequence[VisionFeatures], device: torch.device) -> JoinedFeatures | None:
    """One run of visual tokens, on the device; None without pictures."""
    if not features:
        return None
    taps = range(len(features[0].deepstack))
    pooled = _join([f.pooled for f in features], device)
    return JoinedFeatures(pooled, tuple(_join([f.deepstack[tap] for f in features], device) for tap in taps))


def _join(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return torch.cat(parts)
    rows = sum(len(part) for part in parts)
    if any(part.device.type == "cuda" for part in parts):  # just made, and the cache is full
        return torch.cat([part.to(device) for part in parts])
    # joined in pinned memory: the copy to the GPU goes on beside the computation
    whole = torch.empty(rows, parts[0].shape[1], dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=whole).to(device, non_blocking=True)


def encoder_outputs(features: Sequence[VisionFeatures], device: torch.device) -> dict[str, Any]:
    """Features of several pictures as the `mm_encoder_outputs` of transformers' own forward."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    moved = [f.to(device) for f in features]
    taps = range(len(moved[0].deepstack))
    # typed as tensors there, but one tensor per picture is what the models take
    output_class: Any = BaseModelOutputWithDeepstackFeatures
    output = output_class(
        pooler_output=tuple(f.pooled for f in moved),
        deepstack_features=[tuple(f.deepstack[tap] for f in moved) for tap in taps],
    )
    return {"image": output}


class VisionCache:
    """Features of the pictures seen so far, in host memory (on the CPU: simply kept).

    Keyed by picture bytes and processing; it belongs to one loaded model, so the revision needs no key.
    With `image.cache_dir` what is not in memory is looked for on disk, under the tower's digest too.
    A full cache takes nothing new: dropping the oldest would miss every time when epochs go round in order.
    Views are neither kept nor counted: each is looked at once, and many would crowd pictures out.

    Args:
        model: The whole model; only its vision tower is used.
        processor: Turns pictures into patches.
        limit_gib: Largest size, GiB; 0 keeps nothing.
    """

    def __init__(self, model: Any, processor: Any, limit_gib: float) -> None:
        self.model = model
        self.processor = processor
        self.limit_bytes = int(limit_gib * 2**30)
        self.nbytes = self.hits = self.disk_hits = self.misses = 0
        self.disk: FeatureStore | None = None
        self.digest = ""
        self.kept: dict[Key, VisionFeatures] = {}
        # Decoding and resizing release the interpreter lock for most of their time.
        self.pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="pixels")

    def features(self, questions: Sequence[Question], image: ImageSettings) -> list[VisionFeatures | None]:
        """Features of each question's picture, None where there is none.

        Raises:
            UserError: A picture cannot be read or is far too long and thin.
        """
        keys = [self._key(q, image) for q in questions]
        missing = {key: q for key, q in zip(keys, questions, strict=True) if key and key not in self.kept}
        fresh = self._obtain(self._read(missing, image))
        self.hits += sum(key is not None and not key[-1] for key in keys) - sum(not key[-1] for key in fresh)
        return [fresh.get(key) or self.kept[key] if key else None for key in keys]

    def fill(self, questions: Sequence[Question], image: ImageSettings) -> None:
        """Compute features that are missing, until the memory for them is full.

        Raises:
            UserError: A picture cannot be read or is far too long and thin.
        """
        whole = [q for q in questions if not q.view]
        keyed = {key: q for q in whole if (key := self._key(q, image)) and key not in self.kept}
        items = iter(list(keyed.items()))
        chunks = list(iter(lambda: dict(itertools.islice(items, PICTURES_AT_ONCE)), {}))
        ahead = self._read(chunks[0], image) if chunks else {}
        for i in range(len(chunks)):
            found = ahead
            ahead = self._read(chunks[i + 1], image) if i + 1 < len(chunks) else {}
            before = self.nbytes
            self._obtain(found)
            progress("pictures", min((i + 1) * PICTURES_AT_ONCE, len(keyed)), len(keyed))
            if self.nbytes == before:  # full
                return

    def use_disk(self, image: ImageSettings) -> None:
        """Take and keep features in `image.cache_dir` too; never those of a tower that is being trained.

        Raises:
            UserError: The folder cannot be written.
        """
        before, self.disk = self.disk, None
        visual = self.model.model.visual
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

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it; for when the GPU's memory is short."""
        self.model.model.visual.to("cpu")
        release_memory()

    def _key(self, question: Question, image: ImageSettings) -> Key | None:
        shape = (image.mode, image.size, image.min_visual_tokens, image.max_visual_tokens)
        return (question.image_sha256, *shape, question.view) if question.image else None

    def _read(self, missing: dict[Key, Question], image: ImageSettings) -> dict[Key, Future[Found]]:
        return {key: self.pool.submit(self._found, key, question, image) for key, question in missing.items()}

    def _found(self, key: Key, question: Question, image: ImageSettings) -> Found:
        """The picture's features from disk, or else its patches to make them from."""
        stored = self.disk.read(self._disk_key(key)) if self.disk and not question.view else None
        if stored is None:
            return self._patches(question, image)
        tensors, notes = stored
        height, width = (int(side) for side in notes["grid_hw"].split())
        merge = self.model.model.visual.spatial_merge_size
        taps = tuple(tensors[f"deepstack.{tap}"] for tap in range(len(tensors) - 1))
        return VisionFeatures(tensors["pooled"], taps, (height // merge, width // merge), (1, height, width))

    def _disk_key(self, key: Key) -> str:
        return hashlib.sha256(f"{self.digest} {key[:-1]}".encode()).hexdigest()  # views are not stored

    def _obtain(self, futures: dict[Key, Future[Found]]) -> dict[Key, VisionFeatures]:
        """Features from disk or computed; kept in memory, and on disk, where there is room."""
        found = {key: future.result() for key, future in futures.items()}
        stored = {key: value for key, value in found.items() if isinstance(value, VisionFeatures)}
        patches = {key: value for key, value in found.items() if not isinstance(value, VisionFeatures)}
        made = self._compute(patches) if patches else {}
        self.disk_hits += len(stored)
        pictures = {key: value for key, value in (stored | made).items() if not key[-1]}
        self.misses += len(pictures) - len(stored)
        for key, features in pictures.items():
            room = self.nbytes + features.nbytes <= self.limit_bytes
            if not room and (key in stored or not self.disk):
                continue
            in_memory = features.to(torch.device("cpu"))
            if room:
                self.kept[key] = in_memory
                self.nbytes += features.nbytes
            if key in made and self.disk:
                tensors = {f"deepstack.{tap}": value for tap, value in enumerate(in_memory.deepstack)}
                notes = {"grid_hw": " ".join(map(str, in_memory.grid_thw[1:]))}
                tensors["pooled"] = in_memory.pooled
                # in the pool that reads: a slow disk holds reading up instead of filling the memory
                self.pool.submit(self.disk.write, self._disk_key(key), tensors, notes)
        return stored | made

    def _compute(self, patches: dict[Key, Patches]) -> dict[Key, VisionFeatures]:
        visual = self.model.model.visual
        device = self.model.lm_head.weight.device
        visual.to(device)  # where it is, unless it was parked
        grids = torch.cat([grid for _, grid in patches.values()])
        pixels = to_device(torch.cat([values for values, _ in patches.values()]), device)
        with torch.no_grad():
            output = self.model.model.get_image_features(
                self._normalised(pixels), grids.to(device), return_dict=True
            )
        deepstack = getattr(output, "deepstack_features", None) or []
        made = {}
        for i, key in enumerate(patches):
            height, width = int(grids[i, 1]), int(grids[i, 2])
            merge = visual.spatial_merge_size
            made[key] = VisionFeatures(
                output.pooler_output[i].clone(),
                tuple(tap[i].clone() for tap in deepstack),
                (height // merge, width // merge),
                (1, height, width),
            )
        return made

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (N, channels x pixels of a patch) to the tower's range; here, as bytes are faster to copy."""
        mean, std = (
            torch.tensor(values, device=pixels.device)[:, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        by_channel = pixels.float().view(len(pixels), len(mean), -1) * self.processor.rescale_factor
        normalised: torch.Tensor = (by_channel - mean) / std
        return normalised.flatten(1)

    def _patches(self, question: Question, image: ImageSettings) -> Patches:
        if question.image is None:
            raise ValueError(f"question {question.id} has no picture")
        try:
            picture = fit_image(look(load_image(question.image), question.view), image.mode, image.size)
            return self._processed(picture, image)
        except ValueError as error:  # ImageError, or sides that differ by more than the processor takes
            raise UserError(
                f"{question.image} (question {question.id}): {error}; mend it, or look with stage=doctor"
            ) from error

    def _processed(self, picture: Image.Image, image: ImageSettings) -> Patches:
        side = (self.processor.patch_size * self.processor.merge_size) ** 2  # pixels per visual token
        top = image.max_visual_tokens or UNLIMITED_TOKENS
        # never scaled up: the cap is the picture's own size where that is smaller, but at least the minimum
        low = image.min_visual_tokens * side
        size = {"shortest_edge": low, "longest_edge": top * side}
        out = self.processor(
            images=[picture], size=size, do_rescale=False, do_normalize=False, return_tensors="pt"
        )
        return out["pixel_values"].to(torch.uint8), out["image_grid_thw"]
