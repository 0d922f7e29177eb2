"""Tables that a stranger made: each is read, or refused with a message, within a bounded memory."""

import json
import random
import re
import resource
from pathlib import Path

import pytest

from vqa.data.table_file import read_table

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.hostile
ROW = {"id": "1", "path": "x.png", "question": "what?", "a": "1", "b": "2", "answer": "a"}

NO_TEXT = (b"\0\0\0\0\2\0\0\0", b"\xff\xfe")  # where one text begins and ends, and its bytes


def refusal(path: Path) -> str:
    """The one problem with a file."""
    [problem] = read_table(path, "question").problems
    assert problem.about == "file"
    return problem.at(path.name)


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\xd0\xcf\x11\xe0"])
def test_a_packed_file_is_told_as_such(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(start + b"...")
    assert re.fullmatch(r"x\.csv: is (packed: unpack it first|an Excel or zip file: .*)", refusal(path))


def test_a_list_of_objects_is_read_and_other_json_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([ROW, ROW | {"id": "2"}], indent=1))
    found = read_table(path, "question")
    assert found.problems == []
    assert found.records == [(1, list(ROW)), (1, [*ROW.values()]), (2, ["2", *[*ROW.values()][1:]])]
    path.write_text('{"id": {"0": "1"}}')
    assert refusal(path).endswith("must be a list of objects [{...}, ...]; one object a line is .jsonl")
    path.write_text("[1")
    assert "is no JSON" in refusal(path)


@pytest.mark.parametrize("name", [*ROW, "a column"])
def test_half_of_a_surrogate_pair_is_told_with_its_row(tmp_path: Path, name: str) -> None:
    changed = ROW | {"\ud800" if name == "a column" else name: "x\ud800"}
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(changed)}\n")
    assert "row 2: is no text: half of a surrogate pair" in refusal(path)


def test_rows_that_each_name_their_own_columns_are_not_squared(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(ROW | {f"k{i}": 1}) for i in range(5000)))
    assert "names more than 1,000 columns" in refusal(path)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, *map(pyarrow.py_buffer, NO_TEXT)]),
        pyarrow.array([2**55], pyarrow.timestamp("ms")),
        pyarrow.array([2**62 + 1], pyarrow.timestamp("ns")),
        pyarrow.array([b"\xff"], pyarrow.binary()),
        pyarrow.array([[[[1]]]]),
        pyarrow.array([None], pyarrow.null()),
    ],
    ids=["bytes that are no text", "a year beyond all", "nanoseconds", "bytes", "lists", "nothing"],
)  # fmt: skip
def test_any_kind_of_parquet_column_is_read_or_told(tmp_path: Path, column: object) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(
        pyarrow.table({**{key: [value] for key, value in ROW.items()}, "question": column}), path
    )
    table = read_table(path, "question")
    assert table.records or "is no parquet: " in table.problems[0].text


@pytest.mark.parametrize(
    ("text", "rows"), [("x" * 100_000, 1000), ("", 50_000)], ids=["long text", "nothing"]
)
def test_parquet_that_unpacks_beyond_the_limit_is_refused_while_it_is_read(
    tmp_path: Path, text: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.data.table_file.MAX_BYTES", 2**23)
    once = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([text])
    )
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table(dict.fromkeys(ROW, once)), path)
    assert path.stat().st_size < 2**17
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "unpacks to more than" in refusal(path)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
    )  # KiB; whole it would be 600 MB


def test_parquet_with_changed_bytes_is_read_or_told(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({key: [value] * 20 for key, value in ROW.items()}), path)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 3, 9))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
        table = read_table(path, "question")
        assert table.records or table.problems
