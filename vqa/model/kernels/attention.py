"""Tree attention: one prefix, many suffixes, each seeing the prefix and itself.

All questions of a micro-batch share the system prompt. Laid out as one row `prefix, suffix 1, suffix 2, ...`
the prefix is computed once; this attention gives every suffix exactly the keys it would have had alone, so
loss and gradients are those of the padded batch (tests/model/test_packing.py holds them to 1e-5). A prefix
that was computed before stands outside the row, as its keys and values.

Two ways, the same result: torch's scaled_dot_product_attention over a padded grid runs everywhere; on GPUs
with FlashAttention the suffixes attend to the one copy of the prefix and to themselves in two kernels without
padding, and the two parts are merged by their softmax denominators. Each part is exact once both know the
common denominator.

Notation: P prefix tokens, B suffixes, S longest suffix, T tokens of the row, H heads, D head dim.
Source: the merge is that of ring attention (Liu et al. 2023), the kernels' formulas FlashAttention-2's
(Dao 2023), as torch carries them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vqa.model.kernels.pointwise import merge
from vqa.model.kernels.tree import KeyValue, TreeLayout, attend_branches


def has_flash(query: torch.Tensor) -> bool:
    """Whether torch's FlashAttention takes such queries (T, H, D): half precision, Ampere or newer."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


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


def attend_in_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int, scaling: float
) -> torch.Tensor:
    """(T, H, D): tokens see those of their own part, before and after them; without gradients.

    Args:
        q: (T, H, D); k and v alike.
        ends: (B + 1,) int32: where the parts begin, and T.
        longest: Tokens of the longest part.
        scaling: Of the scores.
    """
    return _Span(ends, ends, longest, longest, causal=False).forward(q, k, v, scaling)[0]


class FlashTree(torch.autograd.Function):
    """Attention of a row (T, H, D); keys and values of a prefix outside the row come as two more inputs."""

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


@dataclass
class LayerTree:
    """Who sees whom in one layer.

    Args:
        layout: Of the row.
        outside: Keys and values of a prefix that is not in the row.
    """

    layout: TreeLayout
    outside: KeyValue | None = None


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
    branches = tree.layout.branches
    if branches is None:
        return _attend(query, key, value, scaling, tree)
    P, end = tree.layout.prefix, tree.layout.prefix + branches.start
    upper = [_attend(query[:end], key[:end], value[:end], scaling, tree)] if end else []
    before = (key[:P], value[:P]) if P else tree.outside
    groups = query.shape[1] // key.shape[1]
    prefix = (_repeat(before[0], groups), _repeat(before[1], groups)) if before else None
    keys, values = _repeat(key[P:], groups), _repeat(value[P:], groups)
    return torch.cat([*upper, attend_branches(query[P:], keys, values, prefix, branches, scaling)])


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, tree: LayerTree
) -> torch.Tensor:
    outside = tree.outside or (None, None)
    if has_flash(query):
        found: torch.Tensor = FlashTree.apply(query, key, value, *outside, tree.layout, scaling)  # type: ignore[no-untyped-call]
        return found
    return _padded_grid(query, key, value, outside, tree.layout, scaling)


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
