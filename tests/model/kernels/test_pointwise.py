"""Hand-written backward formulas against autograd, forward formulas against transformers' modules."""

import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextRMSNorm,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
)

from vqa.model.kernels import pointwise
from vqa.model.kernels.pointwise import (
    fused,
    merge,
    rms_norm,
    rms_norm_backward,
    rotate,
    rotate_backward,
    rotate_wide,
    swiglu,
    swiglu_backward,
)

EPS = 1e-6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).float()


def by_autograd(output: torch.Tensor, grad: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output, inputs, grad)


@pytest.fixture
def angles() -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (5, 8) whose halves are alike, as the models' rotary embeddings give them."""
    half = randn(5, 4, seed=9)
    return torch.cat([half.cos()] * 2, 1), torch.cat([half.sin()] * 2, 1)


def test_the_norm_is_that_of_the_model() -> None:
    norm = Qwen3VLTextRMSNorm(8, EPS)
    norm.weight.data = randn(8, seed=1)
    x = randn(5, 8)
    assert torch.allclose(rms_norm(x, norm.weight, EPS), norm(x))


@pytest.mark.parametrize("with_residual", [False, True])
def test_the_norms_backward_is_that_of_autograd(with_residual: bool) -> None:
    x, weight, grad = randn(5, 8).requires_grad_(), randn(8, seed=1), randn(5, 8, seed=2)
    (expected,) = by_autograd(rms_norm(x, weight, EPS), grad, x)
    residual = randn(5, 8, seed=3) if with_residual else None
    found = rms_norm_backward(grad, x, weight, EPS, residual)
    assert torch.allclose(found, expected + (residual if residual is not None else 0), atol=1e-6)


def test_rotation_is_that_of_the_model(angles: tuple[torch.Tensor, torch.Tensor]) -> None:
    norm = Qwen3VLTextRMSNorm(8, EPS)
    norm.weight.data = randn(8, seed=1)
    x = randn(5, 2, 8)
    for weight, before in ((None, x), (norm.weight, norm(x))):
        heads_first = before.transpose(0, 1)[None]
        expected, _ = apply_rotary_pos_emb(heads_first, heads_first, angles[0][None], angles[1][None])
        assert torch.allclose(rotate(x, *angles, weight, EPS), expected[0].transpose(0, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_towers_rotation_is_that_of_the_model(
    angles: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> None:
    q, k = randn(5, 2, 8).to(dtype), randn(5, 2, 8, seed=1).to(dtype)
    expected = apply_rotary_pos_emb_vision(q, k, *angles)
    for x, wanted in zip((q, k), expected, strict=True):
        assert torch.equal(rotate_wide(x, *angles), wanted)


@pytest.mark.parametrize("with_norm", [False, True])
def test_the_rotations_backward_is_that_of_autograd(
    with_norm: bool, angles: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, grad = randn(5, 2, 8).requires_grad_(), randn(5, 2, 8, seed=2)
    weight = randn(8, seed=1) if with_norm else None
    (expected,) = by_autograd(rotate(x, *angles, weight, EPS), grad, x)
    kept = x if with_norm else None
    assert torch.allclose(rotate_backward(grad, kept, *angles, weight, EPS), expected, atol=1e-6)


def test_the_gated_products_backward_is_that_of_autograd() -> None:
    gate, up, grad = randn(5, 8).requires_grad_(), randn(5, 8, seed=1).requires_grad_(), randn(5, 8, seed=2)
    value = swiglu(gate, up)
    expected = (value, *by_autograd(value, grad, gate, up))
    for found, wanted in zip(swiglu_backward(grad, gate, up), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_merged_parts_are_the_attention_over_all_keys() -> None:
    q, k, v = randn(3, 2, 4), randn(7, 2, 4, seed=1), randn(7, 2, 4, seed=2)

    def attention(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.einsum("thd,shd->hts", q, k[keys])
        return torch.einsum("hts,shd->thd", scores.softmax(-1), v[keys]), scores.logsumexp(-1)

    found = merge(*attention(slice(0, 5)), *attention(slice(5, 7)))
    for part, wanted in zip(found, attention(slice(0, 7)), strict=True):
        assert torch.allclose(part, wanted, atol=1e-6)


def test_a_function_on_the_cpu_runs_as_it_is() -> None:
    seen = []
    fused(lambda x: seen.append(type(x)))(torch.zeros(1))
    assert seen == [torch.Tensor]


def test_dropout_keeps_its_share_and_the_mean() -> None:
    x = torch.ones(500, 400)
    for p in (0.05, 0.5):
        found = pointwise.dropped(x, 12345, p)
        assert float((found == 0).double().mean()) == pytest.approx(p, abs=0.005)  # 5 sd of 200,000 draws
        assert float(found.double().mean()) == pytest.approx(1, abs=0.015)


def test_dropout_masks_of_two_seeds_and_of_neighbours_are_independent() -> None:
    x = torch.ones(500, 400)
    first, second = (pointwise.dropped(x, seed, 0.5) > 0 for seed in (7, 8))
    pairs = [(first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1])]
    for one, other in pairs:
        assert float((one == other).double().mean()) == pytest.approx(0.5, abs=0.006)
    assert torch.equal(first, pointwise.dropped(x, 7, 0.5) > 0)
