"""A question has the pictures that its columns, its list or its separated cell name, in that order."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from PIL import Image
from pyarrow import parquet

from vqa.data.contest_csv import ContestCsv
from vqa.data.row_pictures import paths_of_cell
from vqa.errors import UserError
from vqa.question import Question

TWO = "id,image_1,image_2,question,a,b,c,d,answer\n"
ONE = "id,path,question,a,b,c,d,answer\n"
REST = "which?,1,2,3,4,a\n"
NAMES = ["red.png", "blue.png", "a;b.png", "c|d.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with four pictures, two of them with a separator in their names."""
    for number, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(tmp_path / name)
    return tmp_path


def contest(root: Path, text: str, **more: Any) -> ContestCsv:
    (root / "train.csv").write_text(text, encoding="utf-8")
    return ContestCsv(str(root / "train.csv"), None, str(root), **more)


def names(question: Question) -> list[str]:
    return [picture.path.name for picture in question.pictures]


COLUMNS: dict[str, Any] = {"columns": {"path": ["image_1", "image_2"]}}


def test_columns_give_none_one_or_two_pictures_in_their_order(root: Path) -> None:
    text = TWO + f"0,,,{REST}1,,blue.png,{REST}2,blue.png,red.png,{REST}3,red.png, ,{REST}4,a;b.png,,{REST}"
    found = contest(root, text, **COLUMNS).train()
    expected = [[], ["blue.png"], ["blue.png", "red.png"], ["red.png"], ["a;b.png"]]
    assert [names(question) for question in found] == expected
    assert found[2].pictures_sha256 == f"{found[1].image_sha256} {found[3].image_sha256}"
    assert found[0].pictures_sha256 == ""
    (first,) = contest(root, TWO + f"2,blue.png,red.png,{REST}", columns={"path": "image_1"}).train()
    assert first == replace(found[2], further=())


@pytest.mark.parametrize(
    ("cell", "separator", "expected"),
    [
        ("red.png", None, ["red.png"]),
        ("red.png;blue.png", None, ["red.png;blue.png"]),
        ("red.png;blue.png", ";", ["red.png", "blue.png"]),
        (" red.png | | blue.png ", "|", ["red.png", "blue.png"]),
        ("a;b.png", ";", ["a;b.png"]),
        ('["a;b.png", "red.png"]', ";", ["a;b.png", "red.png"]),
        ("['a;b.png', 'red.png']", None, ["a;b.png", "red.png"]),
        ('["red.png", null, ""]', None, ["red.png"]),
        ("[]", None, []),
        ("", ";", []),
        ("[1, 2]", None, ["[1, 2]"]),
        ("[draft].png", None, ["[draft].png"]),
    ],
)
def test_a_cell_names_its_pictures(root: Path, cell: str, separator: str | None, expected: list[str]) -> None:
    assert paths_of_cell(cell, separator, root) == expected


def test_lists_of_json_lines_and_parquet_are_read(root: Path) -> None:
    given = [["red.png", "a;b.png"], [], None, ["blue.png"]]
    rows = [
        {"id": str(i), "path": paths, "question": "?", "a": "1", "b": "2", "answer": "a"}
        for i, paths in enumerate(given)
    ]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "train.parquet")
    for file in ("train.jsonl", "train.parquet"):
        found = ContestCsv(str(root / file), None, str(root)).train()
        assert [names(question) for question in found] == [["red.png", "a;b.png"], [], [], ["blue.png"]]


def test_a_missing_picture_names_row_column_and_path(root: Path) -> None:
    text = TWO + f"1,red.png,blue.png,{REST}2,red.png,gone.png,{REST}"
    with pytest.raises(UserError, match=r"train.csv:row 3, column image_2: the image .*gone.png is missing"):
        contest(root, text, **COLUMNS).train()
    with pytest.raises(UserError, match=r"train.csv:row 3, column path: the image .*gone.png is missing"):
        contest(root, ONE + f"1,red.png,{REST}2,red.png;gone.png,{REST}", picture_separator=";").train()


def test_a_row_without_its_only_picture_is_a_problem_still(root: Path) -> None:
    with pytest.raises(UserError, match=r"train.csv:row 3, column path: is empty"):
        contest(root, ONE + f"1,red.png,{REST}2,,{REST}").train()


def test_a_cell_of_several_pictures_gets_the_setting_to_paste(root: Path) -> None:
    with pytest.raises(UserError, match=re.escape("it is 2 pictures: data.picture_separator=';'")):
        contest(root, ONE + f"1,red.png,{REST}2,red.png; blue.png,{REST}").train()


def test_columns_that_look_like_pictures_get_the_setting_to_paste(root: Path) -> None:
    setting = "data.columns={path: [image_1, image_2]}"
    with pytest.raises(UserError, match=re.escape(setting)):
        contest(root, TWO + f"1,red.png,blue.png,{REST}").train()
    header = "nr,사진1,사진2,frage,eins,zwei,drei,vier,richtig\n"
    with pytest.raises(UserError, match=re.escape("id: NAME, path: [사진1, 사진2], question: NAME")):
        contest(root, header + f"1,red.png,blue.png,{REST}").train()


def test_pictures_in_columns_that_are_not_read_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = contest(root, TWO + f"1,red.png,blue.png,{REST}", columns={"path": "image_1"}).train()
    assert names(found[0]) == ["red.png"]
    assert "the pictures of image_2 are not looked at" in caplog.text


def test_a_test_row_keeps_the_pictures_that_can_be_read(root: Path) -> None:
    text = "id,image_1,image_2,question,a,b,c,d\n1,gone.png,blue.png,which?,1,2,3,4\n"
    (root / "test.csv").write_text(text)
    source = ContestCsv(None, str(root / "test.csv"), str(root), on_bad_image="blank", **COLUMNS)
    (question,) = source.test() or []
    assert (names(question), question.flag) == (["blue.png"], "image_missing")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": []}, r"data.columns.path must be a column's name or a list of different ones, got \[\]"),
        ({"path": ["x", "x"]}, r"data.columns.path must be a column's name or a list of different ones"),
        ({"question": ["x", "y"]}, r"data.columns.question must be a column's name, got"),
        ({"image": ["x", "y"]}, r"data.columns: unknown name image; known: id, path"),
    ],
)
def test_other_settings_of_columns_are_refused(root: Path, columns: Any, message: str) -> None:
    source = contest(root, TWO, columns=columns)
    with pytest.raises(UserError, match=message):
        source.train()
    (problem,) = source.check()
    assert re.match(message, problem)


def test_a_separator_of_blanks_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"data.picture_separator must be a text such as ';'"):
        contest(root, TWO, picture_separator=" ").train()
