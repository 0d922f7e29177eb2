"""The decoder's elementwise parts, each with its backward; fused into one kernel on a GPU.

Notation: T tokens, H heads, D head dim. Forward formulas are those of transformers' Qwen2.5-VL, Qwen3-VL and
Qwen3.5;
backward formulas follow from them and are tested against autograd (tests/model/kernels/test_pointwise.py).
"""

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)
Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")
_compiling = True
_alone = threading.RLock()  # what one thread compiles disturbs the compiled calls of others meanwhile


def use_compiler(enabled: bool) -> None:
    """Whether GPU kernels are compiled (`env.compile`); without, the same formulas run one by one."""
    global _compiling
    _compiling = enabled


def fused(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """Compile a function the first time it meets GPU tensors; on a CPU it runs as it is.

    A machine without a C compiler cannot compile: that is said once, and the plain formulas are used.
    """
    compiled: Any = None

    @functools.wraps(function)
    def call(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        nonlocal compiled
        first = args[0]
        if not (_compiling and isinstance(first, torch.Tensor) and first.is_cuda):
            return function(*args, **kwargs)
        if compiled is None:  # not at import: that alone takes a second
            compiled = torch.compile(function)
        try:
            with _alone:
                return compiled(*args, **kwargs)  # type: ignore[no-any-return]
        except torch._dynamo.exc.BackendCompilerFailed as error:
            log.warning(
                "GPU kernels cannot be compiled here (%s); going on without, slower. "
                "Install a C compiler, or set env.compile=false",
                str(error).splitlines()[0],
            )
            use_compiler(False)
            return function(*args, **kwargs)

    return call


@fused
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, in float32 at least (Zhang & Sennrich 2019)."""
    return _weighted(_normed(x, eps)[0], weight, x.dtype)


@fused
def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None
) -> torch.Tensor:
    """Gradient of `rms_norm` by x, plus the gradient of the residual connection around it."""
    dx = _norm_gradient(grad, x, weight, eps)
    return (dx if residual is None else dx + _wide(residual)).to(x.dtype)


@fused
def rms_norm_weight_gradient(grad: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """Gradient of `rms_norm` by its weight, summed over rows in float32; for test-time adaptation."""
    return (_wide(grad) * _normed(x, eps)[0]).sum(0)


@fused
def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Norm of each head where the family has one (Qwen3), then the rotary embedding.

    Args:
        x: (T, H, D).
        cos: (T, R); sin alike. Where R < D (Qwen3.5) the rest of the head is not turned.
        weight: (D,) of the norm, or None.
        eps: Of the norm.
    """
    if weight is not None:
        x = _weighted(_normed(x, eps)[0], weight, x.dtype)
    turned, rest = _turning(x, cos)
    turned = turned * cos[:, None] + _half_turn(turned) * sin[:, None]
    return turned if rest is None else torch.cat([turned, rest], dim=-1)


@fused
def rotate_wide(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The vision towers' rotary embedding, in float32 whatever the type of x (T, H, D); cos, sin (T, D)."""
    wide = x.float()
    return (wide * cos[:, None].float() + _half_turn(wide) * sin[:, None].float()).to(x.dtype)


@fused
def tower_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm` for the vision tower, compiled apart: one kernel for rows of any width is a slower one."""
    return weight * _normed(x, eps)[0].to(x.dtype)


@fused
def rotate_backward(
    grad: torch.Tensor,
    x: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """Gradient of `rotate` by x; x is needed only for the norm. A half turn's transpose is minus itself."""
    back = _turned_back(grad, cos, sin)
    if weight is None or x is None:
        return back
    return _norm_gradient(back, x, weight, eps).to(x.dtype)


@fused
def rotate_weight_gradient(
    grad: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> torch.Tensor:
    """Gradient of `rotate` by the norm's weight (D,), summed over tokens and heads in float32."""
    return (_wide(_turned_back(grad, cos, sin)) * _normed(x, eps)[0]).sum((0, 1))


@fused
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020)."""
    return F.silu(gate) * up


@fused
def swiglu_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The forward value again, and the gradients by gate and up."""
    g, u, d = _wide(gate), _wide(up), _wide(grad)
    sigmoid = torch.sigmoid(g)
    silu = g * sigmoid
    by_gate = d * u * (sigmoid + silu * (1 - sigmoid))
    return (silu * u).to(gate.dtype), by_gate.to(gate.dtype), (d * silu).to(up.dtype)


@fused
def gate_by_sigmoid(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(gate): Qwen3.5's gate on what attention gives."""
    return (_wide(x) * torch.sigmoid(_wide(gate))).to(x.dtype)


@fused
def gate_by_sigmoid_backward(
    grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `gate_by_sigmoid` by x and gate."""
    opened, d = torch.sigmoid(_wide(gate)), _wide(grad)
    return (d * opened).to(x.dtype), (d * _wide(x) * opened * (1 - opened)).to(gate.dtype)


@fused
def gated_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm of x over the last dimension, times silu(gate): Gated DeltaNet's."""
    return (_normed(x, eps)[0] * _wide(weight) * F.silu(_wide(gate))).to(x.dtype)


@fused
def gated_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `gated_norm` by x and gate."""
    normed, scale = _normed(x, eps)
    g = _wide(gate)
    sigmoid = torch.sigmoid(g)
    silu = g * sigmoid
    by_product = _wide(grad) * _wide(weight)
    by_normed = by_product * silu
    dx = scale * (by_normed - normed * (by_normed * normed).mean(-1, keepdim=True))
    return dx.to(x.dtype), (by_product * normed * (sigmoid + silu * (1 - sigmoid))).to(gate.dtype)


@fused
def gated_norm_weight_gradient(
    grad: torch.Tensor, x: torch.Tensor, gate: torch.Tensor, eps: float
) -> torch.Tensor:
    """Gradient of `gated_norm` by its weight (D,), summed over the rest in float32."""
    return (_wide(grad) * _normed(x, eps)[0] * F.silu(_wide(gate))).flatten(0, -2).sum(0)


@fused
def int8_to_float(values: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """INT8 weights (out, in) in another type; `largest` (out,) is the absolute value that 127 stands for.

    Source: bitsandbytes' row-wise quantisation (Dettmers et al. 2022, LLM.int8()).
    """
    wide = torch.promote_types(dtype, torch.float32)
    return (values.to(wide) * (largest.to(wide) / 127)[:, None]).to(dtype)


@fused
def dropped(x: torch.Tensor, seed: int, p: float) -> torch.Tensor:
    """Dropout of x with the mask that a seed gives: the same on every device, whenever it is asked for.

    Kept or not is a hash of an element's index and the seed, computed where it is used. Drawing masks with
    torch's generator cost a quarter of the training rate (benchmarks), and they would have to be kept.

    Args:
        x: Any shape, fewer than 2^31 elements.
        seed: In [0, 2^31).
        p: Probability that an element becomes 0; the others are divided by 1 - p.

    Source: the hash is MurmurHash3's 32-bit finaliser (Appleby), twice.
    """
    index = torch.arange(x.numel(), device=x.device, dtype=torch.int32).view(x.shape)
    kept = (_hashed(_hashed(index) ^ seed) & 0x7FFFFFFF) >= int(p * 2**31)
    return x * kept * (1 / (1 - p))


def _hashed(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's finaliser on int32: products wrap around, masks make the shifts logical."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    x = (x ^ ((x >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35
    return x ^ ((x >> 16) & 0xFFFF)


@fused
def column_products(grad: torch.Tensor, result: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(out,) sum over T of grad * (result - bias), both (T, out), in float32 at least."""
    value = _wide(result) if bias is None else _wide(result) - _wide(bias)
    return (_wide(grad) * value).sum(0)


@fused
def merge(
    out: torch.Tensor, log_sum: torch.Tensor, other: torch.Tensor, other_log_sum: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys from the results over each.

    Args:
        out: (T, H, D) result over the first set; other alike.
        log_sum: (H, T) log of the softmax denominators; other_log_sum alike.

    Returns:
        (T, H, D) and (H, T) over both sets.
    """
    both = torch.logaddexp(log_sum, other_log_sum)
    first = torch.exp(log_sum - both).transpose(0, 1)[..., None]
    second = torch.exp(other_log_sum - both).transpose(0, 1)[..., None]
    return (_wide(out) * first + _wide(other) * second).to(out.dtype), both


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In float32 where the type is narrower: half precision is too coarse for sums over a row."""
    return x.float() if x.element_size() < 4 else x


def _turned_back(grad: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned, rest = _turning(grad, cos)
    back = turned * cos[:, None] - _half_turn(turned * sin[:, None])
    return back if rest is None else torch.cat([back, rest], dim=-1)


def _turning(x: torch.Tensor, cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What of each head is turned, and the rest; None where all is."""
    R = cos.shape[-1]
    return (x, None) if x.shape[-1] == R else (x[..., :R], x[..., R:])


def _weighted(normed: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight of the result's type is multiplied after rounding, a wider one (Qwen3.5's) before it."""
    if weight.element_size() > dtype.itemsize:
        return (weight * normed).to(dtype)
    return weight * normed.to(dtype)


def _half_turn(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def _normed(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    values = _wide(x)
    scale = torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
    return values * scale, scale


def _norm_gradient(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    normed, scale = _normed(x, eps)
    weighted = _wide(grad * weight)
    return scale * (weighted - normed * (weighted * normed).mean(-1, keepdim=True))
