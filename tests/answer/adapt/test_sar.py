"""SAR learns from sure questions at the worst point nearby, and gives up when all is sure."""

import math

import pytest
import torch

from tests.conftest import Adapt
from vqa.answer.adapt.formulas import entropies
from vqa.answer.adapt.gradient import AdaptedWeights, letter_gradient, read_batch, worst_direction
from vqa.answer.adapt.weight_methods import Sar, WeightMethod
from vqa.question import Question

LN4 = math.log(4)


def limit_between(spread: torch.Tensor, below: int) -> float:
    """adapt.entropy_limit that lets the `below` surest questions through."""
    low, high = spread.sort().values[below - 1 : below + 1].tolist()
    return float(low + high) / 2 / LN4


def test_the_step_is_the_gradient_of_the_sure_ones_at_the_moved_weights(
    adapting: Adapt, questions: list[Question]
) -> None:
    part = questions[:8]
    limit = limit_between(entropies(read_batch(adapting("adapt=sar").encoder, part).log_p), 5)
    made = adapting("adapt=sar", f"adapt.entropy_limit={limit}", "adapt.lr=0.1", "adapt.reset_below=null")
    weights = AdaptedWeights(made.encoder.base.model, made.settings)
    rule = Sar(made, weights)
    start = [p.detach().clone() for p in weights.parameters]
    rule.step(part)
    found = [(old - p.detach()) / 0.1 for old, p in zip(start, weights.parameters, strict=True)]
    weights.reset()

    spread = entropies(read_batch(made.encoder, part).log_p)
    sure = [q for q, keep in zip(part, (spread < limit * LN4).tolist(), strict=True) if keep]
    assert (len(sure), made.counts["filtered"], made.counts["steps"]) == (5, 3, 1)
    _, first = letter_gradient(made.encoder, weights, sure, lambda o: entropies(o.log_p).mean())
    assert first is not None
    with weights.moved(worst_direction(first, 0.05)):
        moved = entropies(read_batch(made.encoder, sure).log_p)
        still = [q for q, keep in zip(sure, (moved < limit * LN4).tolist(), strict=True) if keep]
        _, expected = letter_gradient(made.encoder, weights, still, lambda o: entropies(o.log_p).mean())
    assert expected is not None
    one, other = (torch.cat([g.flatten() for g in grads]) for grads in (found, expected))
    assert torch.linalg.norm(one - other) <= 1e-3 * torch.linalg.norm(other)
    assert rule.average == pytest.approx(moved[moved < limit * LN4].mean().item(), rel=1e-4)


def test_no_sure_question_is_no_step(adapting: Adapt, questions: list[Question]) -> None:
    made = adapting("adapt=sar", "adapt.entropy_limit=1e-6", "adapt.lr=0.1")
    method = WeightMethod(made, Sar)
    expected = read_batch(made.encoder, questions[:4])
    for _ in range(2):
        assert torch.equal(method.scores(questions[:4])[0], expected.log_p)
    assert (made.counts["steps"], made.counts["filtered"], made.counts["not_finite"]) == (0, 8, 0)


def test_nobody_sure_after_the_move_is_no_step(adapting: Adapt, questions: list[Question]) -> None:
    spread = entropies(read_batch(adapting("adapt=sar").encoder, questions[:8]).log_p)
    limit = limit_between(spread, 1)
    made = adapting("adapt=sar", f"adapt.entropy_limit={limit}", "adapt.rho=1000")
    method = WeightMethod(made, Sar)
    assert torch.isfinite(method.scores(questions[:8])[0]).all()
    assert made.counts["filtered"] == 7
    method.reset()


def log_p_of_entropy(wanted: float) -> torch.Tensor:
    """(1, C) log probabilities of that entropy, by bisection on the first logit."""
    low, high = 0.0, 50.0
    for _ in range(80):
        logit = (low + high) / 2
        log_p = torch.tensor([[logit, 0, 0, 0]], dtype=torch.float64).log_softmax(1)
        low, high = (logit, high) if entropies(log_p).item() > wanted else (low, logit)
    return log_p


def test_the_moving_average_far_below_the_trained_models_brings_the_start_back(
    adapting: Adapt, caplog: pytest.LogCaptureFixture
) -> None:
    made = adapting("adapt=sar", "adapt.lr=0.1")
    weights = AdaptedWeights(made.encoder.base.model, made.settings)
    rule = Sar(made, weights)
    weights.step([torch.ones_like(p) for p in weights.parameters])
    rule.note_frozen(log_p_of_entropy(0.2))  # x 0.2: the limit is 0.04
    rule._recover(log_p_of_entropy(0.05))
    assert rule.average == pytest.approx(0.05)
    rule._recover(log_p_of_entropy(0.01))
    assert rule.average == pytest.approx(0.9 * 0.05 + 0.1 * 0.01)  # 0.046
    assert made.counts["resets"] == 0
    rule._recover(log_p_of_entropy(0.001))
    rule._recover(log_p_of_entropy(0.001))  # 0.0415, then 0.03745
    assert (made.counts["resets"], rule.average) == (1, None)
    assert all(torch.equal(p, s) for p, s in zip(weights.parameters, weights.source, strict=True))
    assert "below adapt.reset_below=0.2 of the trained model's 0.2000" in caplog.text
    rule._recover(log_p_of_entropy(0.001))
    assert made.counts["resets"] == 2
    assert caplog.text.count("reset_below") == 1


def test_a_model_that_is_sure_from_the_start_is_not_reset(adapting: Adapt) -> None:
    made = adapting("adapt=sar")
    rule = Sar(made, AdaptedWeights(made.encoder.base.model, made.settings))
    rule.note_frozen(log_p_of_entropy(0.03))  # below any limit in nats that was meant for others
    for _ in range(32):
        rule._recover(log_p_of_entropy(0.03))
    assert made.counts["resets"] == 0


def test_nothing_to_compare_with_is_no_reset(adapting: Adapt) -> None:
    made = adapting("adapt=sar")
    rule = Sar(made, AdaptedWeights(made.encoder.base.model, made.settings))
    rule.note_frozen(torch.full((4, 4), 0.25).log())  # nobody is sure
    assert rule.of_trained is None
    rule._recover(log_p_of_entropy(0.001))
    assert made.counts["resets"] == 0


def test_the_trained_models_entropy_is_known_from_the_first_batch(
    adapting: Adapt, questions: list[Question]
) -> None:
    made = adapting("adapt=sar", "adapt.lr=0", "adapt.entropy_limit=0.9")
    method = WeightMethod(made, Sar)
    method.scores(questions[:8])
    assert isinstance(method.rule, Sar)
    spread = entropies(read_batch(made.encoder, questions[:8]).log_p)
    assert method.rule.of_trained == pytest.approx(spread[spread < 0.9 * LN4].mean().item(), rel=1e-5)
    method.reset()
