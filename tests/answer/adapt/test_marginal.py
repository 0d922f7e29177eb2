"""Which views count and what they say together, held to numbers worked out by hand."""

import math

import pytest
import torch

from vqa.answer.adapt.formulas import marginal, marginal_entropy, most_confident, vote

# views [2,0,0,0] and [0,2,0,0] (logits): marginal entropy 1.182990, mean entropy 0.918284; from the formulas
# in double precision
TWO = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]], dtype=torch.float64).log_softmax(1)


def says(*letters: int, sure: float = 4.0) -> torch.Tensor:
    """One view per letter, each a little less sure than the one before."""
    logits = torch.zeros(len(letters), 4, dtype=torch.float64)
    for view, letter in enumerate(letters):
        logits[view, letter] = sure - 0.1 * view
    return logits.log_softmax(1)


def test_marginal_entropy_of_two_views() -> None:
    assert marginal_entropy(TWO).item() == pytest.approx(1.182990, abs=1e-6)
    assert marginal(TWO).exp().sum().item() == pytest.approx(1)
    assert marginal_entropy(TWO[:1]).item() == pytest.approx(0.918284, abs=1e-6)


def test_gradient_of_one_views_entropy() -> None:
    logits = torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    marginal_entropy(logits.log_softmax(1)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    # dH/dz_i = -p_i (log p_i + H)
    assert logits.grad[0].tolist() == pytest.approx([-0.41076, 0.13692, 0.13692, 0.13692], abs=1e-5)


@pytest.mark.parametrize(("views", "share", "kept"), [(64, 0.1, 6), (64, 1.0, 64), (8, 0.1, 1), (1, 0.5, 1)])
def test_a_share_of_the_views_is_kept_and_never_none(views: int, share: float, kept: int) -> None:
    log_p = torch.randn(views, 4, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    chosen = most_confident(log_p, share)
    assert len(chosen) == kept
    assert math.isfinite(marginal_entropy(log_p[chosen]).item())
    spread = -(log_p.exp() * log_p).sum(1)
    assert spread[chosen].tolist() == spread.sort().values[:kept].tolist()


def test_a_letter_without_any_probability_leaves_the_entropy_finite() -> None:
    certain = torch.tensor([[0.0, -200.0, -200.0, -200.0]])
    assert marginal_entropy(certain).item() == 0
    assert most_confident(torch.cat([TWO.float(), certain]), 0.4).tolist() == [2]


def test_the_majority_of_the_surest_views_wins() -> None:
    views = says(1, 1, 2, 3, 3, 3, 3, 3)
    assert vote(views, 3 / 8).argmax().item() == 1
    assert vote(views, 1.0).argmax().item() == 3


@pytest.mark.parametrize(
    ("letters", "share", "winner"),
    [
        ((1, 2, 3, 2, 1), 0.4, 2),  # 1 and 2 have one vote each; of the others 3 is not among them, 2 is
        ((1, 2, 0, 1, 2), 0.4, 1),
        ((2, 1, 0, 3), 0.5, 2),  # nobody else votes for a tied letter: the larger mean probability
        ((3, 1), 1.0, 3),
    ],
)
def test_a_tie_goes_to_the_surest_of_the_other_views(
    letters: tuple[int, ...], share: float, winner: int
) -> None:
    assert vote(says(*letters), share).argmax().item() == winner


def test_votes_are_probabilities_without_a_zero() -> None:
    found = vote(says(0, 0, 1), 1.0).exp()
    mean = says(0, 0, 1).exp().mean(0)
    assert torch.allclose(found, (torch.tensor([2.0, 1, 0, 0]).double() + mean) / 4)
    assert found.sum().item() == pytest.approx(1)


def test_the_mean_probability_never_outvotes_a_view() -> None:
    unsure = torch.tensor([[1e-3, 0, 0, 0], [1e-3, 0, 0, 0], [0, 30.0, 0, 0]]).log_softmax(1)
    assert vote(unsure, 1.0).argmax().item() == 0
