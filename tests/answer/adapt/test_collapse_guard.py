"""The guard speaks up for a letter that took over, for distance from the trained model, and for no number."""

from collections.abc import Sequence

import pytest
import torch

from vqa.answer.adapt.method import EVERY, WINDOW, CollapseGuard


def says(*letters: int, sure: float = 2.0) -> torch.Tensor:
    logits = torch.zeros(len(letters), 4)
    logits[range(len(letters)), list(letters)] = sure
    return logits.log_softmax(1)


def heard(
    guard: CollapseGuard, log_p: torch.Tensor, frozen: torch.Tensor | None = None, trained: int = 0
) -> str | None:
    """What the guard says of a batch when the trained model answers everything with one letter."""
    return guard.alarm(range(len(log_p)), log_p, frozen, lambda asked: says(*[trained] * len(asked)))


def test_mixed_answers_are_no_alarm() -> None:
    assert heard(CollapseGuard(0.45, 0.5), says(*[0, 1, 2, 3] * 16)) is None


@pytest.mark.parametrize(
    ("ones", "alarm"), [(28, None), (29, "45% of the last 64 answers are 'b', 0% of the trained model's")]
)
def test_one_letter_grown_by_more_than_its_limit_is_an_alarm(ones: int, alarm: str | None) -> None:
    # 28 / 64 = 0.4375, 29 / 64 = 0.4531
    others = [(0, 2, 3)[i % 3] for i in range(WINDOW - ones)]
    assert heard(CollapseGuard(0.45, 0.5), says(*[1] * ones, *others)) == alarm


def test_a_file_sorted_by_letter_is_no_collapse() -> None:
    guard, asked = CollapseGuard(0.45, 0.5), list[int]()

    def trained(questions: Sequence[int]) -> torch.Tensor:
        asked.extend(questions)
        return says(*[1] * len(questions))

    for start in range(0, 3 * WINDOW, 16):
        batch = range(start, start + 16)
        assert guard.alarm(batch, says(*[1] * 16), None, trained) is None
    # each question in question is asked of the trained model once, and none before the window is full
    assert asked == list(range(3 * WINDOW))


def test_the_trained_model_is_not_asked_while_no_letter_stands_out() -> None:
    guard = CollapseGuard(0.45, 0.5)
    for _ in range(8):
        assert guard.alarm(range(16), says(*[0, 1, 2, 3] * 4), None, lambda asked: 1 / 0) is None  # type: ignore[arg-type,return-value]


def test_few_answers_are_not_judged_and_old_ones_forgotten() -> None:
    guard = CollapseGuard(0.45, 0.5)
    assert heard(guard, says(*[1] * (WINDOW - 1))) is None
    assert heard(guard, says(1)) == "100% of the last 64 answers are 'b', 0% of the trained model's"
    guard.clear()
    assert heard(guard, says(1)) is None
    assert heard(guard, says(*[0, 1, 2, 3] * 16)) is None


def test_distance_from_the_trained_model_is_an_alarm() -> None:
    guard = CollapseGuard(0.45, 0.5)
    # KL between softmax([2,0,0,0]) and softmax([0,2,0,0]): 2 (e^2 - 1) / (e^2 + 3) = 1.23
    assert heard(guard, says(0), says(1)) == "predictions are 1.23 nats (KL) from the trained model's"
    assert heard(guard, says(0), says(0)) is None


def test_no_number_is_an_alarm() -> None:
    assert heard(CollapseGuard(1.0, 9.0), says(0) * torch.nan) == "a prediction is not a number"


def test_the_trained_model_is_asked_for_every_eighth_batch() -> None:
    guard = CollapseGuard(0.45, 0.5)
    asked = []
    for _ in range(2 * EVERY + 1):
        asked.append(guard.wants_frozen())
        heard(guard, says(0, 1, 2, 3))
    assert [i for i, wanted in enumerate(asked) if wanted] == [0, EVERY, 2 * EVERY]
