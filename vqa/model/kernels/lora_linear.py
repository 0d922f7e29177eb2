"""Linear layers with LoRA adapters, with a backward that computes no more and keeps no more than needed.

PEFT's own layers stay where they are and own the weights (creating, saving, loading); here only their
arithmetic is done again: y = x W' + s drop(x) A' B', with DoRA y = c (x W' + s x A' B') column by column,
c = m / |W + s B A|. Projections of one input send it through all their A in one product, adapters are kept in
float32 and multiplied in the base's type, and what is cheap to compute again (norms, the gated product, the
dropout masks) is not kept. NF4 and INT8 weights are unpacked for each product.

In half precision the order of adding matters: the update of an adapter that has just begun to train is often
less than half a unit in the last place of x W'. Added to that, once rounded, it is lost, and PEFT's layers
learn late. Here the update stands first and the product is added to it before anything is rounded: the
learning curve is float32's.

A module that none of this fits (several adapters at once, a bias of the adapter) is called as it is. Nothing
here depends on state outside its arguments, so a backward may compute a layer again at any time.

Notation: T tokens, r rank of an adapter, p dropout probability.
Source: LoRA, Hu et al. 2021; DoRA, Liu et al. 2024 (section 4.3: the norm is taken as a constant).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from vqa.model.kernels.pointwise import (
    column_products,
    dropped,
    int8_to_float,
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
Kept = list[torch.Tensor | None]


@dataclass(frozen=True)
class Projection:
    """One frozen linear layer and its adapter, if it has one.

    Args:
        layer: torch's Linear or bitsandbytes' Linear4bit or Linear8bitLt.
        a: (r, in) float32, or None.
        b: (out, r) float32, or None.
        scale: s, usually alpha / r.
        dropout: p on the adapter's input; 0 outside training.
        magnitude: (out,) float32, DoRA's m; None without DoRA.
        module: What is called instead where the other fields do not describe it.
    """

    layer: Any
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scale: float = 0.0
    dropout: float = 0.0
    magnitude: torch.Tensor | None = None
    module: Any = None

    @property
    def draws(self) -> bool:
        """Whether the forward may draw random numbers."""
        return self.dropout > 0 or self.module is not None


def read_projection(module: Any) -> Projection:
    """What a module computes.

    `Projection.module` is set for what is left to the module itself: kinds of layer other than linear ones,
    several adapters, a bias of the adapter, an adapter that is switched off or merged.
    """
    parts = module._modules  # attribute access on modules is slow, and this is asked 252 times a pass
    layer = parts.get("base_layer", module)
    if not _is_linear(layer):
        return Projection(layer, module=module)
    if layer is module:
        return Projection(layer)
    if (
        module.active_adapters != [ADAPTER]
        or module.disable_adapters
        or module.merged
        or module.lora_bias[ADAPTER]
    ):
        return Projection(layer, module=module)
    dropout = parts["lora_dropout"]._modules.get(ADAPTER)
    p = float(dropout.p) if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0
    a, b = (parts[name]._modules[ADAPTER]._parameters["weight"] for name in ("lora_A", "lora_B"))
    magnitude = None
    if variant := module.lora_variant:
        if type(variant.get(ADAPTER)).__name__ != "DoraLinearVariant":
            return Projection(layer, module=module)
        magnitude = parts["lora_magnitude_vector"]._modules[ADAPTER]._parameters["weight"]
    return Projection(layer, a, b, float(module.scaling[ADAPTER]), p, magnitude)


def _is_linear(layer: Any) -> bool:
    if type(layer) is torch.nn.Linear:
        return True
    weight = layer._parameters.get("weight")
    return hasattr(weight, "quant_state") or _int8_scale(layer, weight) is not None


def _int8_scale(layer: Any, weight: Any) -> torch.Tensor | None:
    """(out,) largest absolute value of each row of a Linear8bitLt; its first own call moves it to `state`."""
    if getattr(weight, "dtype", None) != torch.int8:
        return None
    scale: torch.Tensor | None = getattr(weight, "SCB", None)
    if scale is None:
        moved: torch.Tensor | None = layer.state.SCB
        return moved
    return scale


def _matrix(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """(out, in); 4-bit and 8-bit weights are unpacked for the moment.

    bitsandbytes' own INT8 product rounds its input to 8 bits too. Here only the weights are rounded, as with
    NF4: nearer to the unquantised model, and the backward needs no second copy.
    """
    weight: torch.Tensor = layer._parameters["weight"]
    if weight.dtype == torch.int8:
        scale = _int8_scale(layer, weight)
        if scale is None:
            raise ValueError("an INT8 layer must be quantised before it computes; its scale SCB is missing")
        return int8_to_float(weight.data, scale, dtype)
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(dtype)  # type: ignore[no-any-return]


def _dora_columns(projection: Projection, matrix: torch.Tensor) -> torch.Tensor | None:
    """(out,) DoRA's c = m / |W + s B A|, rows of W + s B A taken apart; None without DoRA.

    |W + s B A|^2 = |W|^2 + 2 s <W A', B> + s^2 <B A A', B>, row by row: the sum itself is never built.
    """
    p = projection
    if p.magnitude is None or p.a is None or p.b is None:
        return None
    a, b = p.a.detach(), p.b.detach()
    wide = torch.promote_types(matrix.dtype, torch.float32)
    square: torch.Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=wide).square()
    square += 2 * p.scale * ((matrix @ a.t().to(matrix.dtype)).to(wide) * b).sum(1)
    square += p.scale**2 * ((b @ (a @ a.t())) * b).sum(1)
    return p.magnitude.detach() / square.sqrt()


class _Group:
    """Projections that read the same input, their adapters in the type they are multiplied in.

    What the backward needs of a forward (`Kept`) are 1 + 2 n tensors for n projections: what the adapters' A
    made of x, then DoRA's columns and DoRA's result of each. Dropout masks are drawn again by their seeds.
    """

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        self.projections = projections
        self.down = [None if p.a is None else p.a.detach() for p in projections]
        down = [a for a in self.down if a is not None]
        self.a = torch.cat(down).to(dtype) if down else None  # (sum of r, in)
        self.b = [None if p.b is None else (p.scale * p.b.detach()).to(dtype) for p in projections]  # s B
        ends = list(itertools.accumulate(0 if p.a is None else len(p.a) for p in projections))
        self.columns = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.dropout = any(p.dropout for p in projections)
        # from the host's generator, without waiting for the device
        self.seeds = [int(torch.randint(2**31 - 1, ())) if p.dropout else 0 for p in projections]

    def forward(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> tuple[list[torch.Tensor], Kept]:
        """Every projection of x (T, in), the first one added to `onto`; and what the backward needs."""
        low = self._low(x)
        results, scales, own = [], Kept(), Kept()
        for i, (p, columns) in enumerate(zip(self.projections, self.columns, strict=True)):
            matrix, b, bias = _matrix(p.layer, x.dtype), self.b[i], p.layer._parameters["bias"]
            scale, scaled = _dora_columns(p, matrix), None
            if b is None or low is None:
                y = F.linear(x, matrix, bias)
            elif scale is not None and p.dropout:
                through = self._dropped(x, i) @ matrix.t()
                scaled = (low[:, columns] @ b.t()).add_(through).mul_(scale)
                y = F.linear(x, matrix, bias).add_(scaled).sub_(through)
            else:
                y = (low[:, columns] @ b.t()).addmm_(x, matrix.t())
                y = y if scale is None else y.mul_(scale)
                y = y if bias is None else y.add_(bias)
                scaled = None if scale is None else y
            scales.append(scale)
            own.append(scaled)
            if onto is not None:
                y = y + onto if scaled is y else y.add_(onto)
            results.append(y)
        return results, [low, *scales, *own]

    def _low(self, x: torch.Tensor) -> torch.Tensor | None:
        """(T, sum of r): x, or what dropout leaves of it for each projection, through every A."""
        if self.a is None or not self.dropout:
            return None if self.a is None else x @ self.a.t()
        parts = [
            self._dropped(x, i) @ self.a[columns].t()
            for i, columns in enumerate(self.columns)
            if self.down[i] is not None
        ]
        return torch.cat(parts, dim=1)

    def _dropped(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """Dropout of x (T, any) for one projection: the same mask whenever it is asked for."""
        p = self.projections[i].dropout
        return dropped(x, self.seeds[i], p) if p else x

    def backward(
        self, x: torch.Tensor, kept: Kept, grads: Sequence[torch.Tensor], input_needed: bool
    ) -> tuple[torch.Tensor | None, Grads]:
        """Gradient by x, where needed, and by A, B and m of every projection in turn."""
        dx, dlow, rest = self.before_input(kept, grads, input_needed)
        return dx, self.adapter_grads(x, dlow, rest)

    def before_input(
        self, kept: Kept, grads: Sequence[torch.Tensor], input_needed: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, list[tuple[torch.Tensor | None, ...]]]:
        """Gradients by x, by x A', and by every (B, m); the input itself is not needed for these."""
        n = len(grads)
        low, scales, own = kept[0], kept[1 : 1 + n], kept[1 + n :]
        rest: list[tuple[torch.Tensor | None, ...]] = []
        by_low = []
        for i, (p, dy) in enumerate(zip(self.projections, grads, strict=True)):
            b, scale, result, by_b, by_m = self.b[i], scales[i], own[i], None, None
            if scale is not None and result is not None and p.magnitude is not None:
                bias = None if p.dropout else p.layer._parameters["bias"]
                by_m = column_products(dy, result, bias) / p.magnitude.detach()
                dy = dy * scale.to(dy.dtype)
            if b is not None and low is not None:
                by_low.append(dy @ b)
                by_b = torch.addmm(b, dy.t(), low[:, self.columns[i]], beta=0, alpha=p.scale)
            rest.append((by_b, by_m))
        dlow = None if not by_low else by_low[0] if len(by_low) == 1 else torch.cat(by_low, dim=1)
        if not input_needed:
            return None, dlow, rest
        return self._by_input(dlow, grads, scales), dlow, rest

    def _by_input(
        self, dlow: torch.Tensor | None, grads: Sequence[torch.Tensor], scales: Kept
    ) -> torch.Tensor:
        """Gradient by x (T, in): through the adapters' A, then through the frozen matrices.

        Args:
            dlow: (T, sum of r), by x A'.
            grads: (T, out) by each result.
            scales: (out,) DoRA's columns of each.
        """
        dx = None if dlow is None or self.a is None or self.dropout else dlow @ self.a
        for i, (p, columns) in enumerate(zip(self.projections, self.columns, strict=True)):
            dy, scale = grads[i], scales[i]
            matrix = _matrix(p.layer, dy.dtype)
            if p.dropout and dlow is not None and self.a is not None:
                by_dropped = dlow[:, columns] @ self.a[columns]
                if scale is not None:  # the result holds x W' and (c - 1) drop(x) W'
                    by_dropped.addmm_(dy * (scale - 1).to(dy.dtype), matrix)
                part = self._dropped(by_dropped, i)
                dx = part if dx is None else dx.add_(part)
            elif scale is not None:
                dy = dy * scale.to(dy.dtype)
            dx = dy @ matrix if dx is None else dx.addmm_(dy, matrix)
        if dx is None:
            raise ValueError("a group has at least one projection")
        return dx

    def adapter_grads(
        self, x: torch.Tensor, dlow: torch.Tensor | None, rest: Sequence[tuple[torch.Tensor | None, ...]]
    ) -> Grads:
        """Gradients by A, B and m of every projection in turn, x: (T, in)."""
        together = None if dlow is None or self.dropout else dlow.t() @ x
        found: Grads = []
        for i, (columns, others) in enumerate(zip(self.columns, rest, strict=True)):
            by_a = None
            if self.down[i] is not None and dlow is not None:
                by_a = dlow[:, columns].t() @ self._dropped(x, i) if together is None else together[columns]
            found += [by_a, *others]
        return found


def _adapters(projections: Sequence[Projection]) -> list[torch.Tensor | None]:
    """A, B and m of every projection in turn: autograd must see them as inputs."""
    return [tensor for p in projections for tensor in (p.a, p.b, p.magnitude)]


def norm_terms(norm: Any) -> tuple[torch.Tensor, float]:
    """Weight and epsilon of a root-mean-square norm.

    Qwen3.5's norms store by how much their weight differs from one, and multiply before they round: theirs
    comes in float32 at least.
    """
    if hasattr(norm, "variance_epsilon"):
        return norm.weight, norm.variance_epsilon
    weight: torch.Tensor = norm.weight
    return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32)), norm.eps


def norm_project(x: torch.Tensor, norm: Any, projections: Sequence[Projection]) -> tuple[torch.Tensor, ...]:
    """Norm x (T, in), then project it: one (T, out) per projection."""
    if any(p.module is not None for p in projections):
        normed = norm(x)
        return tuple(_called(p, normed) for p in projections)
    results: tuple[torch.Tensor, ...] = _NormProject.apply(  # type: ignore[no-untyped-call]
        x, *norm_terms(norm), projections, *_adapters(projections)
    )
    return results


def project_onto(residual: torch.Tensor, x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """residual (T, out) + projection of x (T, in)."""
    if projection.module is not None:
        return residual + _called(projection, x)
    result: torch.Tensor = _ProjectOnto.apply(residual, x, projection, *_adapters([projection]))  # type: ignore[no-untyped-call]
    return result


def gated_mlp(x: torch.Tensor, norm: Any, projections: Sequence[Projection], recompute: bool) -> torch.Tensor:
    """x + down(silu(gate(norm x)) * up(norm x)), x: (T, in).

    Args:
        x: The residual stream.
        norm: Of the MLP's input.
        projections: gate, up, down.
        recompute: Compute gate and up again in the backward: half the memory, a sixth more time.
    """
    if any(p.module is not None for p in projections):
        if recompute and torch.is_grad_enabled():
            again: torch.Tensor = checkpoint(_called_mlp, x, norm, projections, use_reentrant=False)
            return again
        return _called_mlp(x, norm, projections)
    result: torch.Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]
        x, *norm_terms(norm), projections, recompute, *_adapters(projections)
    )
    return result


def _called(projection: Projection, x: torch.Tensor) -> torch.Tensor:
    """One projection of x (T, in) by itself: its module where it has to be called, else our arithmetic."""
    if projection.module is None:
        zeros = x.new_zeros(len(x), projection.layer.out_features)
        return project_onto(zeros, x, projection)
    result: torch.Tensor = projection.module(x)
    return result


def _called_mlp(x: torch.Tensor, norm: Any, projections: Sequence[Projection]) -> torch.Tensor:
    gate, up, down = projections
    normed = norm(x)
    return x + _called(down, F.silu(_called(gate, normed)) * _called(up, normed))


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norm: Any | None) -> torch.Tensor:
    """Head norm, where there is one, and rotary embedding of (T, H, D)."""
    weight, eps = norm_terms(norm) if norm is not None else (None, 0.0)
    result: torch.Tensor = _Rotary.apply(x, cos, sin, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _NormProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float, projections: Any, *adapters: Any) -> Any:
        ctx.group, ctx.eps = _Group(projections, x.dtype), eps
        results, kept = ctx.group.forward(rms_norm(x, weight, eps))
        ctx.save_for_backward(x, weight, *kept)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, *kept = ctx.saved_tensors
        wanted, of_norm = ctx.needs_input_grad[:2]
        dn, adapters = ctx.group.backward(rms_norm(x, weight, ctx.eps), kept, grads, wanted or of_norm)
        dx = rms_norm_backward(dn, x, weight, ctx.eps, None) if wanted else None
        dweight = rms_norm_weight_gradient(dn, x, ctx.eps) if of_norm else None
        return dx, dweight, None, None, *adapters


class _ProjectOnto(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Any, x: Any, projection: Any, *adapters: Any) -> Any:
        ctx.group = _Group([projection], x.dtype)
        (result,), kept = ctx.group.forward(x, onto=residual)
        ctx.save_for_backward(x, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, *kept = ctx.saved_tensors
        dx, adapters = ctx.group.backward(x, kept, [grad], ctx.needs_input_grad[1])
        return grad, dx, None, *adapters


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, eps: float, projections: Any, recompute: bool, *adapters: Any
    ) -> Any:
        ctx.read, ctx.write = _Group(projections[:2], x.dtype), _Group(projections[2:], x.dtype)
        ctx.eps, ctx.recompute = eps, recompute
        (gate, up), read = ctx.read.forward(rms_norm(x, weight, eps))
        (result,), written = ctx.write.forward(swiglu(gate, up), onto=x)
        kept = [] if recompute else [gate, up, *read]
        ctx.save_for_backward(x, weight, *written, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, *rest = ctx.saved_tensors
        written, kept = rest[:3], rest[3:]  # 1 + 2 tensors of the one projection that writes
        normed = rms_norm(x, weight, ctx.eps)
        if ctx.recompute:
            (gate, up), read = ctx.read.forward(normed)
        else:
            gate, up, *read = kept
        hidden_grad, dlow, others = ctx.write.before_input(written, [grad], True)
        hidden, dgate, dup = swiglu_backward(hidden_grad, gate, up)
        of_down = ctx.write.adapter_grads(hidden, dlow, others)
        wanted, of_norm = ctx.needs_input_grad[:2]
        dn, adapters = ctx.read.backward(normed, read, [dgate, dup], wanted or of_norm)
        dx = rms_norm_backward(dn, x, weight, ctx.eps, grad) if wanted else None
        dweight = rms_norm_weight_gradient(dn, x, ctx.eps) if of_norm else None
        return dx, dweight, None, None, None, *adapters, *of_down


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
