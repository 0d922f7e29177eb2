"""Pictures become features once, within the budget of visual tokens, as the model itself would make them."""

from collections.abc import Callable
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
from vqa.model.vision.features import VisionFeatures
from vqa.question import Question

Picture = Callable[[int, int], Question]


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    """picture(width, height) is a question on a colourful picture of that size."""

    def make(width: int, height: int) -> Question:
        path = tmp_path / f"{width}x{height}.png"
        Image.radial_gradient("L").resize((width, height)).convert("RGB").save(path)
        return Question(path.name, path, file_sha256(path), "What is it?", ("a", "b", "c", "d"))

    return make


@pytest.fixture
def cache(base: Base) -> VisionCache:
    """An empty cache of 1 GiB on the resident model."""
    return VisionCache(base.model, base.vision.processor, 1.0)


def same(of_a: tuple[VisionFeatures, ...], of_b: tuple[VisionFeatures, ...]) -> bool:
    (a,), (b,) = of_a, of_b
    pairs = zip((a.pooled, *a.deepstack), (b.pooled, *b.deepstack), strict=True)
    return a.grid == b.grid and all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)


def test_a_picture_is_computed_once(cache: VisionCache, picture: Picture, settings: Make) -> None:
    small, wide = picture(32, 32), picture(64, 32)
    twin = replace(small, id="twin", text="Another question")
    first = cache.features([small, wide, twin], settings().image)
    assert (cache.misses, cache.hits) == (2, 1)
    again = cache.features([twin, wide], settings().image)
    assert (cache.misses, cache.hits) == (2, 3)
    assert all(same(a, b) for a, b in zip(again, [first[0], first[1]], strict=True))
    cache.features([small], settings("image=pad_512", "image.size=64").image)
    assert cache.misses == 3  # another way of processing is another key
    cache.forget()
    assert (cache.nbytes, cache.kept) == (0, {})
    cache.features([small], settings().image)
    assert cache.misses == 4


def test_a_question_without_its_picture_has_no_features_and_is_no_hit(
    cache: VisionCache, picture: Picture, settings: Make
) -> None:
    blank = replace(picture(32, 32), image=None, image_sha256="")
    found = cache.features([blank, picture(32, 32)], settings().image)
    assert [len(own) for own in found] == [0, 1]
    assert (cache.misses, cache.hits) == (1, 0)
    assert cache.features([blank], settings().image) == [()]


def test_a_picture_that_questions_share_is_computed_once(
    cache: VisionCache, picture: Picture, settings: Make
) -> None:
    small, wide = picture(32, 32), picture(64, 32)
    both, turned = replace(small, further=wide.pictures), replace(wide, further=small.pictures)
    found = cache.features([both, turned, wide], settings().image)
    assert (cache.misses, cache.hits) == (2, 3)
    assert [[f.grid for f in own] for own in found] == [[(2, 2), (2, 4)], [(2, 4), (2, 2)], [(2, 4)]]
    assert cache.knows([both], settings().image)
    turns = replace(both, view="levels")
    assert [len(own) for own in cache.features([turns], settings().image)] == [2]
    assert len(cache.kept) == 2


def test_a_limit_of_zero_keeps_nothing(base: Base, picture: Picture, settings: Make) -> None:
    cache = VisionCache(base.model, base.vision.processor, 0.0)
    first, second = (cache.features([picture(32, 32)], settings().image)[0] for _ in range(2))
    assert same(first, second)
    assert (cache.misses, cache.hits, cache.nbytes, cache.kept) == (2, 0, 0, {})


def test_a_full_cache_takes_nothing_new(cache: VisionCache, picture: Picture, settings: Make) -> None:
    image = settings().image
    ((found,),) = cache.features([picture(32, 32)], image)
    assert cache.nbytes == found.nbytes == 4 * (1 + len(found.deepstack)) * found.pooled.numel()  # float32
    cache.limit_bytes = cache.nbytes
    for _ in range(2):
        cache.features([picture(48, 32)], image)
    assert (cache.misses, cache.hits, cache.nbytes) == (3, 0, found.nbytes)
    cache.features([picture(32, 32)], image)
    assert cache.hits == 1


def test_without_a_limit_features_are_kept_while_memory_is_left(
    base: Base,
    picture: Picture,
    settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    image = settings().image
    assert image.cache_gib is None
    cache = VisionCache(base.model, base.vision.processor, image.cache_gib)
    ((found,),) = cache.features([picture(32, 32)], image)
    assert cache.nbytes == found.nbytes
    monkeypatch.setattr("vqa.model.vision.cache.spare_bytes", lambda: found.nbytes)
    cache.features([picture(64, 64), picture(16, 16)], image)  # 16 and 4 visual tokens; room for 4
    assert cache.nbytes == 2 * found.nbytes
    monkeypatch.setattr("vqa.model.vision.cache.spare_bytes", lambda: -1)
    for _ in range(2):
        cache.features([picture(48, 32)], image)
    assert cache.nbytes == 2 * found.nbytes
    assert [r.message for r in caplog.records if "no memory for the features" in r.message] == [
        "no memory for the features of more pictures (0.0 GiB are kept): others are computed again whenever "
        "they are needed; image.cache_dir=FOLDER keeps them on a disk"
    ]


@pytest.mark.parametrize(
    ("size", "overrides", "grid"),
    [
        ((64, 64), [], (4, 4)),  # 16 pixels per side of a visual token
        ((64, 32), [], (2, 4)),
        ((80, 48), ["image.max_visual_tokens=64"], (3, 5)),  # a larger budget does not enlarge
        ((80, 48), ["image.max_visual_tokens=null"], (3, 5)),
        ((640, 320), [], (2, 5)),  # shape kept, at most 16
        ((1000, 1000), [], (4, 4)),
        ((16, 16), [], (2, 2)),  # only the minimum of 4 enlarges
        ((64, 32), ["image=resize_448"], (28, 28)),  # 784 visual tokens
        ((64, 32), ["image=pad_512"], (32, 32)),
        ((64, 32), ["image=pad_512", "image.size=96", "image.max_visual_tokens=16"], (4, 4)),
    ],
)
def test_visual_tokens_follow_the_size_and_the_budget(
    size: tuple[int, int],
    overrides: list[str],
    grid: tuple[int, int],
    cache: VisionCache,
    picture: Picture,
    settings: Make,
) -> None:
    image = settings(*overrides).image
    ((found,),) = cache.features([picture(*size)], image)
    assert found.grid == grid
    assert len(found.pooled) == grid[0] * grid[1]
    assert found.grid_thw == (1, grid[0] * 2, grid[1] * 2)  # two patches per side of a visual token


def test_features_do_not_depend_on_the_batch(base: Base, picture: Picture, settings: Make) -> None:
    questions = [picture(64, 64), picture(64, 32), picture(32, 48)]
    many, one = (VisionCache(base.model, base.vision.processor, 1.0) for _ in range(2))
    together = many.features(questions, settings().image)
    alone = [one.features([question], settings().image)[0] for question in questions]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_features_are_those_the_model_makes_itself(
    base: Base, cache: VisionCache, picture: Picture, settings: Make
) -> None:
    question = picture(64, 64)  # the processor's own default size: nothing to pass on
    ((found,),) = cache.features([question], settings().image)
    assert question.image is not None
    inputs = base.vision.processor(images=[load_image(question.image)], return_tensors="pt")
    with torch.no_grad():
        own = base.model.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        )
    assert torch.allclose(found.pooled, own.pooler_output[0], atol=1e-5)
    assert len(found.deepstack) == len(base.model.config.vision_config.deepstack_visual_indexes) > 0


def test_a_line_of_2000_by_4_pixels_is_looked_at(
    cache: VisionCache, picture: Picture, settings: Make
) -> None:
    ((features,),) = cache.features([picture(2000, 4)], settings().image)
    assert bool(features.pooled.isfinite().all())


def test_a_picture_that_broke_since_the_data_were_read_is_named(
    cache: VisionCache, picture: Picture, settings: Make
) -> None:
    question = picture(64, 64)
    assert question.image is not None
    question.image.write_bytes(b"gone")
    with pytest.raises(UserError, match=rf"{question.id}.*mend it, or look with stage=doctor"):
        cache.features([question], settings().image)


def test_a_later_run_finds_features_on_disk(
    base: Base, picture: Picture, settings: Make, tmp_path: Path
) -> None:
    image = settings(f"image.cache_dir={tmp_path}", "image.cache_gib=0").image
    questions = [picture(64, 64), picture(64, 32)]
    first, later = (VisionCache(base.model, base.vision.processor, 0.0) for _ in range(2))
    first.use_disk(image)
    store = first.disk
    first.use_disk(image)  # the next trial
    assert first.disk is store
    made = first.features(questions, image)
    first.pool.shutdown()  # the files are written meanwhile
    later.use_disk(image)
    later.fill(questions, image)
    found = later.features(questions, image)
    figures = later.figures()
    assert (later.disk_hits, later.misses, figures["vision_cache_hit_rate"]) == (4, 0, 1.0)
    assert figures["vision_disk_gib"] > 0
    for (a,), (b,) in zip(made, found, strict=True):
        assert torch.equal(a.pooled, b.pooled)
        assert all(torch.equal(x, y) for x, y in zip(a.deepstack, b.deepstack, strict=True))
        assert (a.grid, a.grid_thw) == (b.grid, b.grid_thw)


def test_a_tower_that_is_trained_is_not_stored(base: Base, settings: Make, tmp_path: Path) -> None:
    cache = VisionCache(base.model, base.vision.processor, 1.0)
    weight = next(base.model.model.visual.parameters())
    weight.requires_grad_(True)
    cache.use_disk(settings(f"image.cache_dir={tmp_path}").image)
    weight.requires_grad_(False)
    assert cache.disk is None
    assert "vision_disk_gib" not in cache.figures()


@pytest.mark.hostile
@pytest.mark.parametrize(
    "kind", ["no size", "a size that is none", "another size", "no levels", "other levels"]
)
def test_features_of_others_that_do_not_fit_the_picture_are_made_again(
    base: Base, picture: Picture, settings: Make, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = settings(f"image.cache_dir={tmp_path}", "image.cache_gib=0").image
    question = picture(64, 64)
    cache = VisionCache(base.model, base.vision.processor, 0.0)
    cache.use_disk(image)
    [(made,)] = cache.features([question], image)
    cache.pool.shutdown()  # the file is written meanwhile
    notes = {"no size": {}, "a size that is none": {"grid_hw": "x"}, "another size": {"grid_hw": "2 2"}}
    tensors = {"pooled": made.pooled} | {f"deepstack.{n}": part for n, part in enumerate(made.deepstack)}
    if kind == "no levels":
        tensors = {"level": made.pooled, "deepstack.0": made.pooled.clone()}
    if kind == "other levels":
        tensors["deepstack.0"] = made.pooled[:1].clone()
    assert cache.disk is not None
    [file] = cache.disk.folder.iterdir()
    sound = {"grid_hw": " ".join(map(str, made.grid_thw[1:]))}
    cache.disk.write(file.stem, tensors, notes.get(kind, sound))
    later = VisionCache(base.model, base.vision.processor, 0.0)
    later.use_disk(image)
    [(found,)] = later.features([question], image)
    assert same((made,), (found,))
    assert "are made again" in caplog.text
