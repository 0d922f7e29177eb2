"""Tree attention: one prefix, many suffixes, each seeing the prefix and itself.

All questions of a micro-batch share the system prompt. Laid out as one row `prefix, suffix 1, suffix 2, ...`
the prefix is computed once; this attention gives every suffix exactly the keys it would have had alone, so
loss and gradients are those of the padded batch (tests/test_packing.py holds them to 1e-5). A prefix that was
computed before stands outside the row, as its keys and values.

Two ways, the same result: torch's scaled_dot_product_attention over a padded grid runs everywhere; on GPUs
with FlashAttention the suffixes attend to the one copy of the prefix and to themselves in two kernels without
padding, and the two parts are merged by their softmax denominators.

Notation: P prefix tokens, B suffixes, S longest suffix, T tokens of the row, H heads, D head dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vqa.device import to_device
from vqa.pointwise import merge

NAME = "vqa_tree"
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
    """

    prefix: int
    gather: torch.Tensor
    scatter: torch.Tensor
    even: bool
    ends: torch.Tensor
    longest: int
    before: int
    whole: tuple[torch.Tensor, torch.Tensor]


@dataclass
class LayerTree:
    """What the attention of one layer gets told through the model's keyword arguments.

    Args:
        layout: Of the row.
        outside: Keys and values of a prefix that is not in the row.
        seen: The layer's own keys and values, put there by `tree_attention`.
    """

    layout: TreeLayout
    outside: KeyValue | None = None
    seen: KeyValue | None = None


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


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, tree: LayerTree
) -> torch.Tensor:
    """Attention of a row.

    Args:
        query: (T, H, D).
        key: (T, H_kv, D), after rotary embedding; value alike.
        scaling: Factor on the scores.
        tree: Who sees whom.

    Returns:
        (T, H, D).
    """
    outside = tree.outside or (None, None)
    if _has_flash(query):
        found: torch.Tensor = _FlashTree.apply(query, key, value, *outside, tree.layout, scaling)  # type: ignore[no-untyped-call]
        return found
    return _padded_grid(query, key, value, outside, tree.layout, scaling)


def _has_flash(query: torch.Tensor) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _padded_grid(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    outside: tuple[torch.Tensor | None, torch.Tensor | None],
    layout: TreeLayout,
    scaling: float,
) -> torch.Tensor:
    P, groups = layout.prefix, query.shape[1] // key.shape[1]
    parts = []
    if P:
        q, k, v = _heads_first(query[:P], key[:P], value[:P], groups)
        head = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        parts.append(head[0].transpose(0, 1))
    if layout.longest:
        before = (key[:P], value[:P]) if P else outside
        parts.append(_suffixes(query[P:], key[P:], value[P:], before, layout, scaling))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _suffixes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    before: tuple[torch.Tensor | None, torch.Tensor | None],
    layout: TreeLayout,
    scaling: float,
) -> torch.Tensor:
    # right padding is seen by nobody, its own results are dropped below
    groups = query.shape[1] // key.shape[1]
    q, k, v = (_grid(x, layout) for x in (query, key, value))  # (B, S, H, D)
    B, S = layout.gather.shape
    if before[0] is None or before[1] is None:
        q, k, v = (x.transpose(1, 2) for x in (q, _repeat(k, groups), _repeat(v, groups)))
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    else:
        k = torch.cat([before[0].expand(B, -1, -1, -1), k], dim=1)
        v = torch.cat([before[1].expand(B, -1, -1, -1), v], dim=1)
        mask = _lower_right(S, k.shape[1], q.device)
        q, k, v = (x.transpose(1, 2) for x in (q, _repeat(k, groups), _repeat(v, groups)))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    rows = found.transpose(1, 2).flatten(0, 1)  # (B * S, H, D)
    return rows if layout.even else rows.index_select(0, layout.scatter)


def _grid(x: torch.Tensor, layout: TreeLayout) -> torch.Tensor:
    """(T - P, H, D) -> (B, S, H, D)."""
    if not layout.even:
        x = x.index_select(0, layout.gather.flatten())
    return x.reshape(*layout.gather.shape, *x.shape[1:])


def _heads_first(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: int
) -> list[torch.Tensor]:
    """(P, H, D) each -> (1, H, P, D)."""
    return [x.transpose(0, 1)[None] for x in (query, _repeat(key, groups), _repeat(value, groups))]


def _repeat(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Copy key/value heads for grouped queries; SDPA's own enable_gqa has no fast path with this mask."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=-2)


def _lower_right(S: int, keys: int, device: torch.device) -> torch.Tensor:
    """Token i of a suffix sees the prefix and tokens 0..i of its suffix."""
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right  # a tag that selects the fused kernel

        mask: torch.Tensor = causal_lower_right(S, keys)
        return mask
    return torch.ones(S, keys, dtype=torch.bool, device=device).tril(keys - S)


@dataclass(frozen=True)
class _Span:
    """Queries of some tokens over keys of some tokens, in FlashAttention's terms."""

    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int
    causal: bool

    def forward(self, q: Any, k: Any, v: Any, scaling: float) -> tuple[torch.Tensor, ...]:
        """Result (T, H, D), log of the softmax denominators (H, T), and the kernel's two random states."""
        found = torch.ops.aten._flash_attention_forward(
            q, k, v, self.query_ends, self.key_ends, self.longest_query, self.longest_key,
            0.0, self.causal, False, scale=scaling,
        )  # fmt: skip
        return tuple(found[:4])

    def backward(
        self, grad: Any, q: Any, k: Any, v: Any, out: Any, log_sum: Any, random: Any, scaling: float
    ) -> Any:
        """Gradients by q, k, v; `out` and `log_sum` are those over all keys that the queries saw."""
        return torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, log_sum, self.query_ends, self.key_ends, self.longest_query,
            self.longest_key, 0.0, self.causal, *random, scale=scaling,
        )  # fmt: skip


class _FlashTree(torch.autograd.Function):
    """The suffixes' attention in two parts, each exact once both know the common softmax denominator.

    Source: the merge is that of ring attention (Liu et al. 2023), the kernels' formulas FlashAttention-2's.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Any, k: Any, v: Any, outside_k: Any, outside_v: Any, layout: TreeLayout, scaling: float
    ) -> Any:
        P = layout.prefix
        ctx.layout, ctx.scaling = layout, scaling
        head, own, shared = _spans(layout)
        outs, log_sums = [], []
        if head:
            found, denominator, *ctx.head_random = head.forward(q[:P], k[:P], v[:P], scaling)
            outs, log_sums = [found], [denominator]
        if own:
            found, denominator, *ctx.own_random = own.forward(q[P:], k[P:], v[P:], scaling)
            if shared:
                before = (k[:P], v[:P]) if P else (outside_k, outside_v)
                other, second, *ctx.shared_random = shared.forward(q[P:], *before, scaling)
                found, denominator = merge(found, denominator, other, second)
            outs.append(found)
            log_sums.append(denominator)
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        ctx.save_for_backward(q, k, v, outside_k, outside_v, out, *log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        q, k, v, outside_k, outside_v, out, *log_sums = ctx.saved_tensors
        P, scaling = ctx.layout.prefix, ctx.scaling
        head, own, shared = _spans(ctx.layout)
        by_prefix, by_suffixes, by_outside = [], [], (None, None)
        if head:
            given = (grad[:P], q[:P], k[:P], v[:P], out[:P], log_sums[0])
            by_prefix = head.backward(*given, ctx.head_random, scaling)
        if own:
            whole = (out[P:], log_sums[-1])
            by_suffixes = own.backward(grad[P:], q[P:], k[P:], v[P:], *whole, ctx.own_random, scaling)
            if shared:
                before = (k[:P], v[:P]) if P else (outside_k, outside_v)
                more, *by_before = shared.backward(
                    grad[P:], q[P:], *before, *whole, ctx.shared_random, scaling
                )
                by_suffixes[0].add_(more)
                if head:
                    by_prefix[1].add_(by_before[0])
                    by_prefix[2].add_(by_before[1])
                else:
                    by_outside = by_before
        if head and own:
            pairs = zip(by_prefix, by_suffixes, strict=True)
            return *(torch.cat(pair) for pair in pairs), *by_outside, None, None
        return *(by_prefix or by_suffixes), *by_outside, None, None


def _spans(layout: TreeLayout) -> tuple[_Span | None, _Span | None, _Span | None]:
    """Prefix over itself, suffixes over themselves, suffixes over the prefix; None where there is nothing."""
    P, S = layout.prefix, layout.longest
    before, after = layout.whole
    rows = layout.gather.shape[0] * S  # no suffix is longer: an upper bound on T - P
    head = _Span(before, before, P, P, causal=True) if P else None
    own = _Span(layout.ends, layout.ends, S, S, causal=True) if S else None
    shared = _Span(after, before, rows, layout.before, causal=False) if S and layout.before else None
    return head, own, shared


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    tree: LayerTree | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` in the form transformers expects, for layers that are called as they are.

    Args:
        query: (1, H, T, D).
        key: (1, H_kv, T, D), keys after rotary embedding; value alike.
        attention_mask: Ignored; the layout says who sees whom.
        scaling: Factor on the scores.
        tree: Who sees whom, passed through the model's keyword arguments.

    Returns:
        (1, T, H, D) and None for the weights.

    Raises:
        ValueError: Called without a layout.
    """
    if tree is None:
        raise ValueError("tree attention needs tree=LayerTree(...) among the layer's arguments")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    tree.seen = (k, v)
    return attend(q, k, v, scaling, tree)[None], None


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
