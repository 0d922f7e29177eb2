"""Alignment: zero for the source itself, pulls visual tokens towards it, and needs training pictures."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import Make
from vqa.answer.adapt.formulas import moments
from vqa.answer.adapt.loop import adapted_scores
from vqa.answer.adapt.method import Adapting
from vqa.answer.adapt.prompt_methods import LAYERS, Alignment, SoftPrompt
from vqa.errors import UserError
from vqa.model.decoder import early_states
from vqa.model.encode import Encoder
from vqa.question import Question

SMALL = ("adapt=prompt_align", "adapt.views=4", "adapt.keep_share=0.5", "adapt.batch_size=4")


def alignment(encoder: Encoder, settings: Make, source: list[Question], *more: str) -> Alignment:
    return Alignment(Adapting(encoder, settings(*SMALL, *more).adapt, source))


def test_the_sources_own_pictures_are_at_distance_zero(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    align = alignment(encoder, settings, questions[:6])
    prompt = SoftPrompt(encoder, questions[0])
    row = prompt.row(encoder.suffixes(questions[:6]), prompt.untouched())
    assert align(prompt, row).item() == pytest.approx(0, abs=1e-2)  # weight 100, float32
    states = early_states(encoder.base.model, row, LAYERS, prompt.known)
    for source, whole in zip(align.source, map(moments, states), strict=True):
        assert torch.allclose(source.mean, whole.mean, atol=1e-5)  # 4 + 2 pictures at once
        assert torch.allclose(source.variance, whole.variance, rtol=1e-4, atol=1e-6)


def test_a_prompt_can_pull_the_visual_tokens_towards_the_source(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    align = alignment(encoder, settings, questions[8:16])
    prompt = SoftPrompt(encoder, questions[0])
    suffixes, shift = encoder.suffixes(questions[:1]), prompt.untouched()
    before = align(prompt, prompt.row(suffixes, shift))
    (gradient,) = torch.autograd.grad(before, shift)
    with torch.no_grad():
        after = align(prompt, prompt.row(suffixes, shift - 1e-3 * gradient / gradient.norm()))
    assert after < before


def test_weight_zero_is_tpt(encoder: Encoder, questions: list[Question], settings: Make) -> None:
    part = questions[:3]
    ways = {
        name: settings(f"adapt={name}", *SMALL[1:], *more).adapt
        for name, more in {"tpt": [], "prompt_align": ["adapt.weight=0"]}.items()
    }
    tpt, none = (adapted_scores(encoder, part, way, None, questions[8:12])[0] for way in ways.values())
    full = adapted_scores(encoder, part, settings(*SMALL).adapt, None, questions[8:12])[0]
    assert torch.allclose(tpt, none, atol=1e-5)
    assert not torch.allclose(tpt, full, atol=1e-3)


def test_a_question_without_its_picture_has_nothing_to_align(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    blank = replace(questions[0], id="blank", image=None, image_sha256="")
    found, _ = adapted_scores(encoder, [blank], settings(*SMALL).adapt, None, questions[8:10])
    assert bool(torch.isfinite(found).all())


def test_without_training_pictures_it_is_refused(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    blank = replace(questions[0], image=None, image_sha256="")
    with pytest.raises(UserError, match=r"compares with training pictures, got none; give data.train_csv"):
        alignment(encoder, settings, [blank])
