"""One changed value anywhere changes the digest."""

import pytest
import torch

from vqa.answer.adapt.loop import weight_digest


def model(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_change_of_one_value_shows_and_undoing_it_does_too(dtype: torch.dtype) -> None:
    made = model(dtype)
    before = weight_digest(made)
    weight = made[1].weight.data  # type: ignore[index]
    kept = weight[1, 2].clone()
    weight[1, 2] = torch.nextafter(kept, torch.tensor(torch.inf, dtype=dtype))
    assert weight_digest(made) != before
    weight[1, 2] = kept
    assert weight_digest(made) == before


def test_packed_weights_of_a_quantised_layer_count() -> None:
    made = model(torch.float32)
    packed = torch.nn.Parameter(torch.arange(8, dtype=torch.uint8), requires_grad=False)
    made.register_parameter("packed", packed)
    before = weight_digest(made)
    packed.data[3] = 99
    assert weight_digest(made) != before
