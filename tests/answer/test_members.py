"""Stored adapters answer alone or together, calibrated with the temperature that lies beside them."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Make
from vqa.answer.members import (
    answer_with_members,
    asked_one_by_one,
    base_temperature,
    loaded_members,
    read_out,
    stored_temperature,
)
from vqa.answer.score import score
from vqa.answer.weighing import average
from vqa.errors import UserError
from vqa.model.adapter import attached, loaded, save_adapter
from vqa.model.base import Base
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.results.calibration import tempered, write_calibration
from vqa.results.folder import member_folder, member_folders
from vqa.results.predictions import Prediction


@pytest.fixture
def folder(encoder: Encoder, settings: Make, tmp_path: Path) -> Path:
    """Two random members and a temperature."""
    made = settings()
    for number in range(2):
        with attached(encoder.base, made.lora | {"init_lora_weights": False}, seed=3 + number) as model:
            save_adapter(model, member_folder(tmp_path, number), encoder.base)
    content = {"temperature": 2.0, "base_temperature": 4.4, "n": 60, "read_out": read_out(made), "members": 2}
    write_calibration(tmp_path, content)
    return tmp_path


def apart(encoder: Encoder, folder: Path, questions: list[Question]) -> list[list[Prediction]]:
    """Each member's answers, loaded alone."""
    found = []
    for member in member_folders(folder):
        with loaded(encoder.base, member):
            found.append(score(encoder, questions, 16))
    return found


def test_members_answer_as_each_does_alone_and_are_averaged(
    encoder: Encoder, folder: Path, questions: list[Question], settings: Make
) -> None:
    questions = questions[:8]
    expected = apart(encoder, folder, questions)
    with loaded_members(encoder.base, folder) as members:
        for _ in range(2):  # asked again, the first member is there again
            assert [score(encoder, questions, 16) for _ in members.each()] == expected
    facts: dict[str, Any] = {}
    with loaded_members(encoder.base, folder) as members:
        found = answer_with_members(encoder, members, questions, settings(), facts)
    assert found == average(expected, [1, 1])
    assert facts == {}
    one = member_folder(folder, 1)
    with loaded_members(encoder.base, one) as members:
        assert answer_with_members(encoder, members, questions, settings(), facts) == expected[1]
    single = [score(encoder, [question], 1)[0] for question in questions[:2]]
    assert single == score(encoder, questions[:2], 1)  # nothing stays on the base


def test_a_page_gets_calibrated_answers_of_all_members(
    encoder: Encoder, folder: Path, questions: list[Question], settings: Make
) -> None:
    [expected] = tempered(average(apart(encoder, folder, questions[:1]), [1, 1]), 2.0)
    with asked_one_by_one(encoder, folder, stored_temperature(folder, settings())) as ask:
        found = [ask(questions[0]) for _ in range(2)]
    assert found == [expected, expected]


def test_a_temperature_holds_for_the_way_it_was_fitted_for(
    folder: Path, settings: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert stored_temperature(folder, settings()) == 2.0
    assert base_temperature(folder) == 4.4
    assert stored_temperature(folder, settings("inference.temperature=1.3")) == 1.3
    assert not caplog.records
    assert stored_temperature(folder, settings("inference=cyclic")) == 1.0
    assert "was fitted for another way of answering" in caplog.text
    with caplog.at_level(logging.INFO):
        assert stored_temperature(member_folder(folder, 0), settings()) == 1.0
    assert "no calibration.json, so probabilities stay uncalibrated" in caplog.text


def test_texts_of_members_have_no_average(
    encoder: Encoder, folder: Path, questions: list[Question], settings: Make
) -> None:
    made = settings("inference=generate")
    with (
        loaded_members(encoder.base, folder) as members,
        pytest.raises(UserError, match=r"inference.readout must be letters with adapter=.*several members"),
    ):
        answer_with_members(encoder, members, questions[:2], made, {})


def test_members_of_different_shapes_are_refused(base: Base, folder: Path, settings: Make) -> None:
    with attached(base, settings().lora | {"r": 4}, seed=0) as model:
        save_adapter(model, member_folder(folder, 1), base)
    with (
        pytest.raises(UserError, match=r"member_1 does not fit beside .*member_0: other weights or shapes"),
        loaded_members(base, folder),
    ):
        pass
