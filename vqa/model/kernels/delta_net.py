"""Gated DeltaNet over a packed row: convolution, delta rule and gated norm of Qwen3.5's linear layers.

The prefix's state and last inputs go on into every suffix, in the row or from outside it. What lies in the
row on several levels (prefix, suffixes, branches) is computed level by level.

Notation: T tokens, H key heads, V value heads, K and D width of a key's and a value's head, W width of the
convolution.
"""

from collections.abc import Sequence
from typing import Any

import torch

from vqa.model.kernels.delta_rule import delta_rule, gates
from vqa.model.kernels.pointwise import (
    gate_by_sigmoid,
    gate_by_sigmoid_backward,
    gated_norm,
    gated_norm_backward,
    gated_norm_weight_gradient,
)
from vqa.model.kernels.short_conv import Level, children, last_inputs, short_conv
from vqa.model.kernels.tree import KeyValue


def mix_by_delta_rule(
    mixer: Any,
    projected: Sequence[torch.Tensor],
    levels: Sequence[Level],
    outside: KeyValue | None,
    kept: bool,
) -> tuple[torch.Tensor, KeyValue | None]:
    """What every token reads, normed and gated, and the states at the row's end.

    Args:
        mixer: transformers' module; its convolution, rates and norm are used, its projections are not.
        projected: (T, 2 H K + V D) convolution's inputs, (T, V D) the norm's gate, (T, V) a and (T, V) b.
        levels: The row's sequences.
        outside: What the prefix outside the row left: (W - 1, 2 H K + V D), and (V, K, D).
        kept: Whether the states are wanted; for a row of one sequence.

    Returns:
        (T, V D), and the states as `outside` has them, or None.
    """
    inputs, gate, a, b = projected
    weight = mixer.conv1d.weight[:, 0]
    sizes = [level.tokens for level in levels]
    decay, beta = gates(a, b, mixer.A_log, mixer.dt_bias)
    before = (
        inputs.new_zeros(1, weight.shape[1] - 1, inputs.shape[1]) if outside is None else outside[0][None]
    )
    state = None if outside is None else outside[1][None]
    parts = []
    rows = zip(levels, *(_split(x, sizes) for x in (inputs, decay, beta)), strict=True)
    for i, (level, x, g, rates) in enumerate(rows):
        goes_on = kept or i + 1 < len(levels)
        before = children(before, level)
        state = None if state is None else children(state, level)
        mixed = short_conv(x, before, weight, level)
        query, key, value = torch.split(mixed, [mixer.key_dim, mixer.key_dim, mixer.value_dim], dim=1)
        found, state = delta_rule(
            query.view(len(x), -1, mixer.head_k_dim),
            key.view(len(x), -1, mixer.head_k_dim),
            value.view(len(x), -1, mixer.head_v_dim),
            g,
            rates,
            state,
            level,
            goes_on,
        )
        if goes_on:
            before = last_inputs(x, before, level)
        parts.append(found)
    read = parts[0] if len(parts) == 1 else torch.cat(parts)
    normed: torch.Tensor = _GatedNorm.apply(  # type: ignore[no-untyped-call]
        read, gate.view_as(read), mixer.norm.weight, mixer.norm.variance_epsilon
    )
    states = (before[0], state[0]) if kept and state is not None else None
    return normed.flatten(1), states


def _split(x: torch.Tensor, sizes: list[int]) -> Sequence[torch.Tensor]:
    return [x] if len(sizes) == 1 else torch.split(x, sizes)


def gate_attention(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(gate), of one shape."""
    found: torch.Tensor = _SigmoidGate.apply(x, gate)  # type: ignore[no-untyped-call]
    return found


class _SigmoidGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, gate: Any) -> Any:
        ctx.save_for_backward(x, gate)
        return gate_by_sigmoid(x.detach(), gate.detach())

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return gate_by_sigmoid_backward(grad, *ctx.saved_tensors)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, gate: Any, weight: Any, eps: float) -> Any:
        ctx.eps = eps
        ctx.save_for_backward(x, gate, weight)
        return gated_norm(x.detach(), gate.detach(), weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, gate, weight = ctx.saved_tensors
        dx, dgate = gated_norm_backward(grad, x, gate, weight, ctx.eps)
        dweight = gated_norm_weight_gradient(grad, x, gate, ctx.eps) if ctx.needs_input_grad[2] else None
        return dx, dgate, dweight, None
