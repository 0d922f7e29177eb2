"""Families that scale a picture to an area: EXAONE 4.5, HyperCLOVA X, GLM-4V, Mistral 3, Muse Glimmer."""

import math
from typing import Any

from vqa.model.families.family import pixel_budget, tested


def glm_pixels(processor: Any, least: int, most: int | None) -> dict[str, Any]:
    """GLM counts the pixels of both frames of a patch."""
    size = pixel_budget(processor, least, most)["size"]
    return {"size": {name: pixels * processor.temporal_patch_size for name, pixels in size.items()}}


def longest_side(processor: Any, least: int, most: int | None) -> dict[str, Any]:
    """Pixtral's: a square of that many visual tokens, 28 x 28 pixels each, holds the picture."""
    return {} if most is None else {"size": {"longest_edge": 28 * math.isqrt(most)}}


EXAONE = tested(types=("exaone4_5",), budget=pixel_budget)
HYPERCLOVA = tested(
    types=("hyperclovax_vision_v2",),
    budget=pixel_budget,
)
GLM = tested(
    types=("glm4v", "glm46v"),
    linear="q_proj|k_proj|v_proj|o_proj|gate_up_proj|down_proj",
    budget=glm_pixels,
)
MISTRAL = tested(types=("mistral3",), budget=longest_side)
MUSE = tested(
    types=("muse_glimmer",),
)
