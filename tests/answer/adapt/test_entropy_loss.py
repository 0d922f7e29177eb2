"""Formulas over predictions, held to numbers worked out in double precision."""

import math

import pytest
import torch

from vqa.answer.adapt.formulas import (
    entropies,
    kl_divergence,
    mean_entropy,
    reliable,
    view_divergence,
)

SURE, SURER, TORN = [2.0, 0, 0, 0], [4.0, 0, 0, 0], [1.0, 1.0, 0, 0]


def log_p(*logits: list[float]) -> torch.Tensor:
    return torch.tensor(logits, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [(SURE, 0.918284), (SURER, 0.261830), (TORN, 1.275350), ([0.0] * 4, math.log(4))],
)
def test_entropy_of_four_letters(logits: list[float], expected: float) -> None:
    # -sum p log p of the softmax
    assert entropies(log_p(logits)).tolist() == pytest.approx([expected], abs=1e-6)


def test_the_gradient_of_the_entropy_is_the_formulas() -> None:
    logits = torch.tensor([SURE], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(mean_entropy(logits.log_softmax(1)), logits)
    # dH/dz_i = -p_i (log p_i + H)
    assert found[0].tolist() == pytest.approx([-0.41076, 0.13692, 0.13692, 0.13692], abs=1e-5)


def test_certainty_has_a_gradient_too() -> None:
    logits = torch.tensor([[0.0, -200.0, -300.0, -400.0]], requires_grad=True)  # exp(-200) is 0 in float32
    (found,) = torch.autograd.grad(mean_entropy(logits.log_softmax(1)), logits)
    assert found.tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_only_predictions_below_e0_are_reliable() -> None:
    # E0 = 0.4 ln 4 = 0.5545: 0.2618 is below, 0.9183 and 1.2754 are not
    limit = 0.4 * math.log(4)
    assert limit == pytest.approx(0.5545, abs=1e-4)
    assert reliable(log_p(SURE, SURER, TORN), 0.4).tolist() == [False, True, False]
    assert reliable(log_p(SURE, SURER, TORN), 1.0).tolist() == [True, True, True]


def test_divergence_is_what_the_mean_prediction_is_less_sure() -> None:
    views = log_p(SURE, [0.0, 2.0, 0, 0])[None]
    # marginal entropy 1.182990 minus mean entropy 0.918284
    assert view_divergence(views).tolist() == pytest.approx([0.264706], abs=1e-6)
    p = views[0].exp()
    mean_kl = kl_divergence(views[0], p.mean(0).log().expand(2, -1)).mean()
    assert view_divergence(views).item() == pytest.approx(mean_kl.item())


def test_views_that_agree_do_not_diverge() -> None:
    assert view_divergence(log_p(SURE, SURE, SURE)[None]).item() == pytest.approx(0, abs=1e-12)


def test_kl_of_a_prediction_to_itself_is_nothing() -> None:
    assert kl_divergence(log_p(SURE), log_p(SURE)).tolist() == [0.0]
    # p uniform, q = softmax([2,0,0,0]): log(e^2 + 3) - 0.5 - log 4
    expected = math.log(math.exp(2) + 3) - 0.5 - math.log(4)
    assert kl_divergence(log_p([0.0] * 4), log_p(SURE)).item() == pytest.approx(expected)
