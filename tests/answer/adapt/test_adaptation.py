"""Adapting while answering: nothing stays behind, lr=0 is the frozen model, order matters only online."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import Adapt, Make
from vqa.answer.adapt.gradient import read_batch
from vqa.answer.adapt.loop import METHODS, adapted_scores, weight_digest
from vqa.answer.adapt.method import Adapting, Scores
from vqa.answer.readout import answer
from vqa.answer.score import score
from vqa.errors import UserError
from vqa.question import Question

WEIGHT_METHODS = ("tent", "sar", "consistency", "lora_align")
CASES = [("tent", "lora"), ("tent", "norm"), ("sar", "norm"), ("consistency", "lora"), ("lora_align", "lora")]


def adapted(made: Adapting, questions: Sequence[Question], facts: dict[str, Any] | None = None) -> Scores:
    return adapted_scores(made.encoder, questions, made.settings, facts, questions)


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_a_learning_rate_of_zero_is_the_frozen_model_bit_for_bit(
    adapting: Adapt, questions: list[Question], method: str, parameters: str
) -> None:
    extra = ["adapt.lr=0", "adapt.norm_lr=0", *(["adapt.views=2"] if method == "consistency" else [])]
    made = adapting(f"adapt={method}", f"adapt.parameters={parameters}", "adapt.batch_size=4", *extra)
    log_p, log_mass = adapted(made, questions[:8])
    frozen = [read_batch(made.encoder, questions[i : i + 4]).scores for i in (0, 4)]
    if method == "consistency":  # the pictures lie in a row with their views: other roundings
        assert torch.allclose(log_p, torch.cat([s[0] for s in frozen]), atol=1e-5)
    else:
        assert torch.equal(log_p, torch.cat([s[0] for s in frozen]))
        assert torch.equal(log_mass, torch.cat([s[1] for s in frozen]))


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_the_model_is_what_it_was_afterwards(
    adapting: Adapt, questions: list[Question], method: str, parameters: str
) -> None:
    extra = ["adapt.views=2"] if method == "consistency" else ["adapt.entropy_limit=1"]
    made = adapting(f"adapt={method}", "adapt.lr=1e-2", f"adapt.parameters={parameters}", *extra)
    model = made.encoder.base.model
    digest, flags = weight_digest(model), [p.requires_grad for p in model.parameters()]
    before = score(made.encoder, questions[:8], 8)
    facts: dict[str, Any] = {}
    adapted(replace(made, settings=replace(made.settings, batch_size=4)), questions[:8], facts)
    assert facts["adapt"]["steps"] == 2
    assert facts["adapt"]["seconds_per_row"] > 0
    assert weight_digest(model) == digest
    assert [p.requires_grad for p in model.parameters()] == flags
    assert score(made.encoder, questions[:8], 8) == before


def test_what_was_learnt_helps_the_next_batch_only_online(adapting: Adapt, questions: list[Question]) -> None:
    made = adapting("adapt=tent", "adapt.batch_size=4", "adapt.lr=1e-3")
    online, _ = adapted(made, questions[:8])
    frozen, _ = adapted(replace(made, settings=replace(made.settings, lr=0.0)), questions[:8])
    assert torch.equal(online[:4], frozen[:4])
    assert not torch.equal(online[4:], frozen[4:])


def test_episodic_answers_do_not_depend_on_the_order(adapting: Adapt, questions: list[Question]) -> None:
    made = adapting("adapt=tent", "adapt.batch_size=1", "adapt.lr=1e-3", "adapt.episodic=true")
    forward, _ = adapted(made, questions[:5])
    backward, _ = adapted(made, questions[4::-1])
    assert torch.equal(forward, backward.flip(0))
    frozen = read_batch(made.encoder, questions[:1])
    assert not torch.equal(forward[:1], frozen.log_p)


def test_a_run_away_is_noticed_and_taken_back(
    adapting: Adapt, questions: list[Question], caplog: pytest.LogCaptureFixture
) -> None:
    made = adapting(
        "adapt=tent", "adapt.batch_size=4", "adapt.lr=10", "adapt.episodic=true", "adapt.guard_kl=0.01"
    )
    facts: dict[str, Any] = {}
    with caplog.at_level(logging.WARNING):
        log_p, _ = adapted(made, questions[:12], facts)
    frozen = torch.cat([read_batch(made.encoder, questions[i : i + 4]).log_p for i in (0, 4, 8)])
    assert facts["adapt"]["guard_resets"] == 3
    assert torch.equal(log_p, frozen)  # the trained weights answer
    assert caplog.text.count("back to the trained weights") == 1


class Careless:
    """A method that leaves a changed weight behind."""

    def __init__(self, made: Adapting) -> None:
        self.made = made

    def scores(self, questions: Sequence[Question]) -> Scores:
        weight = self.made.encoder.base.model.lm_head.weight
        weight.data[0, 0] += 1
        return read_batch(self.made.encoder, questions).scores

    def reset(self) -> None:
        pass


def test_a_changed_base_is_an_error(
    adapting: Adapt, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "tent", Careless)
    made = adapting("adapt=tent")
    weight = made.encoder.base.model.lm_head.weight
    kept = weight[0, 0].item()
    with pytest.raises(RuntimeError, match="adapt=tent left changed weights behind"):
        adapted(made, questions[:2])
    weight.data[0, 0] = kept


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_answers_come_in_order_with_what_adaptation_did(
    adapting: Adapt, questions: list[Question], settings: Make, method: str
) -> None:
    made = settings(f"adapt={method}", "adapt.batch_size=4", "adapt.views=2")
    ready, facts = adapting(f"adapt={method}"), dict[str, Any]()
    found = answer(ready.encoder, questions[:10], made, facts, questions[:8])
    assert [p.id for p in found] == [q.id for q in questions[:10]]
    assert all(sum(p.p) == pytest.approx(1) for p in found)
    assert facts["adapt"]["method"] == method
    assert facts["adapt"]["filtered"] <= 10
    frozen = score(ready.encoder, questions[:10], 10)
    assert facts["adapt"]["frozen_accuracy"] == sum(p.answer == p.gold for p in frozen) / 10


def test_unlabelled_questions_are_answered_too(
    adapting: Adapt, questions: list[Question], settings: Make
) -> None:
    unlabelled = [replace(q, answer=None) for q in questions[:4]]
    ready, facts = adapting("adapt=tent"), dict[str, Any]()
    found = answer(ready.encoder, unlabelled, settings("adapt=tent"), facts)
    assert len(found) == 4
    assert "frozen_accuracy" not in facts["adapt"]


def test_an_adapter_is_needed_to_train_one(encoder: Any, questions: list[Question], settings: Make) -> None:
    with pytest.raises(UserError, match=r"adapt.parameters must be norm without an adapter"):
        answer(encoder, questions[:2], settings("adapt=tent"))
