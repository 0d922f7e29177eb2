"""Test-time prompt tuning: a step makes the views surer; order matters only where it should."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import Make
from vqa.answer.adapt.formulas import entropies, marginal_entropy, most_confident
from vqa.answer.adapt.loop import METHODS, adapted_scores
from vqa.answer.adapt.method import Adapting, Scores
from vqa.answer.adapt.prompt_methods import PromptTuning, SoftPrompt
from vqa.model.encode import Encoder
from vqa.model.packing import Suffix
from vqa.question import Question

TPT = ("adapt=tpt", "adapt.views=4", "adapt.keep_share=0.5", "adapt.batch_size=4")
ONLINE = ("adapt=prompt_tuning_online", *TPT[1:])


def adapting(encoder: Encoder, settings: Make, *overrides: str) -> Adapting:
    return Adapting(encoder, settings(*overrides).adapt)


def tuned(encoder: Encoder, settings: Make, questions: list[Question], *overrides: str) -> Scores:
    return adapted_scores(encoder, questions, settings(*overrides).adapt)


@pytest.mark.parametrize("way", [TPT, ONLINE], ids=["tpt", "online"])
def test_without_a_step_every_bit_is_the_frozen_models(
    way: tuple[str, ...], encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    found, mass = tuned(encoder, settings, questions[:4], *way, "adapt.lr=0", "adapt.steps=2")
    prompt = SoftPrompt(encoder, questions[0])
    log_p, log_mass = prompt.ask(encoder.suffixes(questions[:4]), prompt.untouched(), 4)
    assert torch.equal(found, log_p)
    assert torch.equal(mass, log_mass)


def test_a_step_lowers_the_marginal_entropy_of_the_kept_views(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    made = adapting(encoder, settings, *TPT, "adapt.lr=1e-4")
    method = PromptTuning(made, online=False)
    prompt = SoftPrompt(encoder, questions[0])
    lower = 0
    for question in questions[:6]:
        suffixes = method._views(question)
        before, _ = prompt.ask(suffixes, prompt.untouched(), 4)
        kept = most_confident(before, 0.5)
        _, shift = method._learn(prompt, suffixes)
        after, _ = prompt.ask(suffixes, shift, 4)
        lower += int(marginal_entropy(after[kept]) < marginal_entropy(before[kept]))
    assert lower == 6


def test_a_first_step_is_lr_in_the_direction_against_the_gradient(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    method = PromptTuning(adapting(encoder, settings, *TPT, "adapt.lr=0.01"), online=False)
    prompt = SoftPrompt(encoder, questions[0])
    views = method._views(questions[0])
    _, shift = method._learn(prompt, views)
    kept = [views[i] for i in most_confident(prompt.ask(views, prompt.untouched(), 4)[0], 0.5).tolist()]
    gradient = method._gradient(prompt, kept, prompt.untouched())
    # Kingma & Ba 2015: with bias correction Adam's first step is lr * g / (|g| + eps)
    assert torch.allclose(shift, -0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-3, atol=1e-6)


def test_answers_of_tpt_do_not_depend_on_order_or_batch(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    part = questions[:5]
    found, _ = tuned(encoder, settings, part, *TPT)
    moved, _ = tuned(encoder, settings, part[::-1], *TPT, "adapt.batch_size=2")
    assert torch.allclose(found, moved.flip(0), atol=1e-4)
    assert not torch.allclose(found, tuned(encoder, settings, part, *TPT, "adapt.lr=0")[0], atol=1e-3)


def test_an_online_prompt_remembers_and_forgets_on_reset(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    method = METHODS["prompt_tuning_online"](adapting(encoder, settings, *ONLINE, "adapt.lr=5e-3"))
    first, _ = method.scores(questions[:2])
    later, _ = method.scores(questions[:2])
    method.reset()
    again, _ = method.scores(questions[:2])
    assert not torch.allclose(first, later, atol=1e-4)
    assert torch.equal(first, again)


def test_an_online_prompt_that_runs_away_is_forgotten(
    encoder: Encoder, questions: list[Question], settings: Make, caplog: pytest.LogCaptureFixture
) -> None:
    made = adapting(encoder, settings, *ONLINE, "adapt.lr=5", "adapt.guard_kl=1e-3")
    method = METHODS["prompt_tuning_online"](made)
    found, _ = method.scores(questions[:4])
    prompt = SoftPrompt(encoder, questions[0])
    frozen, _ = prompt.ask(encoder.suffixes(questions[:4]), prompt.untouched(), 4)
    assert torch.equal(found, frozen)
    assert made.counts["guard_resets"] == 1
    assert "back to the written prompt" in caplog.text


class NoGradient(PromptTuning):
    """A loss whose gradient overflowed."""

    def _gradient(self, prompt: SoftPrompt, kept: Any, shift: torch.Tensor) -> torch.Tensor:
        return torch.full_like(shift, torch.inf)


def test_a_gradient_that_is_no_number_moves_nothing(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    made = adapting(encoder, settings, *TPT)
    found, _ = NoGradient(made, online=False).scores(questions[:2])
    frozen, _ = tuned(encoder, settings, questions[:2], *TPT, "adapt.lr=0")
    assert torch.equal(found, frozen)
    assert dict(made.counts) == {"not_finite": 2}


def test_only_the_kept_views_are_asked_with_a_gradient(
    encoder: Encoder, questions: list[Question], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    whole = PromptTuning._gradient

    def noted(self: PromptTuning, prompt: SoftPrompt, kept: list[Suffix], shift: torch.Tensor) -> Any:
        sizes.append(len(kept))
        return whole(self, prompt, kept, shift)

    monkeypatch.setattr(PromptTuning, "_gradient", noted)
    tuned(encoder, settings, questions[:1], "adapt=tpt", "adapt.views=64", "adapt.keep_share=0.1")
    assert sizes == [6]  # int(0.1 * 64)


def test_a_question_without_its_picture_is_answered(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    blank = replace(questions[0], id="blank", image=None, image_sha256="")
    found, _ = tuned(encoder, settings, [questions[1], blank], *TPT)
    assert bool(torch.isfinite(entropies(found)).all())
