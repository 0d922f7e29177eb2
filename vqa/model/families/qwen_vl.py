"""Qwen2.5-VL and Qwen3-VL: decoder and tower by our own arithmetic. Their mixture of experts goes through
transformers' forward, and leaves the experts, which are no linear layers, without an adapter.
"""

from vqa.model.families.family import QWEN_LINEAR, Family, pixel_budget

FAMILY = Family(
    types=("qwen2_5_vl", "qwen3_vl"),
    own_text=("qwen2_5_vl_text", "qwen3_vl_text"),
    shares_prefix=True,
    looks_at_many=True,
    linear=QWEN_LINEAR,
    unquantised=("model.visual", "lm_head"),
    budget=pixel_budget,  # where transformers' forward looks at the pictures
)
EXPERTS = Family(
    types=("qwen3_vl_moe",),
    shares_prefix=True,
    looks_at_many=True,
    linear="q_proj|k_proj|v_proj|o_proj",
    budget=pixel_budget,
    no_vllm="adapters on a mixture of experts",
)
