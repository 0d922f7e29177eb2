"""The sharpness-aware step has the asked length and the gradient's direction."""

import torch

from vqa.answer.adapt.gradient import worst_direction


def test_three_four_five() -> None:
    (found,) = worst_direction([torch.tensor([3.0, 4.0])], 0.05)
    # 0.05 x [3, 4] / 5
    assert torch.allclose(found, torch.tensor([0.03, 0.04]))


def test_the_length_is_that_of_all_weights_together() -> None:
    found = worst_direction([torch.tensor([[3.0]]), torch.tensor([4.0])], 0.05)
    assert [x.shape for x in found] == [(1, 1), (1,)]
    assert torch.allclose(torch.cat([x.flatten() for x in found]), torch.tensor([0.03, 0.04]))


def test_no_gradient_is_no_step() -> None:
    (found,) = worst_direction([torch.zeros(3)], 0.05)
    assert found.tolist() == [0.0, 0.0, 0.0]
