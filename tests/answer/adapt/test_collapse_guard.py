"""The guard speaks up for one letter everywhere, for distance from the trained model, and for no number."""

import pytest
import torch

from vqa.answer.adapt.method import EVERY, WINDOW, CollapseGuard


def says(*letters: int, sure: float = 2.0) -> torch.Tensor:
    logits = torch.zeros(len(letters), 4)
    logits[range(len(letters)), list(letters)] = sure
    return logits.log_softmax(1)


def test_mixed_answers_are_no_alarm() -> None:
    guard = CollapseGuard(0.7, 0.5)
    assert guard.alarm(says(*[0, 1, 2, 3] * 16), None) is None


@pytest.mark.parametrize(("ones", "alarm"), [(44, None), (45, "70% of the last 64 answers are 'b'")])
def test_one_letter_above_its_share_is_an_alarm(ones: int, alarm: str | None) -> None:
    # 44 / 64 = 0.6875, 45 / 64 = 0.7031
    guard = CollapseGuard(0.7, 0.5)
    assert guard.alarm(says(*[1] * ones, *[0] * (WINDOW - ones)), None) == alarm


def test_few_answers_are_not_judged_and_old_ones_forgotten() -> None:
    guard = CollapseGuard(0.7, 0.5)
    assert guard.alarm(says(*[1] * (WINDOW - 1)), None) is None
    assert guard.alarm(says(1), None) == "100% of the last 64 answers are 'b'"
    guard.clear()
    assert guard.alarm(says(1), None) is None
    assert guard.alarm(says(*[0, 1, 2, 3] * 16), None) is None


def test_distance_from_the_trained_model_is_an_alarm() -> None:
    guard = CollapseGuard(0.7, 0.5)
    # KL between softmax([2,0,0,0]) and softmax([0,2,0,0]): 2 (e^2 - 1) / (e^2 + 3) = 1.23
    assert guard.alarm(says(0), says(1)) == "predictions are 1.23 nats (KL) from the trained model's"
    assert guard.alarm(says(0), says(0)) is None


def test_no_number_is_an_alarm() -> None:
    assert CollapseGuard(1.0, 9.0).alarm(says(0) * torch.nan, None) == "a prediction is not a number"


def test_the_trained_model_is_asked_for_every_eighth_batch() -> None:
    guard = CollapseGuard(0.7, 0.5)
    asked = []
    for _ in range(2 * EVERY + 1):
        asked.append(guard.wants_frozen())
        guard.alarm(says(0, 1, 2, 3), None)
    assert [i for i, wanted in enumerate(asked) if wanted] == [0, EVERY, 2 * EVERY]
