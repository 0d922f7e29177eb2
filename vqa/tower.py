"""The vision tower on its device: several pictures to features, in one pass.

transformers computes attention picture by picture, for Qwen2.5-VL even window by window, unless a kernel is
registered that takes all of them at once; torch carries one. Its processor takes more time on a picture than
reading it does, much of it under the interpreter's lock: here pictures are resized on the host as it would,
and cut into patches on the device.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vqa.device import join_on_host, release_memory
from vqa.flash import attend_in_parts, has_flash
from vqa.image import tower_size
from vqa.pointwise import rotate_wide
from vqa.vision_features import VisionFeatures

FLASH = "flash_in_parts"  # transformers hands over everything at once to what has "flash" in its name
CHANNELS = 3
PIXELS_AT_ONCE = 32 * 512 * 512  # in one pass: bounds the memory, and fills the device
WIDTH = 8  # half-precision products of other widths run on kernels of a third of the speed


@dataclass(frozen=True)
class Pictures:
    """Pictures ready for the tower.

    Args:
        pixels: Bytes of all of them, one after the other: rows x columns x channels each.
        sizes: Rows and columns of each, multiples of a visual token's side.
    """

    pixels: torch.Tensor
    sizes: list[tuple[int, int]]

    @property
    def lengths(self) -> list[int]:
        """Bytes of each."""
        return [height * width * CHANNELS for height, width in self.sizes]


def resized(picture: Image.Image, processor: Any, least: int, most: int | None) -> torch.Tensor:
    """(H, W, C) bytes of an RGB picture, scaled as the processor would.

    Args:
        picture: Of any size.
        processor: The model's image processor.
        least: Visual tokens it gets at least: smaller pictures are enlarged.
        most: Visual tokens it gets at most; None: as many as it has.

    Raises:
        ValueError: One side is more than 200 times the other.
    """
    size = tower_size(*picture.size, processor.patch_size * processor.merge_size, least, most)
    if size != picture.size:
        picture = picture.resize(size, resample=processor.resample)
    return torch.from_numpy(np.array(picture))


def join_pictures(parts: Sequence[torch.Tensor], device: torch.device) -> Pictures:
    """Several pictures (H, W, C), in memory from which they can be copied to the device beside its work."""
    pixels = join_on_host([part.flatten() for part in parts], device)
    return Pictures(pixels, [(part.shape[0], part.shape[1]) for part in parts])


def cut_patches(picture: torch.Tensor, patch: int, merge: int, temporal: int) -> torch.Tensor:
    """(N, channels x frames x pixels of a patch): the patches of a visual token one after the other.

    Source: the layout of transformers' Qwen2VLImageProcessor.

    Args:
        picture: (H, W, C).
        patch: Side of a patch, pixels.
        merge: Patches along a visual token's side.
        temporal: Frames of a patch; a still picture repeats itself.
    """
    H, W, C = picture.shape
    rows, columns = H // (patch * merge), W // (patch * merge)
    blocks = picture.view(rows, merge, patch, columns, merge, patch, C).permute(0, 3, 1, 4, 6, 2, 5)
    frames = blocks[..., None, :, :].expand(*blocks.shape[:5], temporal, patch, patch)
    return frames.reshape(rows * columns * merge**2, -1)


class Tower:
    """The frozen tower of one model.

    Args:
        model: The whole model; only its vision tower is used.
        processor: Knows the patches' size and the pixels' mean and standard deviation.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.model
        self.visual = model.model.visual
        self.processor = processor
        self.device: torch.device = model.lm_head.weight.device
        _use_fast_kernels(self.visual, self.device)
        _widen(self.visual, self.device)

    def features(self, pictures: Pictures) -> list[VisionFeatures]:
        """What the tower makes of each picture, on the device."""
        if self.visual.device != self.device:  # it was parked
            self.visual.to(self.device)
        return [features for part in _passes(pictures) for features in self._in_one_pass(part)]

    def _in_one_pass(self, pictures: Pictures) -> list[VisionFeatures]:
        of = self.processor
        patch, merge = of.patch_size, of.merge_size
        grids = [(1, height // patch, width // patch) for height, width in pictures.sizes]
        pixels = pictures.pixels.to(self.device, non_blocking=True)
        whole = pixels.split_with_sizes(pictures.lengths)
        patches = [
            cut_patches(part.view(*size, CHANNELS), patch, merge, of.temporal_patch_size)
            for part, size in zip(whole, pictures.sizes, strict=True)
        ]
        inputs = self._normalised(torch.cat(patches)), torch.tensor(grids, device=self.device)
        with torch.no_grad():
            output = self.model.get_image_features(*inputs, return_dict=True)
        deepstack = getattr(output, "deepstack_features", None) or []
        return [
            VisionFeatures(
                output.pooler_output[i].clone(),
                tuple(tap[i].clone() for tap in deepstack),
                (height // merge, width // merge),
                (1, height, width),
            )
            for i, (_, height, width) in enumerate(grids)
        ]

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it; for when the GPU's memory is short."""
        self.visual.to("cpu")
        release_memory()

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (N, channels x frames x pixels of a patch) to the tower's range."""
        mean, std = (
            torch.tensor(values, device=pixels.device)[:, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        by_channel = pixels.float().view(len(pixels), len(mean), -1) * self.processor.rescale_factor
        normalised: torch.Tensor = (by_channel - mean) / std
        return normalised.flatten(1)


def _passes(pictures: Pictures) -> Iterator[Pictures]:
    """The same pictures, as many at a time as the tower takes; one alone may be larger."""
    begin = end = start = 0
    for i, length in enumerate(pictures.lengths):
        if i > begin and end + length - start > PIXELS_AT_ONCE * CHANNELS:
            yield Pictures(pictures.pixels[start:end], pictures.sizes[begin:i])
            begin, start = i, end
        end += length
    yield Pictures(pictures.pixels[start:end], pictures.sizes[begin:])


def _use_fast_kernels(visual: Any, device: torch.device) -> None:
    """FlashAttention in one call for all pictures or windows, and one kernel that rotates; where they run."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = visual.blocks[0].attn
    if has_flash(torch.empty(1, attention.num_heads, attention.head_dim, dtype=visual.dtype, device=device)):
        ALL_ATTENTION_FUNCTIONS.register(FLASH, _flash_in_parts)
        visual.config._attn_implementation = FLASH
        # a third of the tower's time otherwise; transformers offers no other place to exchange it
        sys.modules[type(visual).__module__].apply_rotary_pos_emb_vision = _rotated  # type: ignore[attr-defined]


def _rotated(q: Any, k: Any, cos: Any, sin: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return rotate_wide(q, cos, sin), rotate_wide(k, cos, sin)


def _flash_in_parts(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (1, H, T, D) to (1, T, H, D); every part sees itself."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_in_parts(q, k, v, cu_seq_lens_q, max_length_q, scaling)[None], None


def _widen(visual: Any, device: torch.device) -> None:
    """Pad the gated MLPs with zeros to a width that fast kernels take (Qwen2.5-VL-7B: 3,420).

    What is added is silu(0) x 0 = 0, and counts nothing further on.
    """
    if device.type != "cuda" or visual.dtype.itemsize > 2:
        return
    for block in visual.blocks:
        gate = getattr(block.mlp, "gate_proj", None)  # Qwen3-VL's MLP has none
        if gate is not None and gate.weight.is_floating_point() and gate.out_features % WIDTH:
            pad_mlp(block.mlp, -gate.out_features % WIDTH)


def pad_mlp(mlp: Any, missing: int) -> None:
    """Add so many columns of zeros to a gated MLP's inner width; the result stays the same."""
    for linear in (mlp.gate_proj, mlp.up_proj):
        _replace(linear, "weight", (0, 0, 0, missing))
        if linear.bias is not None:
            _replace(linear, "bias", (0, missing))
        linear.out_features += missing
    _replace(mlp.down_proj, "weight", (0, missing))
    mlp.down_proj.in_features += missing


def _replace(linear: torch.nn.Linear, name: str, padding: tuple[int, ...]) -> None:
    old = getattr(linear, name)
    padded = torch.nn.functional.pad(old.detach(), padding)
    setattr(linear, name, torch.nn.Parameter(padded, requires_grad=old.requires_grad))
