"""Files are replaced in one step, and only when they change."""

from pathlib import Path

from vqa.machine.files import replace_text


def test_equal_content_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    replace_text(path, "ä,1\n")
    before = path.stat().st_mtime_ns
    replace_text(path, "ä,1\n")
    assert path.stat().st_mtime_ns == before
    replace_text(path, "b\n")
    assert path.read_bytes() == b"b\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_for_its_owner_only(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.json", "{}\n", mode=0o600)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600
