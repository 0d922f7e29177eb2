"""transformers' models in float64 throughout: without float32 round trips, the delta rule written out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.helpers.tiny_models import norm_in_own_type


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let float64 models compute in float64 wherever transformers asks for float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", norm_in_own_type)
    monkeypatch.setattr(modeling_qwen3_5.Qwen3_5RMSNormGated, "forward", gated_norm)
    monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", token_by_token)


def gated_norm(module: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Gated DeltaNet's norm."""
    return norm_in_own_type(module, x) * F.silu(gate)


def token_by_token(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule as its paper writes it; (B, T, heads, width), and the state at the end."""
    query, key = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    query, key = (x.repeat_interleave(value.shape[2] // x.shape[2], 2) for x in (query, key))
    state = initial_state
    if state is None:
        state = value.new_zeros(len(value), value.shape[2], key.shape[3], value.shape[3])
    read = []
    for t in range(value.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        told = (state * key[:, t, :, :, None]).sum(2)
        state = state + key[:, t, :, :, None] * (beta[:, t, :, None] * (value[:, t] - told))[:, :, None]
        read.append((state * query[:, t, :, :, None]).sum(2) * query.shape[-1] ** -0.5)
    return torch.stack(read, 1), state
