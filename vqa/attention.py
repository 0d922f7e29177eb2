"""Tree attention: one prefix, many suffixes, each seeing the prefix and itself.

All questions of a micro-batch share the system prompt. Laid out as one row `prefix, suffix 1, suffix 2, ...`
the prefix is computed once; this attention gives every suffix exactly the keys it would have had alone, so
loss and gradients are those of the padded batch (tests/test_packing.py holds them to 1e-5).

Notation: P prefix tokens, B suffixes, S longest suffix, T = P + sum of suffix lengths, H heads, D head dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "vqa_tree"


@dataclass(frozen=True)
class TreeLayout:
    """Where the suffixes lie in the row.

    Args:
        prefix: P.
        gather: (B, S) index of each suffix's tokens, counted after the prefix; padded with 0 on the right.
        scatter: (T - P,) where each token's result stands in the flattened (B, S) grid.
        even: All suffixes have length S, so the grid is a reshape and nothing is gathered.
    """

    prefix: int
    gather: torch.Tensor
    scatter: torch.Tensor
    even: bool


def tree_layout(prefix: int, lengths: list[int], device: torch.device) -> TreeLayout:
    """Describe a row of one prefix and suffixes of the given lengths."""
    B, S = len(lengths), max(lengths)
    sizes = torch.tensor(lengths)
    inside = torch.arange(S).expand(B, S) < sizes[:, None]
    starts = torch.cumsum(sizes, 0) - sizes
    gather = torch.where(inside, starts[:, None] + torch.arange(S), 0)
    scatter = inside.flatten().nonzero().flatten()
    return TreeLayout(prefix, gather.to(device), scatter.to(device), min(lengths) == S)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    tree: TreeLayout | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in the form transformers expects.

    Args:
        query: (1, H, T, D).
        key: (1, H_kv, T, D), keys after rotary embedding; value alike.
        attention_mask: Ignored; the layout says who sees whom.
        scaling: Factor on the scores.
        tree: The row's layout, passed through the model's keyword arguments.

    Returns:
        (1, T, H, D) and None for the weights.

    Raises:
        ValueError: Called without a layout.
    """
    if tree is None:
        raise ValueError("tree attention needs tree=TreeLayout(...) among the model's arguments")
    P, H = tree.prefix, query.shape[1]
    groups = H // key.shape[1]
    q, k, v = (_suffixes(x, tree) for x in (query, key, value))
    # (B, H, S, D); right padding is seen by nobody, its own results are dropped below
    if P == 0:
        tail = F.scaled_dot_product_attention(
            q, _repeat(k, groups), _repeat(v, groups), is_causal=True, scale=scaling
        )
    else:
        k = torch.cat([key[:, :, :P].expand(q.shape[0], -1, -1, -1), k], dim=2)
        v = torch.cat([value[:, :, :P].expand(q.shape[0], -1, -1, -1), v], dim=2)
        mask = _lower_right(q.shape[2], k.shape[2], q.device)
        tail = F.scaled_dot_product_attention(
            q, _repeat(k, groups), _repeat(v, groups), attn_mask=mask, scale=scaling
        )
    rows = tail.transpose(1, 2).flatten(0, 1)  # (B * S, H, D)
    if not tree.even:
        rows = rows.index_select(0, tree.scatter)
    if P == 0:
        return rows[None], None
    head = F.scaled_dot_product_attention(
        query[:, :, :P],
        _repeat(key[:, :, :P], groups),
        _repeat(value[:, :, :P], groups),
        is_causal=True,
        scale=scaling,
    )
    return torch.cat([head.transpose(1, 2), rows[None]], dim=1), None


def _suffixes(x: torch.Tensor, tree: TreeLayout) -> torch.Tensor:
    """(1, H, T, D) -> (B, H, S, D)."""
    after = x[0, :, tree.prefix :]
    if not tree.even:
        after = after.index_select(1, tree.gather.flatten())
    B, S = tree.gather.shape
    return after.reshape(after.shape[0], B, S, after.shape[2]).transpose(0, 1)


def _repeat(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Copy key/value heads for grouped queries; SDPA's own enable_gqa has no fast path with this mask."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _lower_right(S: int, keys: int, device: torch.device) -> torch.Tensor:
    """Token i of a suffix sees the prefix and tokens 0..i of its suffix."""
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right  # a tag that selects the fused kernel

        mask: torch.Tensor = causal_lower_right(S, keys)
        return mask
    return torch.ones(S, keys, dtype=torch.bool, device=device).tril(keys - S)


@contextmanager
def tree_attention_on(model: torch.nn.Module) -> Iterator[None]:
    """Let the language model (not the vision tower) use tree attention inside the block."""
    config = model.model.language_model.config  # type: ignore[union-attr]
    before = config._attn_implementation  # type: ignore[union-attr]
    config._attn_implementation = NAME  # type: ignore[union-attr]
    try:
        yield
    finally:
        config._attn_implementation = before  # type: ignore[union-attr]


ALL_ATTENTION_FUNCTIONS.register(NAME, tree_attention)
