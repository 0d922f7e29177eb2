"""Qwen3.5, 3.6, 3.8: three layers of Gated DeltaNet, then one of gated attention; Qwen3-VL's tower.

Those without experts go through our own decoder, on a GPU with flash-linear-attention's kernels.
"""

from vqa.model.families.family import QWEN_LINEAR, pixel_budget, tested

MIXERS = "in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|out_proj"
FAMILY = tested(
    types=("qwen3_5", "qwen3_5_moe"),
    packed_text=("qwen3_5_text",),
    own_tower=True,
    linear=f"{QWEN_LINEAR}|{MIXERS}",
    attention=f"q_proj|k_proj|v_proj|o_proj|{MIXERS}",
    budget=pixel_budget,
    no_vllm="vLLM misplaces adapters on Gated DeltaNet (its issue 49354)",
)
