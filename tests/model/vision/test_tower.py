"""Pictures are cut as the processor would, weights widened and features copied without changing anything."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Make
from tests.helpers.tiny_models import tiny_qwen2_5
from vqa.data.image import file_sha256
from vqa.errors import UserError
from vqa.model.base import Base
from vqa.model.vision import tower, tower_kernels
from vqa.model.vision.cache import PICTURES_AT_ONCE, VisionCache
from vqa.model.vision.features import HostCopies, VisionFeatures
from vqa.model.vision.tower import cut_patches, resized
from vqa.model.vision.tower_kernels import pad_mlp
from vqa.question import Question


@pytest.mark.parametrize(("least", "most"), [(4, 16), (16, 1 << 20)])
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (200, 31), (37, 301), (640, 480)])
def test_patches_are_the_processors(base: Base, size: tuple[int, int], least: int, most: int) -> None:
    processor = base.vision.processor
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    token = (processor.patch_size * processor.merge_size) ** 2  # pixels
    limits = {"shortest_edge": least * token, "longest_edge": most * token}
    wanted = processor(
        images=[picture], size=limits, do_rescale=False, do_normalize=False, return_tensors="pt"
    )
    pixels = resized(picture, processor, least, most)
    shape = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    cut = cut_patches(torch.stack([pixels, pixels.flip(0)]), *shape)
    assert torch.equal(cut[: len(cut) // 2].float(), wanted["pixel_values"])
    assert torch.equal(cut[len(cut) // 2 :], cut_patches(pixels.flip(0)[None], *shape))
    assert wanted["image_grid_thw"].tolist() == [[1, *(side // shape[0] for side in pixels.shape[:2])]]


def test_passes_hold_every_picture_once_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower, "PIXELS_AT_ONCE", 100)
    drawn = [torch.full((side, 5, 3), i, dtype=torch.uint8) for i, side in enumerate((8, 8, 12, 50, 1, 1))]
    parts = list(tower._passes(tower.join_pictures(drawn, torch.device("cpu"))))
    assert [part.sizes for part in parts] == [[(8, 5), (8, 5)], [(12, 5)], [(50, 5)], [(1, 5), (1, 5)]]
    assert torch.equal(torch.cat([part.pixels for part in parts]), torch.cat([d.flatten() for d in drawn]))


def test_exchanged_parts_of_a_tower_give_the_same() -> None:
    torch.manual_seed(0)
    visual = tiny_qwen2_5().model.visual.double()
    embed, block = visual.patch_embed, visual.blocks[0]
    block.norm1.weight.data.normal_()
    patches, x = torch.randn(5, embed.proj.weight[0].numel()).double(), torch.randn(9, 32).double()
    pairs = [
        (tower_kernels._embed_patches(embed.proj, patches), embed(patches)),
        (tower_kernels._rms_norm(block.norm1, x), block.norm1(x)),
        (tower_kernels._gated_mlp(block.mlp, x), block.mlp(x)),
    ]
    for found, expected in pairs:
        assert expected.abs().max() > 0
        assert torch.allclose(found, expected, rtol=1e-6)


def test_a_widened_mlp_gives_the_same() -> None:
    torch.manual_seed(0)
    mlp = tiny_qwen2_5().model.visual.blocks[0].mlp.double()
    x = torch.randn(9, 32, dtype=torch.float64)
    before = mlp(x)
    assert before.abs().max() > 0
    pad_mlp(mlp, 5)
    assert (mlp.gate_proj.out_features, mlp.down_proj.in_features) == (69, 69)
    assert torch.allclose(mlp(x), before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_in_host_memory_hold_nothing_else(dtype: torch.dtype) -> None:
    several = torch.randn(8, 3).to(dtype)
    own = torch.zeros(4, 3, dtype=dtype)
    (found,) = HostCopies().begin([VisionFeatures(several[4:], (own,), (2, 2), (1, 4, 4))]).result()
    assert torch.equal(found.pooled, several[4:])
    assert found.pooled.untyped_storage().nbytes() == found.pooled.nbytes
    assert found.deepstack[0] is own


def test_what_was_computed_before_a_picture_broke_is_kept(base: Base, settings: Make, tmp_path: Path) -> None:
    questions = []
    for i in range(2 * PICTURES_AT_ONCE + 1):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (32, 32), (i, 2 * i, 3 * i)).save(path)
        questions.append(Question(path.name, path, file_sha256(path), "What is it?", ("a", "b", "c", "d")))
    cache = VisionCache(base.model, base.vision.processor, 1.0)
    broken = replace(questions[-1], image=tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"gone\.png"):
        cache.fill([*questions[:-1], broken], settings().image)
    assert len(cache.kept) == 2 * PICTURES_AT_ONCE
    assert cache.nbytes == sum(features.nbytes for features in cache.kept.values())
    cache.fill(questions, settings().image)
    assert (cache.misses, len(cache.kept)) == (len(questions), len(questions))
