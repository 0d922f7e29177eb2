"""The families of vision-language models that may be trained here, and which one a configuration gets.

A model has two plugs (vqa/model/plugs.py). Pictures: `prepare` one on the host, `features` of many on the
device; vqa/model/vision/tower.py for Qwen-VL's tower, vqa/model/vision/generic_pictures.py for any. Text:
`batch`, `logits` and the prefix's states; vqa/model/own_text.py for text types that our own decoder computes,
vqa/model/generic_text.py for any. Which of them a model gets stands in its `Family`; one that no file names
gets the generic ones, with what can be read from its structure.
"""

from typing import Any

from vqa.model.families.areas import EXAONE, GLM, HYPERCLOVA, MISTRAL, MUSE
from vqa.model.families.family import Family
from vqa.model.families.gemma import GEMMA3, GEMMA4, UNIFIED
from vqa.model.families.qwen3_5 import FAMILY as QWEN3_5
from vqa.model.families.qwen_vl import EXPERTS
from vqa.model.families.qwen_vl import FAMILY as QWEN_VL
from vqa.model.families.tiles import INTERNVL, MINICPM, ONEVISION, SMOLVLM

FAMILIES = (
    QWEN_VL,
    EXPERTS,
    QWEN3_5,
    GEMMA3,
    GEMMA4,
    UNIFIED,
    INTERNVL,
    ONEVISION,
    SMOLVLM,
    MINICPM,
    EXAONE,
    HYPERCLOVA,
    GLM,
    MISTRAL,
    MUSE,
)


def family_of(config: Any, device_map: str = "single") -> Family:
    """The family of a model's configuration; one without own arithmetic or knowledge for unknown types.

    Args:
        config: Of a model.
        device_map: `env.device_map`; a model on several GPUs is computed by transformers' forward.
    """
    kind = config.model_type
    found = next((f for f in FAMILIES if kind in f.types), Family(types=(kind,)))
    return found if device_map == "single" else found.by_forward()
