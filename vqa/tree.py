"""The layout of a packed row: one prefix, many suffixes, and where each begins and ends.

Notation: P prefix tokens, B suffixes, S longest suffix, T tokens of the row, D head dim.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vqa.device import to_device

if TYPE_CHECKING:
    from vqa.branches import Branches

KeyValue = tuple[torch.Tensor, torch.Tensor]  # (P, H_kv, D) each


@dataclass(frozen=True)
class TreeLayout:
    """Where the suffixes lie in the row.

    Args:
        prefix: P inside this row; 0 when there is none, or it stands outside.
        gather: (B, S) index of each suffix's tokens, counted after the prefix; padded with 0 on the right.
        scatter: (T - P,) where each token's result stands in the flattened (B, S) grid.
        even: All suffixes have length S, so the grid is a reshape and nothing is gathered.
        ends: (B + 1,) int32, where suffixes begin and end, counted after the prefix.
        longest: S.
        before: Tokens that every suffix sees before its own, inside this row or outside.
        whole: (2,) int32 each, [0, before] and [0, T - P].
        branches: What follows the suffixes and hangs below them; None: nothing does.
    """

    prefix: int
    gather: torch.Tensor
    scatter: torch.Tensor
    even: bool
    ends: torch.Tensor
    longest: int
    before: int
    whole: tuple[torch.Tensor, torch.Tensor]
    branches: "Branches | None" = None


def tree_layout(prefix: int, lengths: list[int], device: torch.device, outside: int = 0) -> TreeLayout:
    """Describe a row.

    Args:
        prefix: P, prefix tokens in the row.
        lengths: Tokens of each suffix.
        device: Where the row goes.
        outside: Prefix tokens that stand outside the row.
    """
    B, S = len(lengths), max(lengths, default=0)
    sizes = torch.tensor(lengths, dtype=torch.long)
    inside = torch.arange(S).expand(B, S) < sizes[:, None]
    ends = F.pad(torch.cumsum(sizes, 0), (1, 0))
    gather = torch.where(inside, ends[:-1, None] + torch.arange(S), 0)
    scatter = inside.flatten().nonzero().flatten()
    before = prefix + outside
    whole = [torch.tensor([0, n], dtype=torch.int32) for n in (before, sum(lengths))]
    return TreeLayout(
        prefix=prefix,
        gather=to_device(gather, device),
        scatter=to_device(scatter, device),
        even=min(lengths, default=0) == S,
        ends=to_device(ends.to(torch.int32), device),
        longest=S,
        before=before,
        whole=(to_device(whole[0], device), to_device(whole[1], device)),
    )
