"""Adapters computed by our arithmetic against PEFT's own layers, and which layers are left to PEFT."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.tiny_models import LANGUAGE, tiny_qwen2_5, tiny_qwen3
from vqa.model.kernels.lora_linear import (
    Projection,
    _Group,
    gated_mlp,
    norm_project,
    project_onto,
    read_projection,
)
from vqa.model.kernels.pointwise import dropped

T = 6


def adapted(**more: Any) -> Any:
    """A decoder layer of the tiny Qwen2.5-VL (its projections have biases) with random adapters."""
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 12, "target_modules": LANGUAGE, "init_lora_weights": False} | more
    base = tiny_qwen2_5()
    base.requires_grad_(False)
    get_peft_model(base, LoraConfig(**config))
    return base.model.language_model.layers[0]


def dora(**more: Any) -> Any:
    """A layer with DoRA whose magnitudes are away from the norms that PEFT starts them with."""
    layer = adapted(use_dora=True, **more)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in layer.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
    return layer


def projections(parent: Any, *names: str) -> list[Any]:
    return [read_projection(getattr(parent, name)) for name in names]


def same_gradients(layer: Any, x: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(ours, theirs, atol=1e-5)
    found = torch.autograd.grad(ours, leaves, grad, allow_unused=True)
    expected = torch.autograd.grad(theirs, leaves, grad, allow_unused=True)
    for mine, wanted in zip(found, expected, strict=True):
        assert (mine is None) == (wanted is None)
        if mine is not None and wanted is not None:
            assert torch.linalg.norm(mine - wanted) <= 1e-5 * torch.linalg.norm(wanted)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(T, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("targets", [LANGUAGE, r".*language_model.*\.(q_proj|v_proj)"], ids=["all", "some"])
def test_norm_and_projections_equal_pefts_layers(x: torch.Tensor, targets: str) -> None:
    layer = adapted(target_modules=targets)
    attention = layer.self_attn
    found = norm_project(x, layer.input_layernorm, projections(attention, "q_proj", "k_proj", "v_proj"))
    normed = layer.input_layernorm(x)
    theirs = [module(normed) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    same_gradients(layer, x, torch.cat(found, 1), torch.cat(theirs, 1))


@pytest.mark.parametrize("residual_size", [0, 8])
def test_an_adapters_small_share_is_not_lost_in_bfloat16(residual_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, residual = (torch.randn(256, n, generator=generator).bfloat16() for n in (64, 64, 256))
    layer = torch.nn.Linear(64, 256, bias=False).to(torch.bfloat16).requires_grad_(False)
    layer.weight.data = weight / 8  # products of size 1: bfloat16 has steps of 0.004 to 0.008 there
    share = 0.001
    x[:, 0] = 1
    a, b = torch.eye(1, 64), torch.full((256, 1), share)  # x A' B' is `share` everywhere
    without, with_adapter = (
        project_onto(residual_size * residual, x, Projection(layer, a, b, scale)) for scale in (0.0, 1.0)
    )
    assert float((with_adapter.double() - without.double()).mean()) == pytest.approx(share, rel=0.25)


def test_the_projection_onto_the_residual_equals_pefts_layer(x: torch.Tensor) -> None:
    layer = adapted()
    (projection,) = projections(layer.self_attn, "o_proj")
    same_gradients(layer, x, project_onto(x * 2, x, projection), x * 2 + layer.self_attn.o_proj(x))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_mlp_equals_the_models(x: torch.Tensor, recompute: bool) -> None:
    layer = adapted(use_rslora=True)
    norm = layer.post_attention_layernorm
    found = gated_mlp(x, norm, projections(layer.mlp, "gate_proj", "up_proj", "down_proj"), recompute)
    same_gradients(layer, x, found, x + layer.mlp(norm(x)))


def test_a_layer_without_adapter_is_read_as_it_is() -> None:
    layer = tiny_qwen3().model.language_model.layers[0]
    projection = read_projection(layer.mlp.up_proj)
    assert (projection.layer, projection.a, projection.b) == (layer.mlp.up_proj, None, None)


def test_rank_stabilised_scale_is_pefts() -> None:
    projection = read_projection(adapted(use_rslora=True).self_attn.q_proj)
    assert projection.scale == 12 / 4**0.5


def test_other_adapters_are_left_to_peft() -> None:
    layer = adapted(lora_bias=True).self_attn.q_proj.train()
    assert read_projection(layer).module is layer


def test_a_disabled_adapter_is_left_to_peft() -> None:
    layer = adapted().self_attn.q_proj
    layer.enable_adapters(False)
    assert read_projection(layer).module is layer


def test_dropout_is_off_outside_training() -> None:
    layer = adapted(lora_dropout=0.1).self_attn.q_proj
    assert (read_projection(layer.train()).dropout, read_projection(layer.eval()).dropout) == (0.1, 0.0)


def test_other_adapters_give_pefts_result(x: torch.Tensor) -> None:
    layer = adapted(lora_bias=True)
    attention, norm = layer.self_attn, layer.post_attention_layernorm
    found = norm_project(x, layer.input_layernorm, projections(attention, "q_proj", "k_proj", "v_proj"))
    normed = layer.input_layernorm(x)
    theirs = [module(normed) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    same_gradients(layer, x, torch.cat(found, 1), torch.cat(theirs, 1))
    (projection,) = projections(attention, "o_proj")
    same_gradients(layer, x, project_onto(x * 2, x, projection), x * 2 + attention.o_proj(x))
    for recompute in (False, True):
        ours = gated_mlp(x, norm, projections(layer.mlp, "gate_proj", "up_proj", "down_proj"), recompute)
        same_gradients(layer, x, ours, x + layer.mlp(norm(x)))


@pytest.mark.parametrize("recompute", [False, True])
def test_dora_equals_pefts_layers(x: torch.Tensor, recompute: bool) -> None:
    layer = dora()
    attention, norm = layer.self_attn, layer.post_attention_layernorm
    found = norm_project(x, layer.input_layernorm, projections(attention, "q_proj", "k_proj", "v_proj"))
    normed = layer.input_layernorm(x)
    theirs = [module(normed) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    same_gradients(layer, x, torch.cat(found, 1), torch.cat(theirs, 1))
    (projection,) = projections(attention, "o_proj")
    same_gradients(layer, x, project_onto(x * 2, x, projection), x * 2 + attention.o_proj(x))
    ours = gated_mlp(x, norm, projections(layer.mlp, "gate_proj", "up_proj", "down_proj"), recompute)
    same_gradients(layer, x, ours, x + layer.mlp(norm(x)))


class SeededDropout(torch.nn.Dropout):
    """Dropout whose mask is the one that a seed gives."""

    def __init__(self, p: float, seed: int) -> None:
        super().__init__(p)
        self.seed = seed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropped(x, self.seed, self.p)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make", [adapted, dora])
def test_dropout_equals_pefts_layers_with_the_same_masks(
    x: torch.Tensor, make: Callable[..., Any], recompute: bool
) -> None:
    layer = make(lora_dropout=0.3).train()
    mlp, norm = layer.mlp, layer.post_attention_layernorm
    names = ("gate_proj", "up_proj", "down_proj")
    torch.manual_seed(11)
    ours = gated_mlp(x, norm, projections(mlp, *names), recompute)
    torch.manual_seed(11)  # one seed a projection, in the order in which they compute
    for name in names:
        seed = int(torch.randint(2**31 - 1, ()))
        getattr(mlp, name).lora_dropout["default"] = SeededDropout(0.3, seed)
    same_gradients(layer, x, ours, x + mlp(norm(x)))


def test_dropout_masks_differ_between_projections_and_leave_the_mean(x: torch.Tensor) -> None:
    layer = adapted(lora_dropout=0.5).train()
    wide = torch.ones(4000, 48)
    torch.manual_seed(0)
    (gate, up), kept = _Group(projections(layer.mlp, "gate_proj", "up_proj"), wide.dtype).forward(wide)
    low = kept[0]
    assert low is not None
    without, _ = _Group(projections(layer.eval().mlp, "gate_proj", "up_proj"), wide.dtype).forward(wide)
    for found, expected in zip((gate, up), without, strict=True):
        assert torch.allclose(found.mean(0), expected.mean(0), atol=0.15)
    assert abs(float(torch.corrcoef(torch.stack([low[:, 0], low[:, 4]]))[0, 1])) < 0.1
