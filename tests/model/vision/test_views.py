"""Views are mild crops that stay the same, keep the size and never crowd pictures out of the cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import Make
from vqa.data.image import file_sha256, load_image
from vqa.errors import UserError
from vqa.model.base import Base
from vqa.model.vision.cache import VisionCache
from vqa.model.vision.views import AREA, RATIO, look, viewed
from vqa.question import Question

RULE = r"view must be crop:left,top,right,bottom .* got "


@pytest.fixture
def question(tmp_path: Path) -> Question:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(path)
    return Question("q1", path, file_sha256(path), "What?", ("1", "2", "3", "4"))


def box(view: str) -> tuple[float, ...]:
    return tuple(float(side) for side in view.removeprefix("crop:").split(","))


def test_the_first_view_is_the_picture_itself_and_the_others_are_all_different(question: Question) -> None:
    views = viewed(question, 16, 0)
    assert views[0] is question
    assert len({view.view for view in views}) == 16
    assert {replace(view, view="") for view in views} == {question}


def test_views_depend_on_question_seed_and_place_alone(question: Question) -> None:
    assert viewed(question, 8, 3)[:4] == viewed(question, 4, 3)
    assert viewed(question, 2, 4)[1].view != viewed(question, 2, 3)[1].view
    assert viewed(replace(question, id="q2"), 2, 3)[1].view != viewed(question, 2, 3)[1].view
    # seen once: numbers made with views must stay reproducible, on any machine
    assert viewed(question, 2, 0)[1].view == "crop:0.0646,0.0669,0.9616,0.9425"


def test_crops_are_mild(question: Question) -> None:
    for view in viewed(question, 200, 0)[1:]:
        left, top, right, bottom = box(view.view)
        assert (right - left) * (bottom - top) >= AREA[0] - 1e-3
        assert RATIO[0] - 1e-3 <= (right - left) / (bottom - top) <= RATIO[1] + 1e-3


def test_a_question_without_its_picture_is_the_same_in_all_views(question: Question) -> None:
    blank = replace(question, image=None, image_sha256="")
    assert viewed(blank, 8, 0) == [blank] * 8


def test_no_view_at_all_is_refused(question: Question) -> None:
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        viewed(question, 0, 0)


def test_a_crop_shows_its_part_at_the_size_of_the_whole() -> None:
    picture = Image.new("RGB", (40, 40), "red")
    picture.paste("blue", (20, 0, 40, 40))
    right = look(picture, "crop:0.5000,0.0000,1.0000,1.0000")
    assert right.size == (40, 40)
    assert {right.getpixel((x, 20)) for x in range(2, 40)} == {(0, 0, 255)}
    assert look(picture, "") is picture


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (2, 500)])
def test_tiny_and_thin_pictures_survive(size: tuple[int, int], question: Question) -> None:
    picture = Image.new("RGB", size, "green")
    for view in viewed(question, 20, 0):
        seen = look(picture, view.view)
        assert seen.size == size
        assert seen.getpixel((0, 0)) == (0, 128, 0)


@pytest.mark.parametrize(
    "view",
    [
        "crop",
        "crop:0.1,0.1,0.9,0.9",
        "crop:0.1000,0.1000,0.9000",
        "crop:0.9000,0.1000,0.1000,0.9000",
        "crop:0.1000,0.1000,1.9000,0.9000",
        "crop:0.1000,0.1000,0.9000,nan",
        "crop:0.1000,0.1000,0.9000,0.9000\n",
        "flip",
        " ",
    ],
)
def test_any_other_text_is_refused(view: str) -> None:
    with pytest.raises(ValueError, match=RULE):
        look(Image.new("RGB", (4, 4)), view)


def test_features_are_those_of_the_cropped_picture(
    base: Base, question: Question, settings: Make, tmp_path: Path
) -> None:
    image = settings().image
    first, second = viewed(question, 2, 0)
    assert question.image is not None
    saved = tmp_path / "cropped.png"
    look(load_image(question.image), second.view).save(saved)
    cropped = replace(question, image=saved, image_sha256=file_sha256(saved))
    caches = [VisionCache(base.model, base.vision.processor, 1.0) for _ in range(2)]
    found = caches[0].features([first, second], image)
    expected = caches[1].features([question, cropped], image)
    for (a,), (b,) in zip(found, expected, strict=True):
        assert a.grid == b.grid
        assert torch.equal(a.pooled, b.pooled)


def test_views_are_neither_kept_nor_counted(
    base: Base, question: Question, settings: Make, tmp_path: Path
) -> None:
    image = settings(f"image.cache_dir={tmp_path}").image
    cache = VisionCache(base.model, base.vision.processor, 1.0)
    cache.use_disk(image)
    views = viewed(question, 6, 0)
    for _ in range(2):
        cache.fill(views, image)
        found = cache.features([*views, views[1]], image)
        assert len({float(f.pooled.sum()) for (f,) in found}) == 6
    cache.pool.shutdown()
    assert (len(cache.kept), cache.misses, cache.hits, cache.disk_hits) == (1, 1, 2, 0)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_a_corrupt_view_is_refused_by_the_cache_with_the_question(
    base: Base, question: Question, settings: Make
) -> None:
    cache = VisionCache(base.model, base.vision.processor, 1.0)
    with pytest.raises(UserError, match=f"question q1.*{RULE}"):
        cache.features([replace(question, view="crop:1")], settings().image)
