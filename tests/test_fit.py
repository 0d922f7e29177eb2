"""The training loop: deterministic, independent of the micro-batch, resumable to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Make

from vqa.adapter import adapter_state, attached
from vqa.encode import Encoder
from vqa.fit import DivergedError, Moment, fit
from vqa.plan import Plan, batches, plan_fit
from vqa.question import Question


def nothing(moment: Moment) -> None:
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
        plan: Plan, on_evaluation: Callable[[Moment], None] = nothing, **more: Any
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


def test_another_seed_gives_another_order(plan: Plan) -> None:
    assert list(batches(48, plan)) == list(batches(48, plan))
    assert list(batches(48, plan)) != list(batches(48, replace(plan, seed=1)))


def test_every_question_is_seen_once_an_epoch_with_its_own_option_order(plan: Plan) -> None:
    seen = [
        (i, order) for chosen, orders in batches(48, plan) for i, order in zip(chosen, orders, strict=True)
    ]
    assert sorted(i for i, _ in seen[:48]) == sorted(i for i, _ in seen[48:]) == list(range(48))
    assert {tuple(sorted(order)) for _, order in seen} == {(0, 1, 2, 3)}
    assert len({order for _, order in seen}) == 24  # all permutations occur among 96 draws


def test_accumulation_gives_the_result_of_the_big_batch(train: Train, plan: Plan) -> None:
    # same sums in another order: float32 rounding only, which Adam's first steps amplify a little
    whole, parts = train(replace(plan, micro_batch_size=12)), train(replace(plan, micro_batch_size=5))
    for name in whole:
        assert torch.linalg.norm(whole[name] - parts[name]) <= 2e-3 * torch.linalg.norm(whole[name]) + 1e-6


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_result(
    train: Train, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = train(replace(plan, micro_batch_size=6))
    original = Encoder.batch

    def refuse_large(self: Encoder, questions: Any, orders: Any = None) -> Any:
        if len(questions) > 6:
            raise torch.OutOfMemoryError("too large")
        return original(self, questions, orders)

    monkeypatch.setattr(Encoder, "batch", refuse_large)
    assert same(small, train(replace(plan, micro_batch_size=12)))


class CutError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_run_equals_an_uninterrupted_one(
    train: Train, plan: Plan, tmp_path: Path, dropout: float
) -> None:
    overrides = [f"lora.lora_dropout={dropout}"]
    moments: list[Moment] = []
    whole = train(plan, moments.append, overrides=overrides)

    cut_moments: list[Moment] = []

    def cut(moment: Moment) -> None:
        if moment.index == 1:
            raise CutError
        cut_moments.append(moment)

    keep = {"checkpoint": tmp_path / "checkpoint.pt", "checkpoint_steps": 3, "overrides": overrides}
    with pytest.raises(CutError):
        train(plan, cut, **keep)  # dies at the end of the second epoch; the last checkpoint is older
    resumed = train(plan, cut_moments.append, **{**keep, "overrides": overrides})
    assert same(whole, resumed)
    assert cut_moments == moments


def test_a_diverged_loss_is_named(train: Train, plan: Plan) -> None:
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) at step \d+; lower optimizer.lr"):
        train(replace(plan, lr=1e30, warmup_ratio=0.0, max_grad_norm=1e30))


@pytest.mark.parametrize(
    ("evaluations", "steps"), [(1, [8]), (2, [4, 8]), (3, [3, 5, 8]), (20, list(range(1, 9)))]
)
def test_evaluations_are_spread_evenly_and_end_at_the_end(
    plan: Plan, evaluations: int, steps: list[int]
) -> None:
    assert replace(plan, evaluations=evaluations).evaluation_steps(48) == steps


def test_the_learning_rate_of_short_trials_is_lowered_for_a_longer_run(settings: Make) -> None:
    tuned = ["budget.lr_tuned.subsample=600", "budget.lr_tuned.folds=3", "budget.lr_tuned.epochs=1"]
    made = settings("budget=final", "optimizer.lr=3e-3", *tuned)
    # 400 passes per fold against 2400 x 2: (1/12) ** 0.32 = 0.4515
    assert plan_fit(made, 2400, pool=2400).lr == pytest.approx(3e-3 * (400 / 4800) ** 0.32)
    assert plan_fit(settings("budget=final", "optimizer.lr=3e-3"), 2400, pool=2400).lr == 3e-3
    assert plan_fit(made, 100, pool=2400).lr == 3e-3  # never raised
