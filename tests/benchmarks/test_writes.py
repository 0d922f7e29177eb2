"""The command that kills a study at every write works; a few of the writes are enough here."""

from pathlib import Path

from benchmarks.endurance.writes import kill_at_each, study_case, with_imports


def test_a_study_killed_at_some_of_its_writes_ends_in_the_same_bytes(tmp_path: Path) -> None:
    case, first = study_case(), tmp_path / "first"
    first.mkdir()
    with_imports(case, first)
    row = kill_at_each(case, tmp_path, every=60, first=25)
    assert row["writes"] > 100
    assert row["kills"] >= 2
    assert row["differing"] == {}
