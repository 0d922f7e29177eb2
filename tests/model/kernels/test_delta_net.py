"""Gated DeltaNet's parts over packed sequences are those of each sequence alone, with gradients."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.float64 import token_by_token
from vqa.model.kernels import delta_net, pointwise
from vqa.model.kernels.delta_net import Tokens, by_chunks, gate_attention, gates
from vqa.model.kernels.short_conv import Level, children, last_inputs, row_levels, short_conv
from vqa.model.kernels.tree import tree_layout

CPU = torch.device("cpu")
LENGTHS = [5, 1, 2, 9]
WIDTH = 4


def level(lengths: list[int]) -> Level:
    return row_levels(tree_layout(0, lengths, CPU), CPU)[0]


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def alone(x: torch.Tensor, before: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """torch's own convolution of one sequence (T, D), the inputs (W - 1, D) before it in front."""
    whole = torch.cat([before, x]).t()[None]
    return F.silu(F.conv1d(whole, weight[:, None], groups=len(weight)))[0].t()


def test_a_convolution_reads_its_own_sequence_and_what_was_before_it() -> None:
    torch.manual_seed(0)
    x, before, weight = leaf(sum(LENGTHS), 6), leaf(len(LENGTHS), WIDTH - 1, 6), leaf(6, WIDTH).detach()
    parts = zip(torch.split(x, LENGTHS), before, strict=True)
    expected = torch.cat([alone(part, known, weight) for part, known in parts])
    found = short_conv(x, before, weight, level(LENGTHS))
    assert torch.allclose(found, expected, rtol=1e-12)
    grad = torch.randn_like(found)
    wanted, got = (torch.autograd.grad(y, [x, before], grad) for y in (expected, found))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(got, wanted, strict=True))


def test_the_last_inputs_reach_back_before_a_short_sequence() -> None:
    torch.manual_seed(0)
    x, before = leaf(sum(LENGTHS), 6), leaf(len(LENGTHS), WIDTH - 1, 6)
    parts = zip(torch.split(x, LENGTHS), before, strict=True)
    expected = torch.stack([torch.cat([known, part])[-WIDTH + 1 :] for part, known in parts])
    assert torch.equal(last_inputs(x, before, level(LENGTHS)), expected)


def test_children_stand_in_their_parents_order() -> None:
    above = torch.tensor([[1.0], [2.0]])
    assert children(above, level([3, 3, 3, 3])).flatten().tolist() == [1, 1, 2, 2]
    assert children(above[:1], level([3, 3])).flatten().tolist() == [1, 1]


@pytest.mark.parametrize("with_state", [False, True])
def test_chunks_give_the_rule_token_by_token(with_state: bool) -> None:
    """Sequences of one, two and three pieces of 64 tokens, filled up side by side."""
    torch.manual_seed(0)
    lengths, H, V, K, D = [70, 3, 64, 129], 2, 4, 8, 6
    T = sum(lengths)
    x = [leaf(T, H, K), leaf(T, H, K), leaf(T, V, D), leaf(T, V), leaf(T, V)]
    state = leaf(len(lengths), V, K, D) if with_state else None

    def given() -> Tokens:
        return Tokens(x[0], x[1], x[2], -F.softplus(x[3]), x[4].sigmoid())

    found, final = by_chunks(given(), state, level(lengths), True)
    reads, ends = [], []
    for i, parts in enumerate(zip(*(torch.split(part, lengths) for part in given()), strict=True)):
        q, k, v, g, b = (part[None] for part in parts)
        read, end = token_by_token(q, k, v, g, b, None if state is None else state[i : i + 1])
        reads.append(read[0])
        ends.append(end[0])
    assert final is not None
    leaves = x if state is None else [*x, state]
    grads = torch.randn_like(found), torch.randn_like(final)
    pairs = (found, final), (torch.cat(reads), torch.stack(ends))
    got, wanted = ([*pair, *torch.autograd.grad(pair, leaves, grads)] for pair in pairs)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(got, wanted, strict=True))
    assert by_chunks(given(), state, level(lengths), False)[1] is None


def test_the_kernel_is_given_what_the_formulas_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the kernel's own arguments: they come in its order, with one batch around them."""
    torch.manual_seed(0)
    T = sum(LENGTHS)
    tokens = Tokens(leaf(T, 2, 8), leaf(T, 2, 8), leaf(T, 4, 6), -leaf(T, 4).abs(), leaf(T, 4).sigmoid())
    state, rows = leaf(len(LENGTHS), 4, 8, 6), level(LENGTHS)

    def kernel(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        *,
        initial_state: torch.Tensor,
        output_final_state: bool,
        use_qk_l2norm_in_kernel: bool,
        cu_seqlens: torch.Tensor,
        chunk_indices: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert use_qk_l2norm_in_kernel
        assert cu_seqlens is rows.ends
        assert chunk_indices is rows.chunks
        read, end = by_chunks(
            Tokens(q[0], k[0], v[0], g[0], beta[0]), initial_state, rows, output_final_state
        )
        return read[None], end

    library = SimpleNamespace(chunk_gated_delta_rule=kernel)
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", library)
    found, final = delta_net._by_kernel(tokens, state, rows, True)
    expected, end = by_chunks(tokens, state, rows, True)
    assert torch.equal(found, expected)
    assert final is not None
    assert end is not None
    assert torch.equal(final, end)
    assert delta_net._by_kernel(tokens, state, rows, False)[1] is None


def test_gates_have_the_gradients_of_autograd() -> None:
    torch.manual_seed(0)
    a, b = leaf(7, 3), leaf(7, 3)
    rate, bias = torch.randn(2, 3, dtype=torch.float64)
    expected = -rate.exp() * F.softplus(a + bias), b.sigmoid()
    grads = [torch.randn(7, 3, dtype=torch.float64) for _ in range(2)]
    got, wanted = (
        [*pair, *torch.autograd.grad(pair, [a, b], grads)] for pair in (gates(a, b, rate, bias), expected)
    )
    assert all(torch.allclose(x, y, rtol=1e-10) for x, y in zip(got, wanted, strict=True))


def test_the_sigmoid_gate_has_the_gradients_of_autograd() -> None:
    torch.manual_seed(0)
    x, gate = leaf(5, 2, 3), leaf(5, 2, 3)
    got, wanted = (
        torch.autograd.grad(y.square().sum(), [x, gate])
        for y in (gate_attention(x, gate), x * gate.sigmoid())
    )
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("turned", [4, 8])
def test_a_head_is_turned_in_part_or_whole(turned: int) -> None:
    """Qwen3.5 turns a quarter of a head; the norm before it is the whole head's."""
    torch.manual_seed(0)
    x, weight = leaf(5, 2, 8), torch.randn(8, dtype=torch.float64)
    cos, sin = torch.randn(2, 5, turned, dtype=torch.float64)
    normed = weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    head, rest = normed[..., :turned], normed[..., turned:]
    half = torch.cat([-head[..., turned // 2 :], head[..., : turned // 2]], -1)
    expected = torch.cat([head * cos[:, None] + half * sin[:, None], rest], -1)
    assert torch.allclose(pointwise.rotate(x, cos, sin, weight, 1e-6), expected, rtol=1e-12)
    grad = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    found = pointwise.rotate_backward(grad, x.detach(), cos, sin, weight, 1e-6)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_weight_wider_than_the_result_is_multiplied_before_rounding() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 16).bfloat16(), 1 + torch.randn(16) / 10
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    assert torch.equal(pointwise.rms_norm(x, weight, 1e-6), exact.bfloat16())
