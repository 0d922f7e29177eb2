"""Families that cut a picture into square tiles: InternVL, LLaVA-OneVision (VARCO 2.0), SmolVLM, MiniCPM."""

from typing import Any

from vqa.model.families.family import QWEN_LINEAR, tested
from vqa.model.families.qwen3_5 import MIXERS

QWEN_TEXT = ("qwen2", "qwen3")
MOST_TILES = 12  # of InternVL's training
INTERNVL_TILE = 256  # visual tokens of a tile of 448 x 448 pixels
SMOLVLM_TILE = 81  # of 384 x 384, SmolVLM2-2.2B
MINICPM_TILE = 64  # of 448 x 448


def internvl_tiles(_: Any, least: int, most: int | None) -> dict[str, Any]:
    """As many tiles as the budget holds; above one, a small copy of the whole picture comes on top."""
    if most is None:
        return {}
    tiles = most // INTERNVL_TILE
    return {"crop_to_patches": tiles > 1, "min_patches": 1, "max_patches": max(1, min(MOST_TILES, tiles - 1))}


def smolvlm_tiles(processor: Any, least: int, most: int | None) -> dict[str, Any]:
    """The longer side in tiles, n x n and a copy of the whole picture at most; one tile if no more fit."""
    if most is None:
        return {}
    side = processor.max_image_size["longest_edge"]
    n = max((n for n in range(1, 9) if (n * n + 1) * SMOLVLM_TILE <= most), default=1)
    return {"size": {"longest_edge": n * side}, "do_image_splitting": n > 1}


def minicpm_slices(_: Any, least: int, most: int | None) -> dict[str, Any]:
    """As many slices as the budget holds beside the whole picture."""
    if most is None:
        return {}
    return {"max_slice_nums": max(1, min(9, most // MINICPM_TILE - 1))}


INTERNVL = tested(types=("internvl",), packed_text=QWEN_TEXT, budget=internvl_tiles)
# the model itself counts tiles by its configuration's grids
ONEVISION = tested(types=("llava_onevision",), packed_text=QWEN_TEXT)
SMOLVLM = tested(types=("smolvlm",), budget=smolvlm_tiles)
MINICPM = tested(
    types=("minicpmv4_6",),
    packed_text=("qwen3_5_text",),
    linear=f"{QWEN_LINEAR}|{MIXERS}",
    attention=f"q_proj|k_proj|v_proj|o_proj|{MIXERS}",
    budget=minicpm_slices,
    looks_at_many=False,  # its tower takes pictures as one long row
)
