"""Alignment draws a batch's embeddings towards those of the training questions."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import Adapt
from vqa.answer.adapt.formulas import misalignment, moments
from vqa.answer.adapt.gradient import read_batch
from vqa.answer.adapt.weight_methods import LoraAlign, WeightMethod
from vqa.errors import UserError
from vqa.question import Question


def test_the_source_is_measured_in_batches_without_labels(adapting: Adapt, questions: list[Question]) -> None:
    unlabelled = [replace(q, answer=None) for q in questions[:10]]
    made = replace(adapting("adapt=lora_align", "adapt.batch_size=4"), source=unlabelled)
    method = WeightMethod(made, LoraAlign)
    assert isinstance(method.rule, LoraAlign)
    read = read_batch(method.adapting.encoder, questions[:10], embeddings=True)
    for found, x in ((method.rule.pictures, read.pictures), (method.rule.answers, read.answers)):
        assert torch.allclose(found.mean, moments(x).mean, atol=1e-4)
        assert torch.allclose(found.variance, moments(x).variance, rtol=1e-3, atol=1e-5)


def test_a_batch_comes_nearer_to_the_source(adapting: Adapt, questions: list[Question]) -> None:
    made = replace(adapting("adapt=lora_align", "adapt.lr=1e-3"), source=questions[:16])
    method = WeightMethod(made, LoraAlign)
    assert isinstance(method.rule, LoraAlign)
    shifted = [
        replace(q, text="그림에 무엇이 보입니까?", choices=("x", "y", "z", "w")) for q in questions[16:24]
    ]

    def apart() -> torch.Tensor:
        assert isinstance(method.rule, LoraAlign)
        read = read_batch(made.encoder, shifted, embeddings=True)
        return misalignment(read.answers, method.rule.answers) + misalignment(
            read.pictures, method.rule.pictures
        )

    before = apart()
    for _ in range(4):
        method.scores(shifted)
    assert apart() < before
    method.reset()
    assert torch.allclose(apart(), before)


def test_without_training_questions_it_says_what_to_give(adapting: Adapt) -> None:
    with pytest.raises(UserError, match=r"lora_align needs training questions.*give data.train_csv"):
        WeightMethod(adapting("adapt=lora_align"), LoraAlign)
