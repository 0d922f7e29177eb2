"""Questions are read once per process and split by data, share and seed alone."""

import pytest

from tests.conftest import Compose, Make
from vqa.config.check import read_settings
from vqa.data.contest_csv import ContestCsv
from vqa.data.easy_vqa import EasyVqa
from vqa.data.source import data_source, split_questions
from vqa.data.source import test_questions as questions_to_answer


def test_the_data_node_names_the_class(settings: Make) -> None:
    assert data_source(settings()) == EasyVqa(train_size=60, test_size=12, seed=0)


def test_the_same_settings_are_read_and_split_once(settings: Make) -> None:
    split, digest = split_questions(settings())
    again, same_digest = split_questions(settings("optimizer.lr=1e-4", "budget.epochs=2"))
    assert again is split
    assert same_digest == digest
    assert len(split.train) + len(split.valid) == 60


@pytest.mark.parametrize(
    ("override", "same_data"),
    [
        ("seed=1", True),
        ("budget.holdout_share=0.25", True),
        ("data.seed=1", False),
        ("data.train_size=80", False),
    ],
)
def test_the_split_follows_seed_and_share_and_the_digest_the_data(
    settings: Make, override: str, same_data: bool
) -> None:
    split, digest = split_questions(settings())
    other, other_digest = split_questions(settings(override))
    assert (other_digest == digest) == same_data
    assert other.sha256 != split.sha256


@pytest.mark.parametrize(("limit", "count"), [("5", 5), ("100", 12), ("null", 12)])
def test_a_limit_keeps_the_first_test_questions(settings: Make, limit: str, count: int) -> None:
    made = settings(f"budget.test_limit={limit}")
    assert questions_to_answer(made) == data_source(made).test()[:count]  # type: ignore[index]
    assert len(questions_to_answer(made) or []) == count


def test_there_may_be_no_test_questions(composed: Compose) -> None:
    made = read_settings(composed("data=csv", "data.train_csv=train.csv", "data.image_root=."))
    assert isinstance(data_source(made), ContestCsv)
    assert questions_to_answer(made) is None
