"""Pages hold all they need, escape what data say, and follow the reader's language."""

import re
from pathlib import Path

import pytest
from PIL import Image

from vqa.report.page import in_both_languages, inline_svg, thumbnail, thumbnails
from vqa.report.plots import drawn_for_page, learning_curve


def curve(folder: Path) -> str:
    with drawn_for_page() as korean:
        path = learning_curve([{"step": 1, "nll": 1.0}, {"step": 2, "nll": 0.5}], folder / "curve.png")
    assert path.suffix == ".svg"
    return inline_svg(path, korean)


def test_a_chart_follows_the_pages_colours_and_language(tmp_path: Path) -> None:
    svg = curve(tmp_path)
    assert svg.startswith("<svg")
    assert "#ffffff" not in svg
    assert "DejaVu" not in svg
    assert re.search(r'<text lang="en" [^>]*>Loss</text><text lang="ko" [^>]*>손실</text>', svg)


def test_the_same_chart_is_drawn_the_same_twice_and_its_ids_are_its_own(tmp_path: Path) -> None:
    first, second = curve(tmp_path / "a"), curve(tmp_path / "b")
    assert first == second
    ids = re.findall(r'\bid="([^"]+)"', first)
    assert ids
    assert all(name.startswith("curve-") for name in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', first)
    assert set(used) <= set(ids)


def test_charts_are_png_again_after_a_page_was_drawn(tmp_path: Path) -> None:
    curve(tmp_path)
    assert learning_curve([{"step": 1, "nll": 1.0}], tmp_path / "x.png").suffix == ".png"


@pytest.mark.hostile
def test_texts_are_escaped() -> None:
    assert in_both_languages("<b>", "굵게") == '<span lang="en">&lt;b&gt;</span><span lang="ko">굵게</span>'


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.effect_noise((500, 400), 40 + i).save(path)
    return paths


def test_thumbnails_stop_at_the_budget_and_keep_the_order(pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    all_of_them = thumbnails([broken, *pictures, pictures[0]], 10**9)
    assert list(all_of_them) == pictures  # the broken one is left out, the repeated one is there once
    assert all(address.startswith("data:image/webp;base64,") for address in all_of_them.values())
    budget = sum(len(address) for address in list(all_of_them.values())[:2])
    assert list(thumbnails(pictures, budget)) == pictures[:2]


def test_a_picture_that_cannot_be_read_has_no_thumbnail(tmp_path: Path) -> None:
    assert thumbnail(tmp_path / "missing.png") is None
