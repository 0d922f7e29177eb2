"""A fit is decided before its first step: order, length, when it is evaluated, learning rate."""

from dataclasses import replace

import pytest

from tests.conftest import Make
from vqa.train.plan import Plan, batches, plan_fit


@pytest.fixture
def plan(settings: Make) -> Plan:
    """Two epochs over 48 questions in batches of 12: 8 steps."""
    return replace(plan_fit(settings(), 48), epochs=2, batch_size=12)


def test_another_seed_gives_another_order(plan: Plan) -> None:
    assert list(batches([4] * 48, plan)) == list(batches([4] * 48, plan))
    assert list(batches([4] * 48, plan)) != list(batches([4] * 48, replace(plan, seed=1)))


def test_every_question_is_seen_once_an_epoch_with_its_own_option_order(plan: Plan) -> None:
    seen = [
        (i, order)
        for chosen, orders in batches([4] * 48, plan)
        for i, order in zip(chosen, orders, strict=True)
    ]
    assert sorted(i for i, _ in seen[:48]) == sorted(i for i, _ in seen[48:]) == list(range(48))
    assert [i for i, _ in seen[:48]] != [i for i, _ in seen[48:]]
    assert {tuple(sorted(order)) for _, order in seen} == {(0, 1, 2, 3)}
    assert len({order for _, order in seen}) == 24  # all permutations occur among 96 draws


def test_the_order_does_not_depend_on_how_long_the_run_is(plan: Plan) -> None:
    longer = list(batches([4] * 48, replace(plan, epochs=3)))
    assert longer[:8] == list(batches([4] * 48, plan))


@pytest.mark.parametrize(("questions", "sizes"), [(24, [12, 12]), (25, [12, 12, 1]), (5, [5])])
def test_the_last_batch_of_an_epoch_may_be_smaller(plan: Plan, questions: int, sizes: list[int]) -> None:
    assert [len(chosen) for chosen, _ in batches([4] * questions, plan)] == sizes * 2
    assert plan.steps(questions) == len(sizes) * 2


@pytest.mark.parametrize(
    ("evaluations", "steps"), [(1, [8]), (2, [4, 8]), (3, [3, 5, 8]), (20, list(range(1, 9)))]
)
def test_evaluations_are_spread_evenly_and_end_at_the_end(
    plan: Plan, evaluations: int, steps: list[int]
) -> None:
    assert replace(plan, evaluations=evaluations).evaluation_steps(48) == steps


def test_a_micro_batch_is_never_larger_than_the_batch(settings: Make) -> None:
    made = settings("budget.batch_size=4", "budget.micro_batch_size=16")
    assert plan_fit(made, 48).micro_batch_size == 4


def test_the_learning_rate_of_short_trials_is_lowered_for_a_longer_run(settings: Make) -> None:
    tuned = ["budget.lr_tuned.subsample=600", "budget.lr_tuned.folds=3", "budget.lr_tuned.epochs=1"]
    final = ["budget=final", "budget.epochs=2", "optimizer.lr=3e-3"]
    made = settings(*final, *tuned)
    # 400 passes per fold against 2400 x 2: (1/12) ** 0.2 = 0.608
    assert plan_fit(made, 2400, pool=2400).lr == pytest.approx(3e-3 * (400 / 4800) ** 0.2)
    assert plan_fit(settings(*final), 2400, pool=2400).lr == 3e-3
    assert plan_fit(made, 100, pool=2400).lr == 3e-3  # never raised


@pytest.mark.parametrize(
    ("subsample", "pool", "passes"),
    [("600", 2400, 400), ("600", 90, 60), ("null", 2400, 1600)],
)
def test_passes_of_a_trial_count_one_fold_of_its_sample(
    settings: Make, subsample: str, pool: int, passes: int
) -> None:
    tuned = [f"budget.lr_tuned.subsample={subsample}", "budget.lr_tuned.folds=3", "budget.lr_tuned.epochs=1"]
    assert settings(*tuned).budget.lr_tuned.passes(pool) == passes
    assert settings().budget.lr_tuned.passes(pool) is None
