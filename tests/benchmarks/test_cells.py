"""Cells of a benchmark: finished ones are on file and stay there, failed ones are told and tried again."""

import math
from pathlib import Path

from benchmarks.harness.cells import Cell, Result, finished, missing, run_cells


def double(cell: Cell) -> Result:
    """Runs in a process of its own."""
    if cell["n"] == 13:
        raise ValueError("unlucky")
    return {"twice": 2 * cell["n"]}


def test_every_cell_is_evaluated_once(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text('{"n": 1, "o": ["a"], "twice": 99}\n{"n": 2, "o": ["a"], "tw')  # the last was cut off
    cells = [{"n": n, "o": ["a"]} for n in (1, 2, 13)]
    [failure] = run_cells(cells, double, path, 2, math.inf)
    assert "ValueError: unlucky" in failure
    assert sorted((r["n"], r["twice"]) for r in finished(path)) == [(1, 99), (2, 4)]
    assert missing(cells, finished(path)) == [{"n": 13, "o": ["a"]}]


def test_no_cell_starts_after_the_limit(tmp_path: Path) -> None:
    assert run_cells([{"n": 1}], double, tmp_path / "cells.jsonl", 1, limit_s=0) == []
    assert finished(tmp_path / "cells.jsonl") == []


def test_a_cell_with_other_settings_is_another_cell() -> None:
    result = {"method": "tent", "overrides": ["adapt=tent"], "right": "01"}
    cells = [{"method": "tent", "overrides": more} for more in (["adapt=tent"], ["adapt=tent", "adapt.lr=1"])]
    assert missing(cells, [result]) == cells[1:]
