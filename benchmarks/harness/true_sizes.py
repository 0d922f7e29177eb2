"""The structure of models as published, for random weights of the true size.

Sources: the model cards, and the defaults of transformers' configurations where they are a checkpoint's.
"""

from typing import Any

QWEN3 = {"model_type": "qwen3", "vocab_size": 152064, "head_dim": 128, "max_position_embeddings": 40960}
INTERNVIT = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
INTERNVL = {"image_seq_length": 256, "downsample_ratio": 0.5, "tie_word_embeddings": False}
SIGLIP2 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "image_size": 384,
    "patch_size": 16,
    "vision_use_head": False,
}
QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
QWEN3_14B = {
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}
QWEN3_5_ROPE = {
    "rope_type": "default",
    "rope_theta": 1e7,
    "mrope_section": [11, 11, 10],
    "mrope_interleaved": True,
    "partial_rotary_factor": 0.25,
}

GLM_ROPE = {
    "rope_type": "default",
    "rope_theta": 5e5,
    "mrope_section": [8, 12, 12],
    "partial_rotary_factor": 0.5,
}


def qwen3_5(hidden: int, ffn: int, layers: int, heads: int, values: int) -> dict[str, Any]:
    """Qwen3.5, 3.6 and 3.8: `values` heads of Gated DeltaNet."""
    return {
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 4,
            "linear_num_value_heads": values,
            "rope_parameters": QWEN3_5_ROPE,
        },
        "vision_config": {"out_hidden_size": hidden},
    }


GEMMA_LAYERS = ["sliding_attention"] * 5 + ["full_attention"]
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_4b": ("qwen3_5", qwen3_5(2560, 9216, 32, 16, 32) | {"tie_word_embeddings": True}),
    "qwen3_5_9b": ("qwen3_5", qwen3_5(4096, 12288, 32, 16, 32)),
    "qwen3_8_27b": ("qwen3_5", qwen3_5(5120, 17408, 64, 24, 48)),  # as Qwen3.6-27B's card
    "gemma4_e4b": (
        "gemma4",
        {
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 42,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "layer_types": GEMMA_LAYERS * 7,
                "num_kv_shared_layers": 18,
                "final_logit_softcapping": 30.0,
            },
            "vision_config": {},
            "audio_config": None,
        },
    ),
    "gemma4_12b": (
        "gemma4_unified",
        {
            "text_config": {
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "num_hidden_layers": 48,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "layer_types": GEMMA_LAYERS * 8,
                "final_logit_softcapping": 30.0,
            },
            "vision_config": {},
            "audio_config": None,
        },
    ),
    "internvl3_5_8b": (
        "internvl",
        {"text_config": QWEN3 | QWEN3_8B, "vision_config": INTERNVIT, **INTERNVL},
    ),
    "internvl3_5_14b": (
        "internvl",
        {"text_config": QWEN3 | QWEN3_14B, "vision_config": INTERNVIT, **INTERNVL},
    ),
    "varco2_14b": ("llava_onevision", {"text_config": QWEN3 | QWEN3_14B, "vision_config": SIGLIP2}),
    "exaone4_5_33b": (
        "exaone4_5",
        {
            "text_config": {
                "model_type": "exaone4",
                "vocab_size": 153600,
                "hidden_size": 5120,
                "intermediate_size": 27392,
                "num_hidden_layers": 64,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
            },
            "vision_config": {"out_hidden_size": 5120, "hidden_size": 2048, "intermediate_size": 5120},
        },
    ),
    "smolvlm2_2b": (
        "smolvlm",
        {
            "text_config": {
                "model_type": "llama",
                "vocab_size": 49280,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
            },
            "vision_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
            },
            "scale_factor": 3,
        },
    ),
    "glm4_6v_flash": (
        "glm4v",
        {"text_config": {"num_key_value_heads": 8, "rope_parameters": GLM_ROPE}, "vision_config": {}},
    ),
}


def true_config(name: str, **ids: int) -> Any:
    """The configuration of one of `SIZES`, with the ids of special tokens."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, values = SIZES[name]
    return CONFIG_MAPPING[kind](**(values | ids))


def few_layers(name: str, layers: int, **ids: int) -> Any:
    """The same with that many text layers and two of the tower's, for a forward on a CPU.

    Args:
        name: One of `SIZES`.
        layers: A multiple of the period of its kinds of layers.
        ids: Of special tokens.
    """
    kind, values = SIZES[name]
    text = values["text_config"] | {"num_hidden_layers": layers}
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][-layers:]
    if "num_kv_shared_layers" in text:
        text["num_kv_shared_layers"] = layers // 2
    depth = "depth" if kind in ("qwen3_5", "exaone4_5", "glm4v") else "num_hidden_layers"
    vision = values["vision_config"] | ({} if kind == "gemma4_unified" else {depth: 2})
    if kind == "exaone4_5":
        vision["fullatt_block_indexes"] = [1]
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**(values | {"text_config": text, "vision_config": vision} | ids))
