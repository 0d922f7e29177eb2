"""Pictures to vision features, once: the tower is frozen, so epochs, folds and trials share them."""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from vqa.device import release_memory, to_device
from vqa.errors import UserError
from vqa.image import fit_image, load_image
from vqa.question import Question
from vqa.reporting import progress
from vqa.settings import ImageSettings

UNLIMITED_TOKENS = 1 << 20
PICTURES_AT_ONCE = 16
Key = tuple[Any, ...]
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
        moved = [t.to(device, non_blocking=True) for t in (self.pooled, *self.deepstack)]
        return replace(self, pooled=moved[0], deepstack=tuple(moved[1:]))


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
    A full cache takes nothing new: dropping the oldest would miss every time when epochs go round in order.

    Args:
        model: The whole model; only its vision tower is used.
        processor: Turns pictures into patches.
        limit_gib: Largest size, GiB; 0 keeps nothing.
    """

    def __init__(self, model: Any, processor: Any, limit_gib: float) -> None:
        self.model = model
        self.processor = processor
        self.limit_bytes = int(limit_gib * 2**30)
        self.nbytes = self.hits = self.misses = 0
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
        fresh = self._compute(missing, self._read(missing, image)) if missing else {}
        self.misses += len(fresh)
        self.hits += sum(key is not None for key in keys) - len(fresh)
        return [fresh.get(key) or self.kept[key] if key else None for key in keys]

    def fill(self, questions: Sequence[Question], image: ImageSettings) -> None:
        """Compute features that are missing, until the memory for them is full.

        Raises:
            UserError: A picture cannot be read or is far too long and thin.
        """
        keyed = {key: q for q in questions if (key := self._key(q, image)) and key not in self.kept}
        items = iter(list(keyed.items()))
        chunks = list(iter(lambda: dict(itertools.islice(items, PICTURES_AT_ONCE)), {}))
        ahead = self._read(chunks[0], image) if chunks else []
        for i, chunk in enumerate(chunks):
            patches = ahead
            ahead = self._read(chunks[i + 1], image) if i + 1 < len(chunks) else []
            before = self.nbytes
            self.misses += len(self._compute(chunk, patches))
            progress("pictures", min((i + 1) * PICTURES_AT_ONCE, len(keyed)), len(keyed))
            if self.nbytes == before:  # full
                return

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it; for when the GPU's memory is short."""
        self.model.model.visual.to("cpu")
        release_memory()

    def _key(self, question: Question, image: ImageSettings) -> Key | None:
        shape = (image.mode, image.size, image.min_visual_tokens, image.max_visual_tokens)
        return (question.image_sha256, *shape) if question.image else None

    def _read(self, missing: dict[Key, Question], image: ImageSettings) -> list[Future[Patches]]:
        return [self.pool.submit(self._patches, question, image) for question in missing.values()]

    def _compute(
        self, missing: dict[Key, Question], patches: Sequence[Future[Patches]]
    ) -> dict[Key, VisionFeatures]:
        visual = self.model.model.visual
        device = self.model.lm_head.weight.device
        visual.to(device)  # where it is, unless it was parked
        found = [future.result() for future in patches]
        grids = torch.cat([grid for _, grid in found])
        pixels = to_device(torch.cat([values for values, _ in found]), device)
        with torch.no_grad():
            output = self.model.model.get_image_features(
                self._normalised(pixels), grids.to(device), return_dict=True
            )
        deepstack = getattr(output, "deepstack_features", None) or []
        fresh = {}
        for i, key in enumerate(missing):
            height, width = int(grids[i, 1]), int(grids[i, 2])
            merge = visual.spatial_merge_size
            taps = tuple(tap[i].clone() for tap in deepstack)
            made = VisionFeatures(
                output.pooler_output[i].clone(), taps, (height // merge, width // merge), (1, height, width)
            )
            fresh[key] = made
            if self.nbytes + made.nbytes <= self.limit_bytes:
                self.kept[key] = made.to(torch.device("cpu"))
                self.nbytes += made.nbytes
        return fresh

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
            picture = fit_image(load_image(question.image), image.mode, image.size)
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
