"""A benchmark's file says what ran, and where; a second call adds its rows or starts again, as it is told."""

import json
from pathlib import Path

import pytest

from benchmarks.harness.record import write_rows


def test_rows_are_added_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results" / "sweeper.json"
    call = ["/x/benchmarks/search/sweeper.py", "--out", str(path), "--trials", "4", "--machine=two cores"]
    monkeypatch.setattr("sys.argv", call)
    write_rows(path, "sweeper", [{"n": 1}])
    write_rows(path, "sweeper", [{"n": 2}], "two cores")
    found = json.loads(path.read_text())
    once = "python -m benchmarks.search.sweeper --trials 4"
    assert (found["machine"], found["rows"]) == ("two cores", [{"n": 1}, {"n": 2}])
    assert found["command"] == f"{once}; {once}"
    write_rows(path, "sweeper", [{"n": 3}], append=False)
    assert json.loads(path.read_text())["rows"] == [{"n": 3}]
