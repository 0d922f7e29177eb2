"""Tree attention by FlashAttention: over the suffixes themselves and over their one prefix, then merged.

Nothing is padded and the prefix's keys and values are not copied for every suffix. Each part is exact once
both know the common softmax denominator.

Notation: P prefix tokens, T tokens of the row, H heads, D head dim.
Source: the merge is that of ring attention (Liu et al. 2023), the kernels' formulas FlashAttention-2's
(Dao 2023), as torch carries them.
"""

from dataclasses import dataclass
from typing import Any

import torch

from vqa.model.kernels.pointwise import merge
from vqa.model.kernels.tree import TreeLayout


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
