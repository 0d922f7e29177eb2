"""Questions are read once per process and split by data, share and seed alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Compose, Make
from vqa.config.check import read_settings
from vqa.data.contest_csv import ContestCsv, reading_once
from vqa.data.csv_rows import read_rows
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


def test_a_file_is_read_once_where_its_checks_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "train.csv").write_text("id,path,question,a,b,c,d,answer\n1,red.png,q,1,2,3,4,a\n")
    source = ContestCsv(train_csv=str(tmp_path / "train.csv"), test_csv=None, image_root=str(tmp_path))
    reads = []

    def counted(*given: Any) -> Any:
        reads.append(given)
        return read_rows(*given)

    monkeypatch.setattr("vqa.data.contest_csv.read_rows", counted)
    with reading_once():
        assert source.check() == []
        assert source.check() == []  # what it found the first time is not added to
        assert len(source.train()) == len(source.readable("train")) == 1
        assert len(reads) == 1
        assert replace(source, min_votes=2).check() == []
        assert len(reads) == 2
    (tmp_path / "red.png").write_text("no picture")
    assert source.check() != []
    assert len(reads) == 3
