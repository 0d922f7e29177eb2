"""Gemma 3 and 4: sliding and full attention, in some bidirectional over a picture, fixed token counts."""

from typing import Any

import numpy as np

from vqa.model.families.family import tested

STEPS = (70, 140, 280, 560, 1120)  # visual tokens that Gemma 4's processors know


def soft_tokens(_: Any, least: int, most: int | None) -> dict[str, Any]:
    """The largest step within the budget, or the smallest there is; without a limit the processor's own."""
    if most is None:
        return {}
    return {"max_soft_tokens": max((step for step in STEPS if step <= most), default=STEPS[0])}


def unified_processor(folder: str, **where: Any) -> Any:
    """Gemma 4 unified's image processor on Pillow: Gemma 4's, then k x k patches joined to one.

    Source: transformers' Gemma4UnifiedImageProcessor, which needs torchvision.
    """
    from transformers.models.gemma4 import image_processing_pil_gemma4

    gemma4: Any = image_processing_pil_gemma4.Gemma4ImageProcessorPil

    class Gemma4UnifiedImageProcessorPil(gemma4):  # type: ignore[misc]
        def _preprocess(self, images: list[Any], return_tensors: Any = None, **kwargs: Any) -> Any:
            found = super()._preprocess(images, return_tensors=None, **kwargs)
            k, patch = kwargs["pooling_kernel_size"], kwargs["patch_size"]
            joined = [
                _join(np.asarray(pixels), np.asarray(places), k, patch, kwargs["max_soft_tokens"])
                for pixels, places in zip(found["pixel_values"], found["image_position_ids"], strict=True)
            ]
            found["pixel_values"] = np.stack([pixels for pixels, _ in joined])
            found["image_position_ids"] = np.stack([places for _, places in joined])
            return found.convert_to_tensors(return_tensors)

    return Gemma4UnifiedImageProcessorPil.from_pretrained(folder, **where)


def _join(pixels: Any, places: Any, k: int, patch: int, most: int) -> tuple[Any, Any]:
    """Patches (N, patch^2 x 3) by rows to (most, (k patch)^2 x 3), and places (most, 2), -1 for none."""
    real = places[:, 0] >= 0
    columns, rows = (places[real].max(0) + 1) // k
    grid = pixels[real].reshape(rows, k, columns, k, patch, patch, 3)
    whole = grid.transpose(0, 2, 1, 4, 3, 5, 6).reshape(rows * columns, -1)
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    missing = ((0, most - len(whole)), (0, 0))
    places = np.pad(np.stack([x, y], -1).reshape(-1, 2), missing, constant_values=-1)
    return np.pad(whole, missing), places


GEMMA3 = tested(
    types=("gemma3",),
)
GEMMA4 = tested(types=("gemma4",), budget=soft_tokens)
UNIFIED = tested(
    types=("gemma4_unified",),
    budget=soft_tokens,
    image_processor=unified_processor,
)
