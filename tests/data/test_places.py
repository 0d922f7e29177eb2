import unicodedata
from pathlib import Path

import pytest

from vqa.data.places import NearNames, data_file, missing_data_files, resolve_inside


def test_path_inside_the_root_is_joined(tmp_path: Path) -> None:
    assert resolve_inside(tmp_path, "train/../train/x.jpg") == tmp_path.resolve() / "train" / "x.jpg"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("relative", "rule"),
    [
        ("/etc/passwd", "must be relative"),
        ("../x.jpg", "must stay inside"),
        ("..", "must stay inside"),
        ("train/../../x.jpg", "must stay inside"),
        ("out/../../x.jpg", "must stay inside"),
        ("../images-of-others/x.jpg", "must stay inside"),
        ("x\0.jpg", "null character"),
        ("x\n.jpg", "control character"),
        ("x\x1b[2J.jpg", "control character"),
    ],
)
def test_path_that_leaves_the_root_is_refused(tmp_path: Path, relative: str, rule: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "images-of-others").mkdir()
    (root / "out").symlink_to(tmp_path / "images-of-others")
    with pytest.raises(ValueError, match=rule):
        resolve_inside(root, relative)


def test_link_inside_the_root_may_point_to_another_disk(tmp_path: Path) -> None:
    root, disk = tmp_path / "images", tmp_path / "disk"
    root.mkdir()
    disk.mkdir()
    (disk / "x.jpg").write_bytes(b"x")
    (root / "linked").symlink_to(disk)
    (root / "y.jpg").symlink_to(disk / "x.jpg")  # as in the hub's cache
    assert resolve_inside(root, "linked/x.jpg").read_bytes() == b"x"
    assert resolve_inside(root, "y.jpg").read_bytes() == b"x"


def test_root_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    assert resolve_inside(tmp_path / "images", "x.jpg") == tmp_path.resolve() / "disk" / "x.jpg"


@pytest.mark.parametrize(
    "written",
    [
        unicodedata.normalize("NFC", "사진/고양이.jpg"),
        "사진/고양이.JPG",
        "사진\\고양이.jpg",
        " 사진/고양이.jpg ",
        "./사진//고양이.jpg",
    ],
)
def test_name_written_in_another_way_finds_its_file(tmp_path: Path, written: str) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "사진")  # as a Mac's archive unpacks
    folder.mkdir()
    (folder / unicodedata.normalize("NFD", "고양이.jpg")).touch()
    (found,) = NearNames(tmp_path).find(written)
    assert found.is_file()


def test_several_files_that_differ_in_case_are_all_found(tmp_path: Path) -> None:
    for name in ("x.jpg", "X.jpg"):
        (tmp_path / name).touch()
    assert len(NearNames(tmp_path).find("x.JPG")) == 2


@pytest.mark.hostile
@pytest.mark.parametrize("written", ["../x.jpg", "", ".", "folder", "x.jpg/y.jpg", "none.jpg"])
def test_no_other_file_is_found(tmp_path: Path, written: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "x.jpg").touch()
    (root / "x.jpg").touch()
    (root / "folder").mkdir()
    assert NearNames(root).find(written) == []


def test_data_file_is_looked_for_below_the_image_root_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, here = tmp_path / "images", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (root / "train.csv").touch()
    assert data_file("train.csv", str(root)) == root / "train.csv"
    (here / "train.csv").touch()
    assert data_file("train.csv", str(root)) == Path("train.csv")
    assert data_file("none.csv", str(root)) == Path("none.csv")
    assert data_file("none.csv", None) == Path("none.csv")


def test_each_missing_file_is_one_line_that_names_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.csv").touch()
    node = {"train_csv": "train.csv", "test_csv": "test.csv", "image_root": "/images", "train_size": 3}
    assert missing_data_files(node) == [
        f"data.train_csv=train.csv: there is no such file in {tmp_path} or /images"
    ]
    assert missing_data_files({"train_size": 3}) == []
