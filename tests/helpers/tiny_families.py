"""Tiny random models of the families that the generic path is held to: 17 of them, of 14 kinds.

Each has every kind of layer of its family: sliding and full attention, linear attention, experts, shared
keys, per-layer embeddings, DeepStack, tiles, row breaks. `inputs` are one picture's tensors as its processor
makes them.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IMAGE = 5  # id of the image token
VOCAB = 64
START, END = 3, 4  # ids around a picture
Config = dict[str, Any]


def rope(**more: Any) -> Config:
    return {"rope_type": "default", "rope_theta": 10000.0, **more}


def vision(**more: Any) -> Config:
    """A tower of the Qwen-VL kind."""
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        **more,
    }


def encoder(**more: Any) -> Config:
    """A tower of the SigLIP kind."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
        **more,
    }


def text(**more: Any) -> Config:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


QUARTER = rope(mrope_section=[1, 1, 0], mrope_interleaved=True, partial_rotary_factor=0.25)
INTERLEAVED = rope(mrope_section=[3, 3, 2], mrope_interleaved=True)
GDN = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 6,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
GEMMA_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 6,
    "audio_token_id": 7,
    "boi_token_id": START,
    "eoi_token_id": END,
    "audio_config": None,
}
SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2}
THREE_TO_ONE = {"sliding_window": 12, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
GEMMA_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pooling_kernel_size": 2,
    "patch_size": 4,
    "position_embedding_size": 64,
}


def qwen3_5(**more: Any) -> Config:
    return {"text_config": text(rope_parameters=QUARTER, **GDN, **more), "vision_config": vision(), **IDS}


def gemma4(**more: Any) -> Config:
    inner = text(**SLIDING, final_logit_softcapping=30.0, **more)
    return {"text_config": inner, "vision_config": GEMMA_TOWER, **GEMMA_IDS}


def glm4v() -> Config:
    inner = text(rope_parameters=rope(mrope_section=[3, 3, 2], partial_rotary_factor=1.0), hidden_size=64)
    del inner["head_dim"]
    marks = {"image_token_id": IMAGE, "video_token_id": 6, "image_start_token_id": START}
    tower = vision(out_hidden_size=64, image_size=32)
    return {"text_config": inner, "vision_config": tower, "image_end_token_id": END, **marks}


MODELS: dict[str, tuple[str, Callable[[], Config]]] = {
    "qwen3_vl": (
        "qwen3_vl",
        lambda: {
            "text_config": text(rope_parameters=INTERLEAVED),
            "vision_config": vision(deepstack_visual_indexes=[0]),
            **IDS,
        },
    ),
    "qwen3_vl_moe": (
        "qwen3_vl_moe",
        lambda: {
            "text_config": text(rope_parameters=INTERLEAVED, **EXPERTS),
            "vision_config": vision(deepstack_visual_indexes=[0]),
            **IDS,
        },
    ),
    "qwen3_5": ("qwen3_5", qwen3_5),
    "qwen3_5_moe": ("qwen3_5_moe", lambda: qwen3_5(**EXPERTS, shared_expert_intermediate_size=24)),
    "glm4v": ("glm4v", glm4v),
    "exaone4_5": (
        "exaone4_5",
        lambda: {
            "text_config": text(
                model_type="exaone4", sliding_window=12, sliding_window_pattern=4, rope_parameters=rope()
            ),
            "vision_config": vision(fullatt_block_indexes=[1], window_size=16, num_key_value_heads=2),
            "image_token_id": IMAGE,
            "video_token_id": 6,
        },
    ),
    "hyperclovax": (
        "hyperclovax_vision_v2",
        lambda: {
            "text_config": text(rope_parameters=rope()),
            "vision_config": vision(fullatt_block_indexes=[1], window_size=16),
            "image_token_id": IMAGE,
            "video_token_id": 6,
        },
    ),
    "gemma3": (
        "gemma3",
        lambda: {
            "text_config": text(**THREE_TO_ONE, query_pre_attn_scalar=16),
            "vision_config": encoder(),
            "mm_tokens_per_image": 16,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
        },
    ),
    "gemma4_e": (
        "gemma4",
        lambda: gemma4(
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, num_kv_shared_layers=2
        ),
    ),
    "gemma4_31b": (
        "gemma4",
        lambda: gemma4(
            hidden_size_per_layer_input=0, attention_k_eq_v=True, use_bidirectional_attention="vision"
        ),
    ),
    "gemma4_unified": (
        "gemma4_unified",
        lambda: {
            "text_config": text(**SLIDING, final_logit_softcapping=30.0),
            "vision_config": {
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 32,
                "mm_posemb_size": 64,
                "output_proj_dims": 32,
            },
            **GEMMA_IDS,
        },
    ),
    "internvl": (
        "internvl",
        lambda: {
            "text_config": text(model_type="qwen3"),
            "vision_config": encoder(image_size=(32, 32), patch_size=(4, 4)),
            "image_token_id": IMAGE,
            "image_seq_length": 16,
            "downsample_ratio": 0.5,
        },
    ),
    "mistral3": (
        "mistral3",
        lambda: {
            "text_config": text(
                model_type="ministral3",
                rope_parameters=rope(llama_4_scaling_beta=0.1, original_max_position_embeddings=4096),
            ),
            "vision_config": encoder(model_type="pixtral", head_dim=16),
            "image_token_index": IMAGE,
            "spatial_merge_size": 2,
        },
    ),
    "llava_onevision": (
        "llava_onevision",
        lambda: {
            "text_config": text(model_type="qwen3"),
            "vision_config": encoder(model_type="siglip_vision_model", image_size=16, vision_use_head=False),
            "image_token_index": IMAGE,
            "video_token_index": 6,
            "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16], [32, 32]],
        },
    ),
    "minicpmv4_6": (
        "minicpmv4_6",
        lambda: {
            "text_config": text(model_type="qwen3_5_text", rope_parameters=QUARTER, **GDN),
            "vision_config": encoder(num_hidden_layers=3, insert_layer_id=1),
            "insert_layer_id": 1,
            "image_token_id": IMAGE,
            "video_token_id": 6,
        },
    ),
    "smolvlm": (
        "smolvlm",
        lambda: {
            "text_config": text(model_type="llama"),
            "vision_config": encoder(),
            "image_token_id": IMAGE,
            "scale_factor": 2,
        },
    ),
    "muse_glimmer": (
        "muse_glimmer",
        lambda: {
            "text_config": text(**THREE_TO_ONE),
            "vision_config": {
                "patch_size": 4,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
                "max_position_embeddings": 64,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
            },
            "image_token_id": IMAGE,
            "video_token_id": 6,
            "out_hidden_size": 128,
            "projector_hidden_size": 32,
        },
    ),
}
NAMES = list(MODELS)
ONE_SIZE = ("gemma3", "internvl", "smolvlm")  # every picture is scaled to the same square


def tiny_config(name: str, **top: Any) -> Any:
    """The configuration of one of `NAMES`; `top` are values of its own level, `text_config` merged into."""
    kind, build = MODELS[name]
    values = build()
    inner = top.pop("text_config", {})
    values["text_config"] |= inner
    return CONFIG_MAPPING[kind](**(values | top))


def tiny_model(config: Any) -> Any:
    """A random model whose weights are large enough that every layer matters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    auto: Any = AutoModelForImageTextToText
    model = auto.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # a small short convolution leaves keys of length 0, and bringing them to length one
                # multiplies their rounding
                parameter.normal_(0, 0.75 if "conv1d" in name else 0.15)
    return model.eval().requires_grad_(False)


def inputs(name: str, size: tuple[int, int], seed: int) -> dict[str, torch.Tensor]:
    """One picture of random pixels: rows, columns; multiples of 16."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    height, width = size
    rows, columns = height // 4, width // 4
    if name in ("gemma3", "internvl"):
        return {"pixel_values": random(1, 3, 32, 32)}
    if name.startswith("gemma4"):
        most, numbers = (16, 3 * 64) if name == "gemma4_unified" else (64, 3 * 16)
        if name == "gemma4_unified":  # its patches are joined already
            rows, columns = rows // 2, columns // 2
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.full((1, most, 2), -1)
        places[0, : rows * columns] = torch.stack([x.flatten(), y.flatten()], -1)
        pixels = torch.zeros(1, most, numbers)
        pixels[0, : rows * columns] = random(rows * columns, numbers)
        return {"pixel_values": pixels, "image_position_ids": places}
    if name == "mistral3":
        pixels = torch.zeros(1, 3, 32, 32)
        pixels[:, :, :height, :width] = random(1, 3, height, width)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    if name == "llava_onevision":
        tiles = 1 + (height // 16) * (width // 16)
        return {"pixel_values": random(1, tiles, 3, 16, 16), "image_sizes": torch.tensor([[height, width]])}
    if name == "minicpmv4_6":
        return {
            "pixel_values": random(1, 3, 4, 4 * rows * columns),
            "target_sizes": torch.tensor([[rows, columns]]),
        }
    if name == "smolvlm":
        return {"pixel_values": random(1, 1, 3, 32, 32)}
    return {
        "pixel_values": random(rows * columns, 3 * 2 * 16),
        "image_grid_thw": torch.tensor([[1, rows, columns]]),
    }
