"""A soft prompt that is untouched is the frozen model; its gradient is that of transformers' own forward."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import Make
from tests.helpers.soft_prompts import CPU, LONG, SHAPES, check_distance_of_gradient, made, reference, shifted
from tests.helpers.tiny_adapters import adapted, exactly
from tests.helpers.tiny_models import FAMILIES, IMAGE, PAD, make_suffixes
from vqa.answer.adapt.prompt_methods import TOKENS, SoftPrompt
from vqa.answer.score import option_scores
from vqa.model.decoder import Recompute, SoftTokens, answer_logits, early_states
from vqa.model.encode import Encoder
from vqa.model.packing import pack, pad
from vqa.question import Question


@exactly
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tokens", "outside"), [(4, False), (6, False), (40, False), (40, True)])
@pytest.mark.parametrize("recompute", ["nothing", "layer"])
def test_gradient_is_that_of_the_padded_batch(
    family: str,
    tokens: int,
    outside: bool,
    recompute: Recompute,
    b_size: float,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = adapted(family, 0, b_size, dtype)
    model.requires_grad_(False)
    suffixes, prefix = make_suffixes(model, SHAPES), LONG[:tokens]
    shift = shifted(suffixes).detach().to(dtype).requires_grad_()
    logits = reference(model, prefix, suffixes, shift)
    (expected,) = torch.autograd.grad(logits.square().sum(), shift)
    soft = made(model, prefix, outside)
    found = answer_logits(model, soft.row(suffixes, shift), soft.known, recompute)
    (gradient,) = torch.autograd.grad(found.square().sum(), shift)
    assert torch.allclose(found, logits, rtol=0, atol=tolerance)
    assert torch.linalg.norm(gradient - expected) <= tolerance * torch.linalg.norm(expected)


def test_a_bfloat16_gradient_is_as_near_to_float32_as_transformers_own() -> None:
    check_distance_of_gradient(CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_could_be_trained_get_no_gradient(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    shift = shifted(suffixes)
    soft = made(model, LONG[:6], False)
    torch.autograd.grad(answer_logits(model, soft.row(suffixes, shift)).sum(), shift)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shift_for_all_collects_the_gradients_of_each(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    soft = made(model, LONG[:6], False)
    one = shifted(suffixes)[0].detach().requires_grad_()
    each = one.detach().expand(len(suffixes), -1, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(answer_logits(model, soft.row(suffixes, one)).square().sum(), one)
    (parts,) = torch.autograd.grad(answer_logits(model, soft.row(suffixes, each)).square().sum(), each)
    assert torch.allclose(found, parts.sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untouched_prompt_changes_no_bit(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    soft = made(model, LONG, True)
    row = soft.row(suffixes, torch.zeros(TOKENS, 48))
    with torch.no_grad():
        found = answer_logits(model, row, soft.known)
        assert torch.equal(found, answer_logits(model, replace(row, soft=None), soft.known))


@pytest.mark.parametrize("family", FAMILIES)
def test_early_states_are_those_that_transformers_passes_on(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    plain = pad(LONG, suffixes, IMAGE, PAD, CPU)
    with torch.no_grad():
        states = model(**plain, use_cache=False, output_hidden_states=True).hidden_states
        row = pack(LONG, suffixes, IMAGE, PAD, CPU).row
        found = early_states(model, row, 2)
    visual = plain["input_ids"] == IMAGE
    taps = row.features.deepstack if row.features else ()
    assert len(found) == 2
    for i, state in enumerate(found):
        # transformers notes a layer's output before DeepStack is added to it
        expected = states[i + 1][visual] + (taps[i] if i < len(taps) else 0)
        assert torch.allclose(state, expected, atol=1e-5)


def test_only_a_prompt_before_the_picture_moves_visual_tokens() -> None:
    model = adapted("qwen3_vl")
    suffixes = make_suffixes(model, SHAPES)
    soft = made(model, LONG, True)
    row = soft.row(suffixes, shifted(suffixes))
    assert row.answers is not None
    behind = SoftTokens(row.answers, 0.02 * torch.ones(len(suffixes), 48))
    with torch.no_grad():
        still, moved, after = (
            early_states(model, replace(row, soft=way), 2, soft.known)[-1] for way in (None, row.soft, behind)
        )
    assert torch.equal(still, after)
    assert (still - moved).abs().max() > 1e-4


@pytest.mark.parametrize("prompt", ["direct_en", "fewshot_ko"])
def test_answers_of_an_untouched_prompt_are_the_frozen_ones(
    prompt: str, encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    asking = replace(encoder, prompt=settings(f"prompt={prompt}").prompt)
    part = questions[:6]
    soft = SoftPrompt(asking, part[0])
    assert (soft.known is not None) == (prompt == "fewshot_ko")
    log_p, log_mass = soft.ask(asking.suffixes(part), soft.untouched(), 4)
    expected, mass = option_scores(asking, part, 6)
    assert torch.allclose(log_p.double(), expected[:, 0], atol=1e-5)
    assert torch.allclose(log_mass, mass[:, 0], atol=1e-5)


class SmallDevice(SoftPrompt):
    """Has room for two questions."""

    def row(self, suffixes: Any, shift: torch.Tensor) -> Any:
        if len(suffixes) > 2:
            raise torch.OutOfMemoryError
        return super().row(suffixes, shift)


def test_what_does_not_fit_is_asked_in_halves(encoder: Encoder, questions: list[Question]) -> None:
    suffixes = encoder.suffixes(questions[:7])
    plain, small = SoftPrompt(encoder, questions[0]), SmallDevice(encoder, questions[0])
    shift = torch.randn(7, *plain.untouched().shape, generator=torch.Generator().manual_seed(0)) * 0.1
    expected, found = plain.ask(suffixes, shift, 7)[0], small.ask(suffixes, shift, 7)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - plain.ask(suffixes, plain.untouched(), 7)[0]).abs().max() > 1e-3
