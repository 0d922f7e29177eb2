"""What the vision tower made of pictures: on the device, in host memory, on the way between them."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from vqa.machine.device import copied_beside, join_on_host, pinned_copy


@dataclass(frozen=True)
class VisionFeatures:
    """What the tower and its merger made of one picture.

    Args:
        pooled: (N, hidden) one row per visual token.
        deepstack: One (N, hidden) per tap of Qwen3-VL's DeepStack; empty for Qwen2.5-VL.
        grid: Rows and columns of visual tokens, rows x columns = N.
        grid_thw: The same in patches, as the model wants it: (1, height, width).
        placeholder: What stands for the picture in the text of models on the generic path; "" elsewhere.
        listed: Whether the model takes features as a list, one tensor a picture, or as one tensor.
    """

    pooled: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    grid: tuple[int, int]
    grid_thw: tuple[int, int, int]
    placeholder: str = ""
    listed: bool = True

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.pooled, *self.deepstack))

    def to(self, device: torch.device) -> "VisionFeatures":
        """The same features on another device."""
        if self.pooled.device == device:
            return self
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "VisionFeatures":
        """The same picture with every tensor changed."""
        return replace(self, pooled=change(self.pooled), deepstack=tuple(map(change, self.deepstack)))


class HostCopies:
    """Copies features from the GPU to host memory while it computes the next ones."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="to host")
        self.stream: torch.cuda.Stream | None = None

    def begin(self, features: Sequence[VisionFeatures]) -> Future[list[VisionFeatures]]:
        """The features in host memory of their own, once they are there."""
        device = next((f.pooled.device for f in features if f.pooled.is_cuda), None)
        if device is None:
            return self.pool.submit(lambda: [f.mapped(_own) for f in features])
        # through pinned memory and on a stream of its own: the GPU computes on meanwhile
        stream = self.stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream = stream
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            passing = [f.mapped(_to_pinned) for f in features]
        return self.pool.submit(_taken_out, passing, stream.record_event())


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:  # it came from disk
        return tensor
    tensor.record_stream(torch.cuda.current_stream())  # its memory is not used again before it is copied
    return pinned_copy(tensor)


def _taken_out(features: list[VisionFeatures], arrived: Any) -> list[VisionFeatures]:
    """Copies in ordinary memory, so that the pinned one can be used again."""
    arrived.synchronize()
    return [f.mapped(_own) for f in features]


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in ordinary memory that holds nothing else."""
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone and not tensor.is_pinned() else tensor.clone()


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
    if any(part.is_cuda for part in parts):  # just made, and the cache is full
        return torch.cat([part.to(device) for part in parts])
    return copied_beside(join_on_host(parts, device), device)


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
