"""The doctor's page tells of every problem, in the study's folder, and of contest files only."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Compose
from vqa.config.check import read_settings
from vqa.config.settings import Settings
from vqa.stages.doctor import write_doctor_page


@pytest.fixture
def contest(composed: Compose, tmp_path: Path) -> Settings:
    """60 questions, 6 test questions on training pictures, one broken picture."""
    for i in range(30):
        Image.new("RGB", (64, 64), (i * 8, 90, 40)).save(tmp_path / f"{i}.png")
    (tmp_path / "7.png").write_bytes(b"broken")
    head = ["id", "path", "question", "a", "b", "c", "d", "answer"]
    rows = [
        [f"q{i}", f"{i // 2}.png", "<i>색?</i>", "빨강", "파랑", "초록", "노랑", "abcd"[i % 4]]
        for i in range(60)
    ]
    for name, part, width in (("train", rows, 8), ("test", rows[:6], 7)):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(row[:width] for row in [head, *part])
    files = [f"data.{part}_csv={tmp_path}/{part}.csv" for part in ("train", "test")]
    given = ["data=csv", *files, f"data.image_root={tmp_path}", f"env.output_root={tmp_path}/out"]
    return read_settings(composed(*given, "stage=doctor", "tracking=none"))


def test_the_page_counts_and_names_what_is_wrong(contest: Settings, tmp_path: Path) -> None:
    page = write_doctor_page(contest, ["data: train.csv:row 16: the image is broken"])
    assert page == tmp_path / "out/default/doctor.html"
    text = page.read_text(encoding="utf-8")
    assert "row 16: the image is broken" in text
    assert "<td>58</td><td>29</td><td>0</td>" in text  # the two questions on the broken picture are left out
    assert "train q0 = test q0" in text
    assert text.count('<img src="data:image/webp') == 29


def test_a_file_that_cannot_be_read_still_has_a_page(contest: Settings, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("nothing")
    (tmp_path / "test.csv").unlink()
    page = write_doctor_page(contest, ["data: train.csv: is missing"])
    assert page is not None
    assert "train.csv: is missing" in page.read_text(encoding="utf-8")


def test_the_embedded_data_need_no_page(composed: Compose) -> None:
    assert write_doctor_page(read_settings(composed("stage=doctor", "tracking=none")), []) is None
