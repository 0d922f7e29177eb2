"""The training loop: deterministic, independent of the micro-batch, resumable to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Make
from vqa.errors import DoesNotFitError, UserError
from vqa.model.adapter import adapter_state, attached
from vqa.model.base import Base
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.packing import PackedBatch
from vqa.question import Question
from vqa.train.checkpoint import Checkpoints
from vqa.train.fit import DivergedError, Evaluation, fit
from vqa.train.plan import Plan, plan_fit


def nothing(evaluation: Evaluation) -> None:
    """No evaluation."""


@pytest.fixture
def plan(settings: Make, questions: list[Question]) -> Plan:
    return replace(
        plan_fit(settings("optimizer.lr=2e-3"), len(questions)), epochs=2, evaluations=2, batch_size=12
    )


@pytest.fixture
def train(
    encoder: Encoder, questions: list[Question], settings: Make
) -> Callable[..., dict[str, torch.Tensor]]:
    """train(plan, ...) fits a fresh adapter and gives its weights."""

    def run(
        plan: Plan, on_evaluation: Callable[[Evaluation], None] = nothing, **more: Any
    ) -> dict[str, torch.Tensor]:
        lora = settings(*more.pop("overrides", [])).lora
        with attached(encoder.base, lora, seed=0) as model:
            fit(encoder, model, questions, plan, on_evaluation, **more)
            return {name: tensor.detach().clone() for name, tensor in adapter_state(model).items()}

    return run


Train = Callable[..., dict[str, torch.Tensor]]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_trial_after_others_equals_the_trial_alone_bit_for_bit(train: Train, plan: Plan) -> None:
    alone = train(plan)
    train(replace(plan, lr=5e-3), overrides=["lora.r=4"])
    assert same(alone, train(plan))


def test_accumulation_gives_the_result_of_the_big_batch(train: Train, plan: Plan) -> None:
    # same sums in another order: float32 rounding only, which Adam's first steps amplify a little
    whole, parts = train(replace(plan, micro_batch_size=12)), train(replace(plan, micro_batch_size=5))
    for name in whole:
        assert torch.linalg.norm(whole[name] - parts[name]) <= 2e-3 * torch.linalg.norm(whole[name]) + 1e-6


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_result(
    train: Train, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = train(replace(plan, micro_batch_size=6))

    def refuse_large(base: Base, batch: PackedBatch, *rest: Any) -> torch.Tensor:
        if len(batch.targets) > 6:
            raise torch.OutOfMemoryError("too large")
        return letter_logits(base, batch, *rest)

    monkeypatch.setattr("vqa.train.fit.letter_logits", refuse_large)
    monkeypatch.setattr("vqa.model.memory._held", {})
    assert same(small, train(replace(plan, micro_batch_size=12)))


def test_a_batch_that_no_cut_makes_fit_is_a_failure(
    train: Train, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def refuse(base: Base, batch: PackedBatch, *rest: Any) -> torch.Tensor:
        refused.append(len(batch.targets))
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr("vqa.train.fit.letter_logits", refuse)
    monkeypatch.setattr("vqa.model.memory._held", {})
    with pytest.raises(DoesNotFitError, match=r"one question at a time and .* does not fit .*=nf4"):
        train(plan)
    assert refused == [12, 12, 12, 6, 3, 2, 1]  # keep all, recompute the MLP, then layers in smaller pieces


class CutError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_run_equals_an_uninterrupted_one(
    train: Train, plan: Plan, tmp_path: Path, dropout: float
) -> None:
    overrides = [f"lora.lora_dropout={dropout}"]
    evaluations: list[Evaluation] = []
    whole = train(plan, evaluations.append, overrides=overrides)

    cut_evaluations: list[Evaluation] = []

    def cut(at: Evaluation) -> None:
        if at.index == 1:
            raise CutError
        cut_evaluations.append(at)

    keep = {"checkpoints": Checkpoints(tmp_path / "checkpoint.pt", every_steps=3), "overrides": overrides}
    with pytest.raises(CutError):
        train(plan, cut, **keep)  # dies at the end of the second epoch; the last checkpoint is older
    resumed = train(plan, cut_evaluations.append, **{**keep, "overrides": overrides})
    assert same(whole, resumed)
    assert cut_evaluations == evaluations


def test_a_diverged_loss_is_named(train: Train, plan: Plan) -> None:
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) at step \d+; lower optimizer.lr"):
        train(replace(plan, lr=1e30, warmup_ratio=0.0, max_grad_norm=1e30))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.weight_decay=-1", "optimizer: Invalid weight_decay value: -1"),
        ("scheduler.schedule.name=cosin", "scheduler.schedule: .*cosin.* is not a valid SchedulerType"),
    ],
)
def test_values_the_library_refuses_are_the_users_mistake(
    encoder: Encoder, questions: list[Question], settings: Make, override: str, message: str
) -> None:
    made = settings(override)
    with attached(encoder.base, made.lora, seed=0) as model, pytest.raises(UserError, match=message):
        fit(encoder, model, questions, plan_fit(made, len(questions)), nothing)
