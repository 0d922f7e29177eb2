from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with red.png, its twin copy.png, blue.jpg, cut.jpg (truncated) and text.png (no image)."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "red.png").read_bytes())
    Image.effect_noise((64, 64), 80).save(tmp_path / "blue.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "blue.jpg").read_bytes()[:-200])
    (tmp_path / "text.png").write_text("not a picture")
    return tmp_path
