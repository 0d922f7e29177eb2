"""The chosen weights move as the optimiser says, no others do, and all come back bit for bit."""

from typing import Any

import pytest
import torch
from torch.nn import Linear, Module, Parameter

from tests.conftest import Adapt
from vqa.answer.adapt.gradient import AdaptedWeights, trained_parameters
from vqa.config.settings import AdaptSettings
from vqa.errors import UserError
from vqa.model.encode import Encoder


class ToyRMSNorm(Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = Parameter(torch.ones(3, dtype=dtype))


class Toy(Module):
    """As much of a model as is looked at: a language model with one norm, and one adapter weight."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = Module()
        self.model.language_model = Module()
        self.model.language_model.norm = ToyRMSNorm(dtype)
        self.model.language_model.lora_A = Linear(2, 2, bias=False)
        self.head = Linear(2, 2)

    def get_decoder(self) -> Module:
        decoder = self.model.language_model
        assert isinstance(decoder, Module)
        return decoder


@pytest.fixture
def wanted(adapting: Adapt) -> Any:
    return lambda *overrides: adapting("adapt=tent", *overrides).settings


def test_lora_and_norm_weights_of_the_embedded_model(adapting: Adapt, encoder: Encoder) -> None:
    adapting("adapt=tent")
    model = encoder.base.model
    names = {id(p): name for name, p in model.named_parameters()}
    lora = [names[id(p)] for p in trained_parameters(model, "lora")]
    norm = [names[id(p)] for p in trained_parameters(model, "norm")]
    layers = len(model.model.language_model.layers)
    assert len(lora) == 2 * 7 * layers  # A and B of seven projections
    assert all("lora_" in name for name in lora)
    assert len(norm) == 4 * layers + 1  # two of the layer, two of its heads; the last one
    assert not any("visual" in name for name in norm)


def test_without_an_adapter_there_is_no_lora_to_train(encoder: Encoder) -> None:
    with pytest.raises(UserError, match=r"adapt.parameters must be norm without an adapter.*got 'lora'"):
        trained_parameters(encoder.base.model, "lora")


def test_only_the_chosen_weights_ask_for_gradients_and_only_inside(wanted: Any) -> None:
    model = Toy().requires_grad_(False)
    model.head.weight.requires_grad_(True)
    weights = AdaptedWeights(model, wanted("adapt.parameters=norm"))
    with weights.learning():
        assert [name for name, p in model.named_parameters() if p.requires_grad] == [
            "model.language_model.norm.weight"
        ]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight"]


def test_sgd_steps_with_momentum(wanted: Any) -> None:
    weights = AdaptedWeights(
        Toy(), wanted("adapt.parameters=norm", "adapt.optimizer=sgd", "adapt.norm_lr=0.1")
    )
    for _ in range(2):
        assert weights.step([torch.tensor([1.0, 0.0, -1.0])])
    # 0.1 (1 + (0.9 + 1)) = 0.29
    assert weights.parameters[0].tolist() == pytest.approx([0.71, 1.0, 1.29])


def test_norm_weights_and_adapter_have_rates_of_their_own(wanted: Any) -> None:
    assert (wanted().rate, wanted("adapt.parameters=norm").rate) == (1e-4, 3e-3)


def test_a_gradient_that_is_no_number_moves_nothing(wanted: Any) -> None:
    weights = AdaptedWeights(Toy(), wanted("adapt.parameters=norm"))
    assert not weights.step([torch.tensor([1.0, torch.nan, 0.0])])
    assert weights.parameters[0].tolist() == [1.0, 1.0, 1.0]


def test_small_steps_add_up_in_half_precision(wanted: Any) -> None:
    settings: AdaptSettings = wanted("adapt.parameters=norm", "adapt.optimizer=sgd", "adapt.norm_lr=1e-3")
    weights = AdaptedWeights(Toy(torch.bfloat16), settings)
    weights.step([torch.ones(3)])
    assert weights.parameters[0].tolist() == [1.0] * 3  # 0.999 rounds to 1 in bfloat16
    for _ in range(9):
        weights.step([torch.ones(3)])
    assert weights.parameters[0][0].item() < 0.97


def test_everything_comes_back(wanted: Any) -> None:
    model = Toy()
    weights = AdaptedWeights(model, wanted("adapt.lr=0.1"))
    start = model.model.language_model.lora_A.weight.detach().clone()  # type: ignore[union-attr, operator]
    gradient = [torch.randn(2, 2)]
    weights.step(gradient)
    moved = weights.parameters[0].detach().clone()
    assert not torch.equal(moved, start)
    with weights.at_source():
        assert torch.equal(weights.parameters[0], start)
    assert torch.equal(weights.parameters[0], moved)
    with weights.moved([torch.full((2, 2), 0.5)]):
        assert torch.equal(weights.parameters[0], moved + 0.5)
    assert torch.equal(weights.parameters[0], moved)
    weights.reset()
    assert torch.equal(weights.parameters[0], start)
    weights.step(gradient)  # the optimiser is as new: the same step from the same place
    assert torch.equal(weights.parameters[0], moved)
