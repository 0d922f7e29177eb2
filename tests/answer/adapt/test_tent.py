"""TENT lowers the entropy of the questions it sees."""

import pytest
import torch

from tests.conftest import Adapt
from vqa.answer.adapt.formulas import mean_entropy
from vqa.answer.adapt.gradient import read_batch
from vqa.answer.adapt.weight_methods import Tent, WeightMethod
from vqa.question import Question


@pytest.mark.parametrize("parameters", ["lora", "norm"])
def test_entropy_falls_from_step_to_step(adapting: Adapt, questions: list[Question], parameters: str) -> None:
    made = adapting("adapt=tent", f"adapt.parameters={parameters}", "adapt.lr=1e-3")
    method = WeightMethod(made, Tent)
    spread = [mean_entropy(method.scores(questions[:8])[0]).item() for _ in range(4)]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > spread[-1]
    assert made.counts["steps"] == 4
    method.reset()


def test_an_online_method_answers_from_the_pass_it_learns_from(
    adapting: Adapt, questions: list[Question]
) -> None:
    made = adapting("adapt=tent", "adapt.lr=1e-3")
    before = read_batch(made.encoder, questions[:8])
    method = WeightMethod(made, Tent)
    assert torch.equal(method.scores(questions[:8])[0], before.log_p)
    method.reset()


def test_an_episodic_method_answers_after_its_steps(adapting: Adapt, questions: list[Question]) -> None:
    made = adapting("adapt=tent", "adapt.lr=1e-3", "adapt.episodic=true", "adapt.steps=2")
    before = mean_entropy(read_batch(made.encoder, questions[:8]).log_p)
    method = WeightMethod(made, Tent)
    assert mean_entropy(method.scores(questions[:8])[0]) < before
    assert made.counts["steps"] == 2
    method.reset()
