"""Predictions: in order, sums of one, the same whatever the batch."""

import logging
from dataclasses import replace

import pytest
import torch
from conftest import Make

from vqa.encode import Encoder
from vqa.errors import UserError
from vqa.question import Question
from vqa.scoring import answer, score


def test_predictions_keep_the_order_and_do_not_depend_on_the_batch(
    encoder: Encoder, questions: list[Question]
) -> None:
    one = score(encoder, questions, 1)
    many = score(encoder, questions, 20)
    assert [p.id for p in one] == [p.id for p in many] == [q.id for q in questions]
    assert torch.allclose(torch.tensor([p.p for p in one]), torch.tensor([p.p for p in many]), atol=1e-5)
    assert [p.gold for p in one] == [q.answer for q in questions]


def test_packed_scores_are_those_of_the_plain_padded_forward(
    encoder: Encoder, questions: list[Question]
) -> None:
    base = encoder.base
    part = questions[:12]
    inputs = encoder.padded(part)
    with torch.no_grad():
        logits = base.model(**inputs, use_cache=False).logits[:, -1]
    letters = torch.tensor(base.letters.spellings)
    expected = torch.logsumexp(logits[:, letters], dim=1).softmax(1)
    found = torch.tensor([p.p for p in score(encoder, part, 12)])
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_question_without_its_picture_is_answered_and_keeps_its_flag(
    encoder: Encoder, questions: list[Question]
) -> None:
    blank = replace(questions[0], id="blank", image=None, image_sha256="", flag="image_missing")
    found = score(encoder, [blank, *questions[:3]], 4)
    assert found[0].flag == "image_missing"
    assert found[0].answer in set("abcd")
    alone = score(encoder, questions[:3], 4)
    assert torch.allclose(
        torch.tensor([p.p for p in found[1:]]), torch.tensor([p.p for p in alone]), atol=1e-5
    )


def test_generated_answers_stand_beside_the_letter_probabilities(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    inference = settings("inference=generate", "inference.max_new_tokens=2").inference
    found = answer(encoder, encoder.base.model, questions[:8], 8, inference)
    assert [p.answer for p in found] == [p.answer for p in score(encoder, questions[:8], 8)]


def silence(
    encoder: Encoder, model: object, questions: list[Question], max_new_tokens: int
) -> list[str | None]:
    return [None for _ in questions]


def test_text_without_a_letter_is_flagged_and_counted(
    encoder: Encoder,
    questions: list[Question],
    settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("vqa.scoring.generate_answers", silence)
    with caplog.at_level(logging.INFO):
        found = answer(
            encoder, encoder.base.model, questions[:4], 4, settings("inference=generate").inference
        )
    assert {p.flag for p in found} == {"no_answer"}
    assert "no answer for 4 of 4 questions" in caplog.text
    strict = settings("inference=generate", "inference.on_no_answer=error").inference
    with pytest.raises(UserError, match=r"no answer for 4 of 4 questions; use inference.on_no"):
        answer(encoder, encoder.base.model, questions[:4], 4, strict)


def test_a_model_that_wants_to_say_something_else_is_reported(
    encoder: Encoder, questions: list[Question], settings: Make, caplog: pytest.LogCaptureFixture
) -> None:
    inference = settings("inference.min_option_mass=1.1").inference
    answer(encoder, encoder.base.model, questions[:4], 4, inference)
    assert "the four letters together get only" in caplog.text
