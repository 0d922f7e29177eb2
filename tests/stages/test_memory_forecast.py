"""What the doctor says of memory for a model of the true size: its configuration alone lies in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Make
from tests.stages.test_footprint import true_size
from vqa.config.settings import Settings
from vqa.model.base import model_folder
from vqa.stages.footprint import Foreseen, foreseen, memory_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return true_folder(tmp_path)


def true_folder(tmp_path: Path) -> Path:
    """A true configuration beside the embedded model's tokenizer; no weights."""
    config: dict[str, Any] = true_size("qwen3_vl_8b").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in Path(model_folder("asset:tiny")).iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def known(settings: Settings) -> Foreseen:
    found = foreseen(settings)
    assert found is not None
    return found


def test_each_card_gets_a_line_with_the_way_that_fits(settings: Make, folder: Path) -> None:
    made = settings("model=qwen3_vl_8b", f"model.path={folder}", "budget.batch_size=16")
    lines = memory_lines(made, known(made))
    assert [line.split(":")[0].split()[0] for line in lines[:5]] == ["12", "16", "24", "40", "80"]
    assert "too small; quantization=nf4" in lines[0]
    assert "16 questions a step, 16 at once" in lines[4]
    assert lines[5].strip().startswith("features of ")


def test_nf4_fits_where_sixteen_bits_do_not(settings: Make, folder: Path) -> None:
    made = settings("model=qwen3_vl_8b", f"model.path={folder}", "quantization=nf4", "lang=ko")
    lines = memory_lines(made, known(made))
    assert "12 GB 카드: 한 스텝 16문항" in lines[0]


def test_the_embedded_model_needs_no_forecast(settings: Make) -> None:
    assert foreseen(settings()) is None


def test_a_folder_without_a_tokenizer_ends_no_doctor(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(true_size("qwen3_vl_8b").to_dict()))
    assert foreseen(settings("model=qwen3_vl_8b", f"model.path={tmp_path}")) is None
