"""The vision tower on its device: several pictures to features, in one pass.

transformers' processor takes more time on a picture than reading it does, much of it under the interpreter's
lock: here pictures are resized on the host as it would, and cut into patches on the device.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vqa.config.settings import ImageSettings
from vqa.data.image import tower_size
from vqa.machine.device import join_on_host, release_memory, to_device
from vqa.model.vision.features import VisionFeatures
from vqa.model.vision.tower_kernels import use_fast_kernels

CHANNELS = 3
PIXELS_AT_ONCE = 32 * 512 * 512  # in one pass: bounds the memory, and fills the device
Grid = tuple[int, int, int]  # frames, rows and columns of patches


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


def cut_patches(pictures: torch.Tensor, patch: int, merge: int, temporal: int) -> torch.Tensor:
    """(B x N, channels x frames x pixels of a patch): the patches of a visual token one after the other.

    Source: the layout of transformers' Qwen2VLImageProcessor.

    Args:
        pictures: (B, H, W, C), B of one size.
        patch: Side of a patch, pixels.
        merge: Patches along a visual token's side.
        temporal: Frames of a patch; a still picture repeats itself.
    """
    B, H, W, C = pictures.shape
    rows, columns = H // (patch * merge), W // (patch * merge)
    blocks = pictures.view(B, rows, merge, patch, columns, merge, patch, C).permute(0, 1, 4, 2, 5, 7, 3, 6)
    frames = blocks[..., None, :, :].expand(*blocks.shape[:6], temporal, patch, patch)
    return frames.reshape(B * rows * columns * merge**2, -1)


class Tower:
    """The frozen tower of one model.

    Args:
        model: The whole model; only its vision tower is used.
        processor: Knows the patches' size and the pixels' mean and standard deviation.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.visual = model.model.visual
        self.arguments: dict[str, Any] = {}  # the budget is written by vqa/hand_over.py
        self.processor = processor
        self.device: torch.device = model.lm_head.weight.device
        self.mean, self.std = (
            torch.tensor(values, device=self.device)[:, None]
            for values in (processor.image_mean, processor.image_std)
        )
        self.placed: tuple[tuple[Grid, ...], dict[str, Any]] = (), {}  # of the pass before: often alike
        use_fast_kernels(self.visual, self.device)

    @property
    def merge(self) -> int:
        """Patches along a visual token's side."""
        return int(self.visual.spatial_merge_size)

    def prepare(self, picture: Image.Image, image: ImageSettings) -> torch.Tensor:
        """(H, W, C) bytes of an RGB picture, scaled as the processor would, within the budget."""
        # never scaled up beyond the minimum: the cap is the picture's own size where that is smaller
        return resized(picture, self.processor, image.min_visual_tokens, image.max_visual_tokens)

    def join(self, parts: Sequence[torch.Tensor]) -> Pictures:
        """Several pictures, for one call of `features`."""
        return join_pictures(parts, self.device)

    def features(self, pictures: Pictures) -> list[VisionFeatures]:
        """What the tower makes of each picture, on the device; parts of one tensor for all."""
        self.unpark()
        return [features for part in _passes(pictures) for features in self._in_one_pass(part)]

    def _in_one_pass(self, pictures: Pictures) -> list[VisionFeatures]:
        of = self.processor
        patch, merge = of.patch_size, of.merge_size
        pixels = pictures.pixels.to(self.device, non_blocking=True)
        alike = [(size, len(list(same))) for size, same in itertools.groupby(pictures.sizes)]
        parts = pixels.split_with_sizes([height * width * CHANNELS * n for (height, width), n in alike])
        patches = [
            cut_patches(part.view(n, *size, CHANNELS), patch, merge, of.temporal_patch_size)
            for part, (size, n) in zip(parts, alike, strict=True)
        ]
        grids = tuple((1, height // patch, width // patch) for height, width in pictures.sizes)
        values = self._normalised(torch.cat(patches)).to(self.visual.dtype)
        with torch.no_grad():
            output = self.visual(
                values, grid_thw=torch.tensor(grids), return_dict=True, **self._places(grids)
            )
        tensors = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        tokens = [height * width // merge**2 for _, height, width in grids]
        single = zip(*(tensor.split(tokens) for tensor in tensors), strict=True)
        return [
            VisionFeatures(pooled, tuple(taps), (grid[1] // merge, grid[2] // merge), grid)
            for (pooled, *taps), grid in zip(single, grids, strict=True)
        ]

    def _places(self, grids: tuple[Grid, ...]) -> dict[str, Any]:
        """Where patches lie and pictures end, on the device: transformers would ask it for them and wait."""
        if self.placed[0] != grids:
            self.placed = grids, places(self.visual, grids, self.device)
        return self.placed[1]

    @property
    def is_parked(self) -> bool:
        """Whether it waits in host memory."""
        return bool(self.visual.device != self.device)

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it; for when the GPU's memory is short."""
        self.visual.to("cpu")
        release_memory()

    def unpark(self) -> None:
        """Bring it back to its device; nothing happens where it is there."""
        if self.is_parked:
            self.visual.to(self.device)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (N, channels x frames x pixels of a patch) to the tower's range."""
        by_channel = pixels.float().view(len(pixels), CHANNELS, -1)
        return by_channel.mul_(self.processor.rescale_factor).sub_(self.mean).div_(self.std).flatten(1)


def _passes(pictures: Pictures) -> Iterator[Pictures]:
    """The same pictures, as many at a time as the tower takes; one alone may be larger."""
    begin = end = start = 0
    for i, length in enumerate(pictures.lengths):
        if i > begin and end + length - start > PIXELS_AT_ONCE * CHANNELS:
            yield Pictures(pictures.pixels[start:end], pictures.sizes[begin:i])
            begin, start = i, end
        end += length
    yield Pictures(pictures.pixels[start:end], pictures.sizes[begin:])


def places(visual: Any, grids: tuple[Grid, ...], device: torch.device) -> dict[str, Any]:
    """What a tower would work out of its pictures' sizes: positions of the patches, where pictures end.

    Args:
        visual: The tower.
        grids: Of the pictures, in patches.
        device: Where the tensors go.

    Returns:
        The arguments that spare it that, named as transformers.vision_utils takes them.
    """
    from transformers import vision_utils

    grid_thw, merge = torch.tensor(grids), visual.spatial_merge_size
    ends = vision_utils.get_vision_cu_seqlens(grid_thw)
    found = {"cu_seqlens": ends, "position_ids": vision_utils.get_vision_position_ids(grid_thw, merge)}
    longest = {"max_seqlen": int(ends.diff().max())}
    if hasattr(visual, "window_size"):  # Qwen2.5-VL
        order, ends = vision_utils.get_vision_window_index(
            grid_thw, merge, visual.window_size, visual.patch_size
        )
        found |= {"window_index": order, "cu_window_seqlens": ends}
        longest["max_window_seqlen"] = int(ends.diff().max())
    else:
        mode, corners = visual.interpolation_mode, visual.interpolation_align_corners
        near = vision_utils.get_vision_interpolation_indices_and_weights(
            grid_thw, visual.num_grid_per_side, mode, corners, merge
        )
        found |= dict(zip(("interp_indices", "interp_weights"), near, strict=True))
    return {name: to_device(tensor, device) for name, tensor in found.items()} | longest
