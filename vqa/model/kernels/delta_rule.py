"""The gated delta rule over sequences that lie one after the other, each going on from a state.

S_t = exp(g_t) S_{t-1} + b_t k_t (v_t - exp(g_t) S_{t-1}' k_t)', and token t reads S_t' q_t / sqrt(K). On a
GPU flash-linear-attention's kernels compute it, without padding; anywhere else the same chunked formulas in
torch, in float32 or float64, whichever is wider than the inputs.

Notation: T tokens, N sequences, H key heads, V value heads, K and D width of a key's and a value's head.
Source: Gated Delta Networks, Yang et al. 2024; the chunked form is that of transformers' Qwen3.5.
"""

import importlib
import importlib.metadata
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F

from vqa.model.kernels.pointwise import fused
from vqa.model.kernels.short_conv import CHUNK, Level

OLDEST = (0, 6)  # of flash-linear-attention
MENDED_TRITON = (3, 7, 1)  # from 3.4 on, the kernels' backward is wrong on Hopper (their issue 640)
BROKEN_TRITON = (3, 4)
HOPPER = (9, 0)


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    level: Level,
    final: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What every token reads, and the states at the sequences' ends.

    Args:
        query: (T, H, K), brought to length one here; key alike.
        key: (T, H, K).
        value: (T, V, D).
        decay: (T, V) g, at most 0, in float32 at least.
        beta: (T, V) in [0, 1].
        state: (N, V, K, D) before each sequence, in float32 at least; None: zeros.
        level: The sequences.
        final: Whether the states at the ends are wanted.

    Returns:
        (T, V, D), and (N, V, K, D) or None.
    """
    if value.is_cuda and value.element_size() == 2:
        return _by_kernel(query, key, value, decay, beta, state, level, final)
    return by_chunks(query, key, value, decay, beta, state, level, final)


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
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    level: Level,
    final: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    kernels: Any = importlib.import_module("fla.ops.gated_delta_rule")
    found, states = kernels.chunk_gated_delta_rule(
        query[None],
        key[None],
        value[None],
        decay[None],
        beta[None],
        initial_state=state,
        output_final_state=final,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=level.ends,
        chunk_indices=level.chunks,
    )
    return found[0], states


def by_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    level: Level,
    final: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`delta_rule` in torch, the sequences side by side, filled up with tokens that leave the state alone."""
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
