"""Pictures to vision features, once: the tower is frozen, so epochs, folds and trials share them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from vqa.errors import UserError
from vqa.image import fit_image, load_image
from vqa.question import Question
from vqa.settings import ImageSettings

UNLIMITED_TOKENS = 1 << 20


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


def join_features(features: Sequence[VisionFeatures], device: torch.device) -> dict[str, Any] | None:
    """Features of several pictures as the model's `mm_encoder_outputs`; None without pictures."""
    if not features:
        return None
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
        self.kept: dict[tuple[Any, ...], VisionFeatures] = {}
        # Decoding and resizing release the interpreter lock for most of their time.
        self.pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="pixels")

    def features(self, questions: Sequence[Question], image: ImageSettings) -> list[VisionFeatures | None]:
        """Features of each question's picture, None where there is none.

        Raises:
            UserError: A picture cannot be read or is far too long and thin.
        """
        keys = [self._key(q, image) for q in questions]
        missing = {key: q for key, q in zip(keys, questions, strict=True) if key and key not in self.kept}
        fresh = self._compute(missing, image)
        self.misses += len(fresh)
        self.hits += sum(key is not None for key in keys) - len(fresh)
        return [fresh.get(key) or self.kept[key] if key else None for key in keys]

    def _key(self, question: Question, image: ImageSettings) -> tuple[Any, ...] | None:
        shape = (image.mode, image.size, image.min_visual_tokens, image.max_visual_tokens)
        return (question.image_sha256, *shape) if question.image else None

    def _compute(
        self, missing: dict[tuple[Any, ...], Question], image: ImageSettings
    ) -> dict[tuple[Any, ...], VisionFeatures]:
        if not missing:
            return {}
        patches = list(self.pool.map(lambda q: self._patches(q, image), missing.values()))
        visual = self.model.model.visual
        grids = torch.cat([grid for _, grid in patches])
        pixels = torch.cat([values for values, _ in patches])
        device = next(visual.parameters()).device
        with torch.no_grad():
            output = self.model.model.get_image_features(
                pixels.to(device), grids.to(device), return_dict=True
            )
        deepstack = getattr(output, "deepstack_features", None) or []
        fresh = {}
        for i, key in enumerate(missing):
            height, width = int(grids[i, 1]), int(grids[i, 2])
            merge = visual.spatial_merge_size
            taps = tuple(tap[i].clone() for tap in deepstack)
            found = VisionFeatures(
                output.pooler_output[i].clone(), taps, (height // merge, width // merge), (1, height, width)
            )
            fresh[key] = found
            if self.nbytes + found.nbytes <= self.limit_bytes:
                self.kept[key] = found.to(torch.device("cpu"))
                self.nbytes += found.nbytes
        return fresh

    def _patches(self, question: Question, image: ImageSettings) -> tuple[torch.Tensor, torch.Tensor]:
        if question.image is None:
            raise ValueError(f"question {question.id} has no picture")
        try:
            picture = fit_image(load_image(question.image), image.mode, image.size)
            return self._processed(picture, image)
        except ValueError as error:  # ImageError, or sides that differ by more than the processor takes
            raise UserError(
                f"{question.image} (question {question.id}): {error}; mend it, or look with stage=doctor"
            ) from error

    def _processed(self, picture: Image.Image, image: ImageSettings) -> tuple[torch.Tensor, torch.Tensor]:
        side = (self.processor.patch_size * self.processor.merge_size) ** 2  # pixels per visual token
        top = image.max_visual_tokens or UNLIMITED_TOKENS
        # never scaled up: the cap is the picture's own size where that is smaller, but at least the minimum
        low = image.min_visual_tokens * side
        size = {"shortest_edge": low, "longest_edge": top * side}
        out = self.processor(images=[picture], size=size, return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"]
