"""The layout of a packed row: one prefix, many suffixes, and branches below them.

A question asked in four orders of its options has picture and text in common up to the first option. They
are computed once, as the question's stem; each order is a branch that sees prefix, stem and itself. The stems
lie in the row as suffixes do, all branches follow, those of one question side by side.

Notation: P prefix tokens, B suffixes or questions, S longest suffix or branch, T tokens of the row, H heads,
D head dim, O branches of each question, I longest stem.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vqa.machine.device import to_device

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
        lengths: Tokens of each suffix.
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
    lengths: tuple[int, ...]
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
        lengths=tuple(lengths),
    )


@dataclass(frozen=True)
class Branches:
    """Where stems and branches lie in the row, counted after the prefix.

    Args:
        stems: (B, I) index of each stem's tokens; padded with 0.
        stem_mask: (B, I) which of them there are.
        grid: (B, O x S) index of each question's branch tokens; padded with 0.
        mask: (B, O x S, O x S) which branch tokens see each other: those before, of the same branch.
        scatter: Where each branch token's result stands in the flattened (B, O x S) grid.
        start: The first branch token.
        lengths: Tokens of each branch, question by question.
    """

    stems: torch.Tensor
    stem_mask: torch.Tensor
    grid: torch.Tensor
    mask: torch.Tensor
    scatter: torch.Tensor
    start: int
    lengths: tuple[int, ...]


def branch_layout(stems: list[int], branches: list[list[int]], device: torch.device) -> Branches:
    """Describe a row.

    Args:
        stems: Tokens of each question's stem.
        branches: Tokens of each branch, by question; as many for every question.
        device: Where the row goes.
    """
    I, stem_sizes = max(stems), torch.tensor(stems)  # noqa: E741
    stem_mask = torch.arange(I) < stem_sizes[:, None]
    stem_starts = stem_sizes.cumsum(0) - stem_sizes
    sizes = torch.tensor(branches)  # (B, O)
    B, O = sizes.shape  # noqa: E741
    S, start = int(sizes.max()), int(stem_sizes.sum())
    inside = torch.arange(S) < sizes[..., None]  # (B, O, S)
    starts = start + sizes.flatten().cumsum(0).view(B, O) - sizes
    own = torch.eye(O, dtype=torch.bool).repeat_interleave(S, 0).repeat_interleave(S, 1)
    before = torch.ones(S, S, dtype=torch.bool).tril().repeat(O, O)
    return Branches(
        stems=to_device(torch.where(stem_mask, stem_starts[:, None] + torch.arange(I), 0), device),
        stem_mask=to_device(stem_mask, device),
        grid=to_device(torch.where(inside, starts[..., None] + torch.arange(S), 0).view(B, O * S), device),
        mask=to_device((own & before).expand(B, -1, -1).contiguous(), device),
        scatter=to_device(inside.flatten().nonzero().flatten(), device),
        start=start,
        lengths=tuple(length for sizes in branches for length in sizes),
    )


def attend_branches(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    before: KeyValue | None,
    layout: Branches,
    scaling: float,
) -> torch.Tensor:
    """Attention of the branches' tokens over prefix, stem and themselves.

    Args:
        query: (T - P, H, D) of stems and branches.
        key: (T - P, H, D), heads repeated for grouped queries; value alike.
        before: Keys and values (P, H, D) of the prefix, heads repeated; None without one.
        layout: Who sees whom.
        scaling: Factor on the scores.

    Returns:
        (branch tokens, H, D).
    """
    B, n = layout.grid.shape
    keys, values = ([x[layout.stems], x[layout.grid]] for x in (key, value))  # (B, I or O x S, H, D)
    seen = [layout.stem_mask[:, None].expand(-1, n, -1), layout.mask]
    if before is not None:
        keys.insert(0, before[0].expand(B, -1, -1, -1))
        values.insert(0, before[1].expand(B, -1, -1, -1))
        seen.insert(0, layout.mask.new_ones(B, n, len(before[0])))
    q, k, v = (x.transpose(1, 2) for x in (query[layout.grid], torch.cat(keys, 1), torch.cat(values, 1)))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.cat(seen, 2)[:, None], scale=scaling)
    return found.transpose(1, 2).flatten(0, 1).index_select(0, layout.scatter)
