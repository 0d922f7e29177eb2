"""The short causal convolution of Gated DeltaNet over sequences that lie one after the other in a row.

A prefix, its suffixes and what branches below them are three levels of a tree. A sequence goes on where the
one above it ended: the convolution's first inputs are the last ones of the sequence above.

Notation: T tokens of a level, N its sequences, D features, W width of the convolution.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vqa.machine.device import to_device
from vqa.model.kernels.pointwise import fused
from vqa.model.kernels.tree import TreeLayout

CHUNK = 64  # tokens that the delta rule's kernels take at a time


@dataclass(frozen=True)
class Level:
    """Sequences of one depth of the tree, one after the other in a row.

    Args:
        lengths: Tokens of each.
        ends: (N + 1,) where they begin and end, counted from the level's first token.
        owners: (T,) which sequence a token belongs to.
        offsets: (T,) a token's place in its sequence.
        chunks: (pieces, 2) sequence and number of each piece of 64 tokens.
    """

    lengths: tuple[int, ...]
    ends: torch.Tensor
    owners: torch.Tensor
    offsets: torch.Tensor
    chunks: torch.Tensor

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.offsets)


def row_levels(layout: TreeLayout, device: torch.device) -> list[Level]:
    """The levels of a row, which follow each other in it: the prefix, the suffixes or stems, the branches."""
    lengths: list[tuple[int, ...]] = [(layout.prefix,)] if layout.prefix else []
    lengths += [layout.lengths] if layout.lengths else []
    lengths += [layout.branches.lengths] if layout.branches else []
    return [_level(sizes, device) for sizes in lengths]


def _level(lengths: tuple[int, ...], device: torch.device) -> Level:
    sizes = torch.tensor(lengths)
    pieces = (sizes + CHUNK - 1) // CHUNK
    owners, offsets = _counted(sizes)
    return Level(
        lengths=lengths,
        ends=to_device(F.pad(sizes.cumsum(0), (1, 0)), device),
        owners=to_device(owners, device),
        offsets=to_device(offsets, device),
        chunks=to_device(torch.stack(_counted(pieces), dim=1), device),
    )


def _counted(sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For every element of consecutive groups: its group, its number in it."""
    owners = torch.arange(len(sizes)).repeat_interleave(sizes)
    return owners, torch.arange(len(owners)) - (sizes.cumsum(0) - sizes)[owners]


def children(above: torch.Tensor, level: Level) -> torch.Tensor:
    """(N, ...): for each sequence what the one above it left, (sequences above, ...); their order is kept."""
    each = len(level.lengths) // len(above)
    if len(above) == 1:
        return above.expand(each, *above.shape[1:])
    return above.repeat_interleave(each, dim=0)


def last_inputs(x: torch.Tensor, before: torch.Tensor, level: Level) -> torch.Tensor:
    """(N, W - 1, D): the last inputs of each sequence, from before it where it is shorter.

    Args:
        x: (T, D).
        before: (N, W - 1, D) the inputs before each sequence.
        level: The sequences.
    """
    width = before.shape[1]
    steps = torch.arange(width, device=x.device)
    sizes = level.ends.diff()
    wanted = sizes[:, None] - width + steps  # (N, W - 1), counted from each sequence's begin
    own = x[(level.ends[:-1, None] + wanted).clamp_min(0)]
    index = (wanted + width).clamp_max(width - 1)[..., None].expand_as(before)
    return torch.where((wanted >= 0)[..., None], own, before.gather(1, index))


def short_conv(x: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, level: Level) -> torch.Tensor:
    """silu of the convolution (T, D).

    Args:
        x: (T, D).
        before: (N, W - 1, D) the inputs before each sequence; zeros where it is the first.
        weight: (D, W), frozen; its last column is for the token itself.
        level: The sequences.
    """
    found: torch.Tensor = _ShortConv.apply(x, before, weight, level)  # type: ignore[no-untyped-call]
    return found


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, before: Any, weight: Any, level: Level) -> Any:
        ctx.level, before = level, before.contiguous()  # one layout: fewer kernels are compiled
        ctx.save_for_backward(x, before, weight)
        return _forward(x.detach(), before.detach(), weight, level.owners, level.offsets)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, before, weight = ctx.saved_tensors
        level, needed = ctx.level, ctx.needs_input_grad
        by_sum = _by_sum(grad, x.detach(), before.detach(), weight, level.owners, level.offsets)
        dx = _by_input(by_sum, weight, level.offsets) if needed[0] else None
        dbefore = _by_before(by_sum, weight, level.ends).to(before.dtype) if needed[1] else None
        return dx, dbefore, None, None


def _sum(
    x: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, owners: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """The convolution itself (T, D), in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    W = weight.shape[1]
    total = x.to(wide) * weight[:, W - 1].to(wide)
    for lag in range(1, W):
        known = before[owners, (W - 1 - lag + offsets).clamp_max(W - 2)]
        value = torch.where((offsets >= lag)[:, None], x.roll(lag, 0), known)
        total = total + value.to(wide) * weight[:, W - 1 - lag].to(wide)
    return total


@fused
def _forward(
    x: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, owners: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    return F.silu(_sum(x, before, weight, owners, offsets)).to(x.dtype)


@fused
def _by_sum(
    grad: torch.Tensor,
    x: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    owners: torch.Tensor,
    offsets: torch.Tensor,
) -> torch.Tensor:
    """Gradient (T, D) by the convolution's result before silu."""
    total = _sum(x, before, weight, owners, offsets)
    sigmoid = torch.sigmoid(total)
    return (grad.to(total.dtype) * sigmoid * (1 + total * (1 - sigmoid))).to(grad.dtype)


@fused
def _by_input(by_sum: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Gradient (T, D) by x: every token is an input of those after it in its sequence."""
    wide = torch.promote_types(by_sum.dtype, torch.float32)
    W = weight.shape[1]
    total = by_sum.to(wide) * weight[:, W - 1].to(wide)
    for lag in range(1, W):  # rolled round, a row's first tokens are in no sequence of its last ones
        inside = (offsets.roll(-lag, 0) >= lag)[:, None]
        later = torch.where(inside, by_sum.roll(-lag, 0), 0).to(wide)
        total = total + later * weight[:, W - 1 - lag].to(wide)
    return total.to(by_sum.dtype)


@fused
def _by_before(by_sum: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Gradient (N, W - 1, D) by the inputs before each sequence: its first tokens read them."""
    W = weight.shape[1]
    sizes, starts = ends.diff(), ends[:-1]
    wide = torch.promote_types(by_sum.dtype, torch.float32)
    columns = [by_sum.new_zeros(len(starts), by_sum.shape[1], dtype=wide)] * (W - 1)
    for offset in range(W - 1):  # nothing where a sequence is shorter
        first = by_sum[(starts + offset).clamp_max(len(by_sum) - 1)].to(wide)
        first = torch.where((offset < sizes)[:, None], first, 0)
        for place in range(offset, W - 1):
            columns[place] = columns[place] + first * weight[:, place - offset].to(wide)
    return torch.stack(columns, dim=1)
