"""Predictions: in order, sums of one, the same whatever the batch."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import Make
from vqa.answer.debias import cyclic, entropy
from vqa.answer.readout import answer
from vqa.answer.score import option_scores, score
from vqa.errors import UserError
from vqa.machine.device import prefetched
from vqa.model.base import Base
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.packing import PackedBatch
from vqa.model.vision.cache import VisionCache
from vqa.question import Question
from vqa.results.calibration import held_out_calibrated, tempered
from vqa.results.metrics import no_answer_rate

CUDA = torch.device("cuda")


def test_predictions_keep_the_order_and_do_not_depend_on_the_batch(
    encoder: Encoder, questions: list[Question]
) -> None:
    one = score(encoder, questions, 1)
    many = score(encoder, questions, 20)
    assert [p.id for p in one] == [p.id for p in many] == [q.id for q in questions]
    assert torch.allclose(torch.tensor([p.p for p in one]), torch.tensor([p.p for p in many]), atol=1e-5)
    assert [p.gold for p in one] == [q.answer for q in questions]


@pytest.mark.parametrize("memory", [1.0, 0.0002])  # GiB: of all pictures, of some
@pytest.mark.parametrize(("room", "refused"), [(8, 0), (3, 2)])  # of 8, then of 4
def test_pictures_looked_at_between_the_answers_change_nothing(
    memory: float,
    room: int,
    refused: int,
    encoder: Encoder,
    questions: list[Question],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def cramped(base: Base, batch: PackedBatch, *more: Any) -> torch.Tensor:
        if len(batch.targets) > room:
            tried.append(len(batch.targets))
            raise torch.OutOfMemoryError
        return letter_logits(base, batch, *more)

    cache = VisionCache(encoder.base.model, encoder.base.vision.processor, memory)
    monkeypatch.setattr(Encoder, "look", lambda self, questions: None)
    monkeypatch.setattr("vqa.answer.score.letter_logits", cramped)
    monkeypatch.setattr(
        "vqa.answer.score.prefetched", lambda make, jobs, device: prefetched(make, jobs, CUDA)
    )
    found = score(replace(encoder, base=replace(encoder.base, vision=cache)), questions, 8)
    monkeypatch.undo()
    expected = score(encoder, questions, 20)
    assert torch.allclose(
        torch.tensor([p.p for p in found]), torch.tensor([p.p for p in expected]), atol=1e-5
    )
    assert len(tried) == refused  # and never so many again
    pictures = len({q.image_sha256 for q in questions})
    assert (len(cache.kept) == cache.misses == pictures) == (memory == 1.0)
    assert cache.kept
    assert not cache.arriving


def test_packed_scores_are_those_of_the_plain_padded_forward(
    encoder: Encoder, questions: list[Question]
) -> None:
    base = encoder.base
    part = questions[:12]
    inputs = encoder.padded(part)
    with torch.no_grad():
        logits = base.model(**inputs, use_cache=False).logits[:, -1]
    letters = torch.tensor(base.letters[4].spellings)
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
    made = settings("inference=generate", "inference.max_new_tokens=2")
    found = answer(encoder, questions[:8], made)
    assert [p.answer for p in found] == [p.answer for p in score(encoder, questions[:8], 8)]


def silence(
    encoder: Encoder, questions: list[Question], max_new_tokens: int, read: object = None
) -> list[str | None]:
    return [None for _ in questions]


def test_text_without_a_letter_is_flagged_and_counted(
    encoder: Encoder,
    questions: list[Question],
    settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("vqa.answer.readout.generate_answers", silence)
    with caplog.at_level(logging.INFO):
        found = answer(encoder, questions[:4], settings("inference=generate"))
    assert {p.flag for p in found} == {"no_answer"}
    assert no_answer_rate(found) == 1
    assert "no answer for 4 of 4 questions" in caplog.text
    strict = settings("inference=generate", "inference.on_no_answer=error")
    with pytest.raises(UserError, match=r"no answer for 4 of 4 questions; use inference.on_no"):
        answer(encoder, questions[:4], strict)


def test_a_model_that_wants_to_say_something_else_is_reported(
    encoder: Encoder, questions: list[Question], settings: Make, caplog: pytest.LogCaptureFixture
) -> None:
    answer(encoder, questions[:4], settings("inference.min_option_mass=1.1"))
    assert "the letters together get only" in caplog.text


def test_cyclic_orders_equal_four_separate_scores(encoder: Encoder, questions: list[Question]) -> None:
    part = questions[:7]
    found, _ = option_scores(encoder, part, 3, cyclic(4))
    for k, order in enumerate(cyclic(4)):
        alone, _ = option_scores(encoder, part, 7, [order])
        assert torch.allclose(found[:, k], alone[:, 0], atol=1e-4)


@pytest.mark.parametrize("name", ["cyclic", "pride", "batch_calibration", "contextual"])
def test_every_readout_gives_probabilities_in_order(
    name: str, encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    found, again = (
        answer(
            encoder,
            questions[:12],
            settings(f"inference={name}", f"budget.eval_batch_size={n}"),
        )
        for n in (5, 12)
    )
    assert [p.id for p in found] == [q.id for q in questions[:12]]
    assert torch.allclose(torch.tensor([p.p for p in found]), torch.tensor([p.p for p in again]), atol=1e-4)
    plain = score(encoder, questions[:12], 12)
    assert not torch.allclose(torch.tensor([p.p for p in found]), torch.tensor([p.p for p in plain]))


def test_cyclic_answers_do_not_depend_on_where_the_options_stand(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    question = questions[0]
    a, b, c, d = question.choices
    moved = replace(question, choices=(b, c, d, a), answer=None)
    first, second = answer(encoder, [question, moved], settings("inference=cyclic"))
    assert (*first.p[1:], first.p[0]) == pytest.approx(second.p, abs=1e-5)


def say_a(
    encoder: Encoder, questions: list[Question], max_new_tokens: int, read: object = None
) -> list[str | None]:
    assert "step by step" in encoder.prompt.user
    assert max_new_tokens == 9
    return ["a" for _ in questions]


def test_only_unsure_questions_are_sent_to_the_reasoning_prompt(
    encoder: Encoder, questions: list[Question], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.answer.readout.generate_answers", say_a)
    direct = score(encoder, questions, 16)
    spread = entropy(torch.tensor([p.p for p in direct], dtype=torch.float64).log())
    low, high = spread.sort().values[23:25].tolist()
    limit = (low + high) / 2
    more = [f"prompt.entropy_threshold={limit}", "inference.reasoning_tokens=9", "inference.temperature=1"]
    made = settings("prompt=auto", *more)
    facts: dict[str, Any] = {}
    asking = replace(encoder, prompt=made.prompt)
    found = answer(asking, questions, made, facts)
    unsure = spread > limit
    for p, before, sent in zip(found, direct, unsure.tolist(), strict=True):
        assert p.answer == ("a" if sent else before.answer)
    gold = [q.answer for q, sent in zip(questions, unsure.tolist(), strict=True) if sent]
    assert facts["reasoning"]["share"] == float(unsure.double().mean())
    assert facts["reasoning"]["accuracy"] == gold.count("a") / len(gold)
    assert facts["reasoning"]["no_answer"] == 0


def test_no_question_is_unsure_and_nothing_is_divided_by_zero(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    made = settings("prompt=auto", "prompt.entropy_threshold=2")
    facts: dict[str, Any] = {}
    asking = replace(encoder, prompt=made.prompt)
    assert answer(asking, questions[:4], made, facts) == score(encoder, questions[:4], 4)
    assert facts["reasoning"]["share"] == 0


@pytest.mark.parametrize("temperature", [0.2, 6.0])
def test_the_threshold_is_of_calibrated_probabilities(
    encoder: Encoder,
    questions: list[Question],
    settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
) -> None:
    monkeypatch.setattr("vqa.answer.readout.generate_answers", say_a)
    direct = score(encoder, questions, 16)
    made = settings("prompt=auto", "prompt.entropy_threshold=0.5", "inference.reasoning_tokens=9")
    asking = replace(encoder, prompt=made.prompt)
    facts: dict[str, Any] = {}
    found = answer(asking, questions, made, facts, temperature=temperature)
    calibrated = torch.tensor([p.p for p in tempered(direct, temperature)], dtype=torch.float64)
    unsure = entropy(calibrated.log()) > 0.5
    own = entropy(torch.tensor([p.p for p in direct], dtype=torch.float64).log()) > 0.5
    assert facts["reasoning"]["share"] == float(unsure.double().mean()) != float(own.double().mean())
    assert [p.p for p in found] == [p.p for p in direct]  # what is returned is the model's own


def test_on_held_out_questions_each_threshold_is_fitted_on_the_others(
    encoder: Encoder, questions: list[Question], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.answer.readout.generate_answers", say_a)
    made = settings("prompt=auto", "prompt.entropy_threshold=0.5", "inference.reasoning_tokens=9")
    asking = replace(encoder, prompt=made.prompt)
    facts: dict[str, Any] = {}
    answer(asking, questions, made, facts)
    rows = held_out_calibrated(score(encoder, questions, 16), "auto")
    unsure = entropy(torch.tensor([p.p for p in rows], dtype=torch.float64).log()) > 0.5
    assert facts["reasoning"]["share"] == float(unsure.double().mean())
