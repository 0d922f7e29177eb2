"""Whole tiny checkpoints as a hub would hold them: random weights, tokenizer, processor, chat template.

The tokenizer is the embedded model's, with the family's own special tokens; the templates are short ones in
the family's manner. So everything between a question and its letter logits is the product's own.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.helpers.tiny_families import tiny_config, tiny_model

ASSET = Path(__file__).parents[2] / "vqa/assets/tiny"
VOCAB = 2880
TURNS = (  # a system line, turns with marks, an empty thought where the template knows thinking
    "{{%- for m in messages -%}}{begin}{{{{ m['role'] }}}}\n{{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{end}\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}{begin}assistant\n{think}{{% endif %}}"
)
THINK = (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)


@dataclass(frozen=True)
class Checkpoint:
    """What is special about a family's checkpoint.

    Args:
        tokens: Named special tokens of its tokenizer.
        image: What its template writes for a picture.
        processor: preprocessor_config.json.
        whole: processor_config.json beside the class.
        begin: Of a turn, and `end`.
        think: Written after the generation prompt.
        top: Values of the model's configuration, {name} standing for a special token's id.
    """

    tokens: dict[str, str]
    image: str
    processor: dict[str, Any]
    whole: dict[str, Any] = field(default_factory=dict)
    begin: str = "<|im_start|>"
    end: str = "<|im_end|>"
    think: str = ""
    top: dict[str, Any] = field(default_factory=dict)


QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
QWEN_PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 4096},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
GEMMA_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "video_token": "<|video|>",
}
GEMMA_PIXELS = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
GEMMA_TOP = {
    "image_token_id": "image_token",
    "boi_token_id": "boi_token",
    "eoi_token_id": "eoi_token",
    "audio_token_id": "audio_token",
    "video_token_id": "video_token",
}
QWEN_TOP = {
    "image_token_id": "image_token",
    "video_token_id": "video_token",
    "vision_start_token_id": "vision_bos_token",
    "vision_end_token_id": "vision_eos_token",
}
CHECKPOINTS = {
    "qwen3_5": Checkpoint(
        QWEN_TOKENS, "<|vision_start|><|image_pad|><|vision_end|>", QWEN_PIXELS, think=THINK, top=QWEN_TOP
    ),
    "gemma3": Checkpoint(
        tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        image="<start_of_image>",
        processor={
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 32, "width": 32},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        whole={"image_seq_length": 16},
        begin="<start_of_turn>",
        end="<end_of_turn>",
        top={
            "image_token_index": "image_token",
            "boi_token_index": "boi_token",
            "eoi_token_index": "eoi_token",
        },
    ),
    "gemma4_e": Checkpoint(
        GEMMA_TOKENS,
        "<|image|>",
        {"image_processor_type": "Gemma4ImageProcessor", **GEMMA_PIXELS},
        begin="<|turn>",
        end="<turn|>",
        top=GEMMA_TOP,
    ),
    "gemma4_unified": Checkpoint(
        GEMMA_TOKENS,
        "<|image|>",
        {"image_processor_type": "Gemma4UnifiedImageProcessor", **GEMMA_PIXELS},
        begin="<|turn>",
        end="<turn|>",
        top=GEMMA_TOP,
    ),
    "internvl": Checkpoint(
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        image="<IMG_CONTEXT>\n",
        processor={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 32, "width": 32},
            "crop_to_patches": True,
            "max_patches": 4,
        },
        whole={"image_seq_length": 16},
        top={"image_token_id": "context_image_token"},
    ),
    "llava_onevision": Checkpoint(
        tokens={"image_token": "<image>", "video_token": "<video>"},
        image="<image>\n",
        processor={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 16, "width": 16},
            "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16], [32, 32]],
        },
        whole={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        top={"image_token_index": "image_token", "video_token_index": "video_token"},
    ),
    "smolvlm": Checkpoint(
        tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        image="<image>",
        processor={
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 64},
            "max_image_size": {"longest_edge": 32},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        whole={"image_seq_len": 16},
        end="<end_of_utterance>",
        top={"image_token_id": "image_token"},
    ),
    "glm4v": Checkpoint(
        tokens={
            "image_token": "<|image|>",
            "video_token": "<|video|>",
            "image_start_token": "<|begin_of_image|>",
            "image_end_token": "<|end_of_image|>",
            "video_start_token": "<|begin_of_video|>",
            "video_end_token": "<|end_of_video|>",
        },
        image="<|begin_of_image|><|image|><|end_of_image|>",
        processor={**QWEN_PIXELS, "image_processor_type": "Glm4vImageProcessor"},
        begin="<|role|>",
        end="",
        think=THINK,
        top={
            "image_token_id": "image_token",
            "video_token_id": "video_token",
            "image_start_token_id": "image_start_token",
            "image_end_token_id": "image_end_token",
        },
    ),
    "exaone4_5": Checkpoint(
        tokens=QWEN_TOKENS,
        image="<|vision_start|><|image_pad|><|vision_end|>",
        processor=QWEN_PIXELS,
        begin="[|role|]",
        end="[|endofturn|]",
        think=THINK,
        top={"image_token_id": "image_token", "video_token_id": "video_token"},
    ),
    "mistral3": Checkpoint(
        tokens={"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
        image="[IMG]",
        processor={
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 64},
            "patch_size": {"height": 4, "width": 4},
        },
        whole={"patch_size": 4, "spatial_merge_size": 2},
        top={"image_token_index": "image_token"},
    ),
    "minicpmv4_6": Checkpoint(
        tokens={
            "image_token": "<unk_image>",
            "video_token": "<unk_video>",
            "image_start_token": "<im_s>",
            "image_end_token": "<im_e>",
            "slice_start_token": "<sl_s>",
            "slice_end_token": "<sl_e>",
            "image_id_start_token": "<id_s>",
            "image_id_end_token": "<id_e>",
        },
        image="<unk_image>",
        processor={
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            "patch_size": 4,
            "scale_resolution": 32,
            "max_slice_nums": 4,
        },
        think=THINK,
        top={"image_token_id": "image_token", "video_token_id": "video_token"},
    ),
}


def write_folder(name: str, folder: Path) -> Path:
    """Write the checkpoint of one of `CHECKPOINTS`."""
    made = CHECKPOINTS[name]
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_file=str(ASSET / "tokenizer.json"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=made.tokens,
    )
    tokenizer.chat_template = TURNS.format(begin=made.begin, end=made.end, image=made.image, think=made.think)
    tokenizer.save_pretrained(folder)
    ids = {key: tokenizer.convert_tokens_to_ids(made.tokens[token]) for key, token in made.top.items()}
    inner: dict[str, Any] = {"vocab_size": VOCAB}
    if name == "gemma4_e":
        inner["vocab_size_per_layer_input"] = VOCAB
    tiny_model(tiny_config(name, text_config=inner, **ids)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(made.processor))
    (folder / "processor_config.json").write_text(json.dumps(made.whole))
    return folder
