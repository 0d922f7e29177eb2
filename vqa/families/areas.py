"""Families that scale a picture to an area: EXAONE 4.5, HyperCLOVA X, GLM-4V, Mistral 3, Muse Glimmer."""

import math
from typing import Any

from vqa.families.family import QWEN_LINEAR, Family, pixel_budget


def glm_pixels(processor: Any, least: int, most: int) -> dict[str, Any]:
    """GLM counts the pixels of both frames of a patch."""
    size = pixel_budget(processor, least, most)["size"]
    return {"size": {name: pixels * processor.temporal_patch_size for name, pixels in size.items()}}


def longest_side(processor: Any, least: int, most: int) -> dict[str, Any]:
    """Pixtral's: a square of that many visual tokens, 28 x 28 pixels each, holds the picture."""
    return {"size": {"longest_edge": 28 * math.isqrt(most)}}


EXAONE = Family(types=("exaone4_5",), shares_prefix=True, linear=QWEN_LINEAR, budget=pixel_budget)
HYPERCLOVA = Family(
    types=("hyperclovax_vision_v2",), shares_prefix=True, linear=QWEN_LINEAR, budget=pixel_budget
)
GLM = Family(
    types=("glm4v", "glm46v"),
    shares_prefix=True,
    linear="q_proj|k_proj|v_proj|o_proj|gate_up_proj|down_proj",
    budget=glm_pixels,
)
MISTRAL = Family(types=("mistral3",), shares_prefix=True, linear=QWEN_LINEAR, budget=longest_side)
MUSE = Family(types=("muse_glimmer",), shares_prefix=True, linear=QWEN_LINEAR)
