"""What differs between the vision-language models that may be trained here: one file a kind, data in it.

A model has two plugs (vqa/plugs.py). Pictures: `prepare` one on the host, `features` of many on the device;
vqa/tower.py for Qwen-VL's tower, vqa/generic_pictures.py for any. Text: `batch`, `logits` and the prefix's
states; vqa/own_text.py for Qwen-VL's decoder, vqa/generic_text.py for any. Which of them a model gets stands
in its `Family`; one that no file names gets the generic ones, with what can be read from its structure.
"""

from typing import Any

from vqa.families import areas, gemma, qwen3_5, qwen_vl, tiles
from vqa.families.family import Family

FAMILIES = (
    qwen_vl.FAMILY,
    qwen_vl.EXPERTS,
    qwen3_5.FAMILY,
    gemma.GEMMA3,
    gemma.GEMMA4,
    gemma.UNIFIED,
    tiles.INTERNVL,
    tiles.ONEVISION,
    tiles.SMOLVLM,
    tiles.MINICPM,
    areas.EXAONE,
    areas.HYPERCLOVA,
    areas.GLM,
    areas.MISTRAL,
    areas.MUSE,
)


def family_of(config: Any) -> Family:
    """The family of a model's configuration; one without own arithmetic or knowledge for unknown types."""
    kind = config.model_type
    return next((f for f in FAMILIES if kind in f.types), Family(types=(kind,)))
