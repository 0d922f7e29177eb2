"""Gated DeltaNet over a packed row: convolution, delta rule and gated norm of Qwen3.5's linear layers.

The prefix's state and last inputs go on into every suffix, in the row or from outside it. What lies in the
row on several levels (prefix, suffixes, branches) is computed level by level.

The delta rule goes over sequences that lie one after the other, each from a state of its own:
S_t = exp(g_t) S_{t-1} + b_t k_t (v_t - exp(g_t) S_{t-1}' k_t)', and token t reads S_t' q_t / sqrt(K). On a
GPU flash-linear-attention's kernels compute it, without padding; anywhere else the same chunked formulas in
torch, in float32 or float64, whichever is wider than the inputs.

Notation: T tokens, N sequences, H key heads, V value heads, K and D width of a key's and a value's head,
W width of the convolution.
Source: Gated Delta Networks, Yang et al. 2024; the chunked form is that of transformers' Qwen3.5.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from vqa.model.kernels.pointwise import (
    fused,
    gate_by_sigmoid,
    gate_by_sigmoid_backward,
    gated_norm,
    gated_norm_backward,
    gated_norm_weight_gradient,
)
from vqa.model.kernels.short_conv import CHUNK, Level, children, last_inputs, short_conv
from vqa.model.kernels.tree import KeyValue

OLDEST = (0, 6)  # of flash-linear-attention
MENDED_TRITON = (3, 7, 1)  # from 3.4 on, the kernels' backward is wrong on Hopper (their issue 640)
BROKEN_TRITON = (3, 4)
HOPPER = (9, 0)


class Tokens(NamedTuple):
    """What the delta rule takes of every token.

    Args:
        query: (T, H, K), brought to length one by the rule; key alike.
        key: (T, H, K).
        value: (T, V, D).
        decay: (T, V) g, at most 0, in float32 at least.
        beta: (T, V) in [0, 1].
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    decay: torch.Tensor
    beta: torch.Tensor


def delta_rule(
    tokens: Tokens, state: torch.Tensor | None, level: Level, final: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What every token reads, and the states at the sequences' ends.

    Args:
        tokens: Of all sequences, one after the other.
        state: (N, V, K, D) before each sequence, in float32 at least; None: zeros.
        level: The sequences.
        final: Whether the states at the ends are wanted.

    Returns:
        (T, V, D), and (N, V, K, D) or None.
    """
    by_kernel = tokens.value.is_cuda and tokens.value.element_size() == 2
    return (_by_kernel if by_kernel else by_chunks)(tokens, state, level, final)


def missing_kernel(device: torch.device) -> str:
    """What to install so that a GPU computes the delta rule fast; "" where nothing is missing."""
    if importlib.util.find_spec("fla") is None:
        return "pip install 'flash-linear-attention>=0.6' (the extra qwen3_5 of this package)"
    version = importlib.metadata.version("fla-core")
    if _numbers(version) < OLDEST:
        return f"pip install -U 'flash-linear-attention>=0.6' (found {version})"
    if torch.cuda.get_device_capability(device) != HOPPER or importlib.util.find_spec("tilelang"):
        return ""
    triton = importlib.import_module("triton").__version__
    if BROKEN_TRITON <= _numbers(triton) < MENDED_TRITON:
        return f"pip install 'triton>=3.7.1' or tilelang: Triton {triton} computes wrong gradients on Hopper"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())


def _by_kernel(
    tokens: Tokens, state: torch.Tensor | None, level: Level, final: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    kernels: Any = importlib.import_module("fla.ops.gated_delta_rule")
    found, states = kernels.chunk_gated_delta_rule(
        *(x[None] for x in tokens),
        initial_state=state,
        output_final_state=final,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=level.ends,
        chunk_indices=level.chunks,
    )
    return found[0], states


def by_chunks(
    tokens: Tokens, state: torch.Tensor | None, level: Level, final: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`delta_rule` in torch, the sequences side by side, filled up with tokens that leave the state alone."""
    query, key, value, decay, beta = tokens
    wide = torch.promote_types(value.dtype, torch.float32)
    N, longest = len(level.lengths), max(level.lengths)
    S = -(-longest // CHUNK) * CHUNK
    steps = torch.arange(S, device=value.device)
    inside = steps < level.ends.diff()[:, None]  # (N, S)
    index = torch.where(inside, level.ends[:-1, None] + steps, 0)

    def grid(x: torch.Tensor) -> torch.Tensor:
        """(T, heads, ...) to (N, heads, pieces, 64, ...)."""
        x = x.to(wide)[index] * inside.view(*inside.shape, *[1] * (x.dim() - 1))
        x = x.transpose(1, 2)
        return x.reshape(*x.shape[:2], S // CHUNK, CHUNK, *x.shape[3:])

    repeats = value.shape[1] // key.shape[1]
    q, k = (grid(_unit(x.to(wide)).repeat_interleave(repeats, 1)) for x in (query, key))
    q = q * query.shape[-1] ** -0.5
    v, b, g = grid(value), grid(beta)[..., None], grid(decay).cumsum(-1)
    apart = (g[..., :, None] - g[..., None, :]).masked_fill(_above(CHUNK, g.device), float("-inf")).exp()
    system, mixed = (b * k) @ k.mT * apart, q @ k.mT * apart
    fresh, known = (
        torch.linalg.solve_triangular(system, part, upper=False, unitriangular=True)
        for part in (b * v, b * k * g.exp()[..., None])
    )
    q, k = q * g.exp()[..., None], k * (g[..., -1:] - g).exp()[..., None]
    last = g[..., -1].exp()[..., None, None]
    S_t = v.new_zeros(N, v.shape[1], k.shape[-1], v.shape[-1]) if state is None else state.to(wide)
    parts = []
    for i in range(S // CHUNK):
        new = fresh[:, :, i] - known[:, :, i] @ S_t
        parts.append(q[:, :, i] @ S_t + mixed[:, :, i] @ new)
        S_t = S_t * last[:, :, i] + k[:, :, i].mT @ new
    found = torch.cat(parts, dim=2).transpose(1, 2)  # (N, S, V, D)
    return found[level.owners, level.offsets].to(value.dtype), S_t if final else None


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _above(n: int, device: torch.device) -> torch.Tensor:
    return torch.ones(n, n, dtype=torch.bool, device=device).triu(1)


def gates(
    a: torch.Tensor, b: torch.Tensor, log_rate: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay g = -exp(log_rate) softplus(a + bias) and beta = sigmoid(b), (T, V) each, in float32 at least.

    Args:
        a: (T, V).
        b: (T, V).
        log_rate: (V,), frozen.
        bias: (V,), frozen.
    """
    found: tuple[torch.Tensor, torch.Tensor] = _Gates.apply(a, b, log_rate, bias)  # type: ignore[no-untyped-call]
    return found


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Any, b: Any, log_rate: Any, bias: Any) -> Any:
        ctx.save_for_backward(a, b, log_rate, bias)
        return _gates(a.detach(), b.detach(), log_rate, bias)

    @staticmethod
    def backward(ctx: Any, by_decay: Any, by_beta: Any) -> Any:
        a, b, log_rate, bias = ctx.saved_tensors
        return *_gates_backward(a, b, log_rate, bias, by_decay, by_beta), None, None


@fused
def _gates(
    a: torch.Tensor, b: torch.Tensor, log_rate: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(a.dtype, torch.float32)
    return -log_rate.to(wide).exp() * F.softplus(a.to(wide) + bias.to(wide)), torch.sigmoid(b.to(wide))


@fused
def _gates_backward(
    a: torch.Tensor,
    b: torch.Tensor,
    log_rate: torch.Tensor,
    bias: torch.Tensor,
    by_decay: torch.Tensor,
    by_beta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = by_decay.dtype
    by_a = by_decay * -log_rate.to(wide).exp() * torch.sigmoid(a.to(wide) + bias.to(wide))
    beta = torch.sigmoid(b.to(wide))
    return by_a.to(a.dtype), (by_beta * beta * (1 - beta)).to(b.dtype)


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
        heads = (
            query.view(len(x), -1, mixer.head_k_dim),
            key.view(len(x), -1, mixer.head_k_dim),
            value.view(len(x), -1, mixer.head_v_dim),
        )
        found, state = delta_rule(Tokens(*heads, g, rates), state, level, goes_on)
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
