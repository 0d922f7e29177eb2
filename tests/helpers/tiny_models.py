"""Small random models of both families, packed questions for them, and their gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vqa.model.packing import Suffix
from vqa.model.vision.features import VisionFeatures

IMAGE, START, END, PAD, VOCAB = 7, 8, 9, 0, 300
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
}
TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "video_token_id": 10,
}
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def tiny_qwen3() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 48,
        "patch_size": 8,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = TEXT | {"head_dim": 12, "rope_parameters": rope}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **TOKENS))


def tiny_qwen2_5() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 48,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    text = TEXT | {"rope_parameters": rope}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **TOKENS)
    )


FAMILIES = {"qwen3_vl": tiny_qwen3, "qwen2_5_vl": tiny_qwen2_5}


def features(model: Any, rows: int, columns: int, generator: torch.Generator) -> VisionFeatures:
    config = model.config.vision_config
    grid = (1, rows * 2, columns * 2)
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    pixels = torch.randn(grid[1] * grid[2], width, generator=generator).to(model.dtype)
    with torch.no_grad():
        out = model.model.get_image_features(pixels, torch.tensor([grid]), return_dict=True)
    taps = getattr(out, "deepstack_features", None) or []
    return VisionFeatures(out.pooler_output[0], tuple(tap[0] for tap in taps), (rows, columns), grid)


# rows and columns of each picture, then text tokens; None: without a picture
Shapes = Sequence[tuple[int, ...] | None]


def make_suffixes(model: Any, shapes: Shapes) -> list[Suffix]:
    """One suffix per (rows, columns, ..., text tokens); None: a question without its picture."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i, shape in enumerate(shapes):
        *sides, length = shape or (6,)
        text = torch.randint(20, VOCAB, (length,), generator=generator)
        grids = list(zip(sides[::2], sides[1::2], strict=True))
        found = [features(model, rows, columns, generator) for rows, columns in grids]
        pictures = [torch.tensor([START, *[IMAGE] * (rows * columns), END]) for rows, columns in grids]
        made.append(Suffix(torch.cat([*pictures, text]), tuple(found), i % 4, 4))
    return made


def trained_case(
    family: str, shapes: Shapes, prefix_tokens: int, b_size: float = 0.1, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any, torch.Tensor, list[Suffix]]:
    """A frozen base, the same with a random adapter on it, a prefix and suffixes.

    PEFT draws B up to 0.6, far above trained ones: gradients are then so sensitive that transformers' own
    float32 step is up to 1.5e-5 off its float64 step. `b_size` makes B smaller; 1.0 leaves it as it is.
    """
    torch.manual_seed(0)
    base = FAMILIES[family]().to(dtype)
    base.requires_grad_(False)
    suffixes = make_suffixes(base, shapes)
    prefix = torch.randint(20, VOCAB, (prefix_tokens,), generator=torch.Generator().manual_seed(2))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE, init_lora_weights=False)
    model = get_peft_model(base, config).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= b_size
    return base, model, prefix, suffixes


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def keep_norms_in_own_type(model: Any) -> None:
    """Let a float64 model be float64 throughout."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(norm_in_own_type, module)


def norm_in_own_type(module: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm as transformers computes it, but for its round trip through float32."""
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    normed: torch.Tensor = module.weight * (x * scale)
    return normed
