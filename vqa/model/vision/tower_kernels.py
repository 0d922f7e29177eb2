"""Faster kernels for a vision tower in half precision on a GPU; what it computes stays the same.

transformers computes attention picture by picture, for Qwen2.5-VL even window by window, unless a kernel is
registered that takes all of them at once; torch carries one.
"""

import functools
import sys
from typing import Any

import torch
import torch.nn.functional as F

from vqa.model.kernels.attention import attend_in_parts, has_flash
from vqa.model.kernels.pointwise import rotate_wide, swiglu, tower_rms_norm

FLASH = "flash_in_parts"  # transformers hands over everything at once to what has "flash" in its name
WIDTH = 8  # half-precision products of other widths run on kernels of a third of the speed


def use_fast_kernels(visual: Any, device: torch.device) -> None:
    """Exchange what is slow, where the tower's type and device have something faster."""
    if device.type != "cuda" or visual.dtype.itemsize > 2:
        return
    embed = visual.patch_embed
    embed.forward = functools.partial(_embed_patches, embed.proj)
    for block in visual.blocks:
        for norm in (block.norm1, block.norm2):
            if hasattr(norm, "variance_epsilon"):  # Qwen2.5-VL; torch has a kernel for Qwen3-VL's
                norm.forward = functools.partial(_rms_norm, norm)
        _use_fast_mlp(block.mlp)
    attention = visual.blocks[0].attn
    if has_flash(torch.empty(1, attention.num_heads, attention.head_dim, dtype=visual.dtype, device=device)):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(FLASH, _flash_in_parts)
        visual.config._attn_implementation = FLASH
        # a third of the tower's time otherwise; transformers offers no other place to exchange it
        module: Any = sys.modules[type(visual).__module__]
        module.apply_rotary_pos_emb_vision = _rotated


def _use_fast_mlp(mlp: Any) -> None:
    gate = getattr(mlp, "gate_proj", None)
    if gate is None:  # Qwen3-VL
        if type(mlp.linear_fc1) is torch.nn.Linear and _same(mlp.act_fn, _gelu):
            mlp.forward = functools.partial(_gelu_mlp, mlp)
        return
    if gate.weight.is_floating_point() and gate.out_features % WIDTH:  # Qwen2.5-VL-7B: 3,420
        pad_mlp(mlp, -gate.out_features % WIDTH)
    if _same(mlp.act_fn, F.silu):
        mlp.forward = functools.partial(_gated_mlp, mlp)


def _same(activation: Any, function: Any) -> bool:
    x = torch.linspace(-3, 3, 7)
    return torch.equal(activation(x), function(x))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _embed_patches(convolution: torch.nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
    """A convolution whose windows do not overlap is a product, and faster as one."""
    weight = convolution.weight.flatten(1)
    return F.linear(patches.to(weight.dtype), weight, convolution.bias)


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return tower_rms_norm(x, norm.weight, norm.variance_epsilon)


def _gated_mlp(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    return mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))  # type: ignore[no-any-return]


def _gelu_mlp(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    """GELU at the end of the first product's kernel (on a GPU the one with tanh)."""
    inner: torch.Tensor = torch._addmm_activation(
        mlp.linear_fc1.bias, x, mlp.linear_fc1.weight.t(), use_gelu=True
    )
    return mlp.linear_fc2(inner)  # type: ignore[no-any-return]


def _rotated(q: Any, k: Any, cos: Any, sin: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return rotate_wide(q, cos, sin), rotate_wide(k, cos, sin)


def _flash_in_parts(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (1, H, T, D) to (1, T, H, D); every part sees itself."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_in_parts(q, k, v, cu_seq_lens_q, max_length_q, scaling)[None], None


def pad_mlp(mlp: Any, missing: int) -> None:
    """Add so many columns of zeros to a gated MLP's inner width.

    The result stays the same: what is added is silu(0) x 0 = 0, and counts nothing further on.
    """
    for linear in (mlp.gate_proj, mlp.up_proj):
        _replace(linear, "weight", (0, 0, 0, missing))
        if linear.bias is not None:
            _replace(linear, "bias", (0, missing))
        linear.out_features += missing
    _replace(mlp.down_proj, "weight", (0, missing))
    mlp.down_proj.in_features += missing


def _replace(linear: torch.nn.Linear, name: str, padding: tuple[int, ...]) -> None:
    old = getattr(linear, name)
    padded = F.pad(old.detach(), padding)
    setattr(linear, name, torch.nn.Parameter(padded, requires_grad=old.requires_grad))
