"""Formulas of the read-outs, against the fixtures of their papers."""

import pytest
import torch

from vqa.answer.debias import (
    cyclic,
    cyclic_average,
    entropy,
    letter_prior,
    mean_probability,
    pride,
    to_options,
    without_prior,
)

# PriDe's model: probability of a letter = taste for the letter x what its option is worth
WORTH = torch.tensor([1, 0, 0, 0.5], dtype=torch.float64)
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
DEBIASED = torch.tensor([0.4269, 0.1571, 0.1571, 0.2589], dtype=torch.float64)


def biased() -> torch.Tensor:
    """(1, O, C) what a model with that taste says of one question in the cyclic orders."""
    orders = [(PRIOR.log() + WORTH[list(order)]).log_softmax(0) for order in cyclic(4)]
    return torch.stack(orders)[None]


def test_every_choice_stands_once_at_every_letter() -> None:
    assert cyclic(4)[0] == (0, 1, 2, 3)
    for letter in range(4):
        assert {order[letter] for order in cyclic(4)} == {0, 1, 2, 3}


def test_letters_are_mapped_back_to_their_options() -> None:
    by_letter = torch.tensor([[list(order) for order in cyclic(4)]]).double()
    assert torch.equal(to_options(by_letter), torch.arange(4).double().expand(1, 4, 4))


def test_averaging_over_the_orders_cancels_a_taste_for_letters() -> None:
    assert torch.allclose(cyclic_average(biased())[0].exp(), DEBIASED, atol=5e-5)


def test_pride_finds_the_taste_and_divides_it_out() -> None:
    asked = biased()
    assert torch.allclose(letter_prior(asked), PRIOR)
    log_p = asked[:, 0].repeat(3, 1)
    found = pride(log_p, asked, torch.tensor([1]))
    assert torch.allclose(found.exp(), DEBIASED.expand(3, 4), atol=5e-5)


def test_batch_calibration_makes_the_mean_answer_flat_for_a_constant_taste() -> None:
    log_p = (PRIOR.log() + torch.zeros(5, 4)).log_softmax(1)
    prior = mean_probability(log_p)
    assert torch.allclose(prior, PRIOR)
    assert torch.allclose(without_prior(log_p, prior).exp(), torch.full((5, 4), 0.25, dtype=torch.float64))


def test_calibration_is_division_by_the_prior() -> None:
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    expected = p / PRIOR / (p / PRIOR).sum()  # Zhao et al. 2021: W = diag(p_cf)^-1
    assert torch.allclose(without_prior(p.log(), PRIOR).exp(), expected)


def test_a_letter_that_never_had_a_chance_makes_no_nan() -> None:
    log_p = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64).log().nan_to_num(neginf=-50)
    assert bool(without_prior(log_p, mean_probability(log_p)).isfinite().all())


def test_entropy_is_in_nats() -> None:
    found = entropy(torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]]).log_softmax(1))
    assert found.tolist() == pytest.approx([0.918284, 1.386294], abs=1e-5)  # of the four logits 2, 0, 0, 0
