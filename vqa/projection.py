"""Linear layers with LoRA adapters, with a backward that computes no more and keeps no more than needed.

PEFT's own layers stay where they are and own the weights (creating, saving, loading); here only their
arithmetic is done again: y = x W' + s (x A') B'. Projections of one input send it through all their A in
one product, adapters are kept in float32 and multiplied in the base's type, and what is cheap to compute
again (norms, the gated product) is not kept.

In half precision the order of adding matters: a young adapter's share is often less than half a unit in the
last place of x W'; added to that, once rounded, it is gone, and PEFT's layers learn late. Here the share
stands first and the product is added to it before anything is rounded: the learning curve is float32's.

Notation: T tokens, r rank of an adapter.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vqa.pointwise import (
    rms_norm,
    rms_norm_backward,
    rms_norm_weight_gradient,
    rotate,
    rotate_backward,
    rotate_weight_gradient,
    swiglu,
    swiglu_backward,
)

ADAPTER = "default"
Grads = list[torch.Tensor | None]


@dataclass(frozen=True)
class Projection:
    """One frozen linear layer and its adapter, if it has one.

    Args:
        layer: torch's Linear or bitsandbytes' Linear4bit.
        a: (r, in) float32, or None.
        b: (out, r) float32, or None.
        scale: s, usually alpha / r.
    """

    layer: Any
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scale: float = 0.0


def read_projection(module: Any) -> Projection | None:
    """What a module computes, when it is a plain linear layer with at most one plain LoRA adapter.

    None for everything else (DoRA, dropout, INT8, several adapters): such a module is called as it is.
    """
    parts = module._modules  # attribute access on modules is slow, and this is asked 252 times a pass
    layer = parts.get("base_layer", module)
    if type(layer) is not torch.nn.Linear and not hasattr(layer.weight, "quant_state"):
        return None
    if layer is module:
        return Projection(layer)
    dropout = parts["lora_dropout"]._modules.get(ADAPTER)
    plain = (
        module.active_adapters == [ADAPTER]
        and isinstance(dropout, torch.nn.Identity)
        and not (module.disable_adapters or module.merged or module.lora_variant)
        and not module.lora_bias[ADAPTER]
    )
    if not plain:
        return None
    a, b = (parts[name]._modules[ADAPTER]._parameters["weight"] for name in ("lora_A", "lora_B"))
    return Projection(layer, a, b, float(module.scaling[ADAPTER]))


def _matrix(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """(out, in); 4-bit weights are unpacked for the moment."""
    weight: torch.Tensor = layer._parameters["weight"]
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(dtype)  # type: ignore[no-any-return]


class _Group:
    """Projections that read the same input, their adapters in the type they are multiplied in.

    Args:
        projections: What they are.
        dtype: Of the input.
    """

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        self.layers = [p.layer for p in projections]
        self.scales = [p.scale for p in projections]
        down = [p.a.detach() for p in projections if p.a is not None]
        self.a = torch.cat(down).to(dtype) if down else None  # (sum of r, in)
        self.b = [None if p.b is None else (p.scale * p.b.detach()).to(dtype) for p in projections]  # s B
        ends = list(itertools.accumulate(0 if p.a is None else len(p.a) for p in projections))
        self.columns = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def forward(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> tuple[list[torch.Tensor], Any]:
        """Every projection of x (T, in), the first one added to `onto`; and what its adapters made of x."""
        low = None if self.a is None else x @ self.a.t()
        results = []
        for layer, b, columns in zip(self.layers, self.b, self.columns, strict=True):
            matrix, bias = _matrix(layer, x.dtype), layer._parameters["bias"]
            if b is None or low is None:
                y = F.linear(x, matrix, bias)
            else:
                y = (low[:, columns] @ b.t()).addmm_(x, matrix.t())
                y = y if bias is None else y.add_(bias)
            results.append(y if onto is None else y.add_(onto))
        return results, low

    def backward(
        self, x: torch.Tensor, low: torch.Tensor | None, grads: Sequence[torch.Tensor], input_needed: bool
    ) -> tuple[torch.Tensor | None, Grads]:
        """Gradient by x, where needed, and by A and B of every projection in turn."""
        dx, dlow, by_b = self.before_input(low, grads, input_needed)
        return dx, self.adapter_grads(x, dlow, by_b)

    def before_input(
        self, low: torch.Tensor | None, grads: Sequence[torch.Tensor], input_needed: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, Grads]:
        """Gradients by x and by every B, and by x A'; the input itself is not needed for these."""
        by_b: Grads = [None] * len(grads)
        by_low = []
        for i, dy in enumerate(grads):
            b = self.b[i]
            if b is not None and low is not None:
                by_low.append(dy @ b)
                by_b[i] = torch.addmm(b, dy.t(), low[:, self.columns[i]], beta=0, alpha=self.scales[i])
        dlow = None if not by_low else by_low[0] if len(by_low) == 1 else torch.cat(by_low, dim=1)
        if not input_needed:
            return None, dlow, by_b
        dx = None if dlow is None or self.a is None else dlow @ self.a
        for dy, layer in zip(grads, self.layers, strict=True):
            matrix = _matrix(layer, dy.dtype)
            dx = dy @ matrix if dx is None else dx.addmm_(dy, matrix)
        return dx, dlow, by_b

    def adapter_grads(self, x: torch.Tensor, dlow: torch.Tensor | None, by_b: Grads) -> Grads:
        """Gradients by A and B of every projection in turn, x: (T, in)."""
        together = None if dlow is None else dlow.t() @ x
        found: Grads = []
        for b, columns, grad in zip(self.b, self.columns, by_b, strict=True):
            found += [None if b is None or together is None else together[columns], grad]
        return found


def _adapters(projections: Sequence[Projection]) -> list[torch.Tensor | None]:
    """A and B of every projection in turn: autograd must see them as inputs."""
    return [tensor for p in projections for tensor in (p.a, p.b)]


def norm_project(x: torch.Tensor, norm: Any, projections: Sequence[Projection]) -> tuple[torch.Tensor, ...]:
    """Norm x (T, in), then project it: one (T, out) per projection."""
    results: tuple[torch.Tensor, ...] = _NormProject.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.variance_epsilon, projections, *_adapters(projections)
    )
    return results


def project_onto(residual: torch.Tensor, x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """residual (T, out) + projection of x (T, in)."""
    result: torch.Tensor = _ProjectOnto.apply(residual, x, projection, projection.a, projection.b)  # type: ignore[no-untyped-call]
    return result


def gated_mlp(x: torch.Tensor, norm: Any, projections: Sequence[Projection], recompute: bool) -> torch.Tensor:
    """x + down(silu(gate(norm x)) * up(norm x)), x: (T, in).

    Args:
        x: The residual stream.
        norm: Of the MLP's input.
        projections: gate, up, down.
        recompute: Compute gate and up again in the backward: half the memory, a sixth more time.
    """
    result: torch.Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.variance_epsilon, projections, recompute, *_adapters(projections)
    )
    return result


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norm: Any | None) -> torch.Tensor:
    """Head norm, where there is one, and rotary embedding of (T, H, D)."""
    weight, eps = (norm.weight, norm.variance_epsilon) if norm is not None else (None, 0.0)
    result: torch.Tensor = _Rotary.apply(x, cos, sin, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _NormProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float, projections: Any, *adapters: Any) -> Any:
        ctx.group, ctx.eps = _Group(projections, x.dtype), eps
        results, low = ctx.group.forward(rms_norm(x, weight, eps))
        ctx.save_for_backward(x, weight, low)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, low = ctx.saved_tensors
        wanted, of_norm = ctx.needs_input_grad[:2]
        dn, adapters = ctx.group.backward(rms_norm(x, weight, ctx.eps), low, grads, wanted or of_norm)
        dx = rms_norm_backward(dn, x, weight, ctx.eps, None) if wanted else None
        dweight = rms_norm_weight_gradient(dn, x, ctx.eps) if of_norm else None
        return dx, dweight, None, None, *adapters


class _ProjectOnto(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Any, x: Any, projection: Any, *adapters: Any) -> Any:
        ctx.group = _Group([projection], x.dtype)
        (result,), low = ctx.group.forward(x, onto=residual)
        ctx.save_for_backward(x, low)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, low = ctx.saved_tensors
        dx, adapters = ctx.group.backward(x, low, [grad], ctx.needs_input_grad[1])
        return grad, dx, None, *adapters


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, eps: float, projections: Any, recompute: bool, *adapters: Any
    ) -> Any:
        ctx.read, ctx.write = _Group(projections[:2], x.dtype), _Group(projections[2:], x.dtype)
        ctx.eps, ctx.recompute = eps, recompute
        (gate, up), low = ctx.read.forward(rms_norm(x, weight, eps))
        (result,), last = ctx.write.forward(swiglu(gate, up), onto=x)
        kept = (None, None) if recompute else (gate, up)
        ctx.save_for_backward(x, weight, low, last, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, low, last, gate, up = ctx.saved_tensors
        normed = rms_norm(x, weight, ctx.eps)
        if ctx.recompute:
            (gate, up), low = ctx.read.forward(normed)
        hidden_grad, dlast, by_b = ctx.write.before_input(last, [grad], True)
        hidden, dgate, dup = swiglu_backward(hidden_grad, gate, up)
        written = ctx.write.adapter_grads(hidden, dlast, by_b)
        wanted, of_norm = ctx.needs_input_grad[:2]
        dn, adapters = ctx.read.backward(normed, low, [dgate, dup], wanted or of_norm)
        dx = rms_norm_backward(dn, x, weight, ctx.eps, grad) if wanted else None
        dweight = rms_norm_weight_gradient(dn, x, ctx.eps) if of_norm else None
        return dx, dweight, None, None, None, *adapters, *written


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, cos: Any, sin: Any, weight: Any, eps: float) -> Any:
        ctx.eps = eps
        ctx.save_for_backward(None if weight is None else x, cos, sin, weight)
        return rotate(x, cos, sin, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, cos, sin, weight = ctx.saved_tensors
        dx = rotate_backward(grad, x, cos, sin, weight, ctx.eps) if ctx.needs_input_grad[0] else None
        of_norm = ctx.needs_input_grad[3]
        return dx, None, None, rotate_weight_gradient(grad, x, cos, sin, ctx.eps) if of_norm else None, None
