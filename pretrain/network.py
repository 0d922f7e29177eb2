"""The tiny model: a real Qwen3-VL of 3.8 million parameters, and a fast forward pass for its pre-training.

`LeanForward` computes what `Qwen3VLForConditionalGeneration.forward` computes, with the same weights, for the
one case that pre-training needs: each text has one 64 x 64 picture, several texts share a picture, and only a
few positions need logits. Shapes are fixed and Python never looks at the data, so that `torch.compile` takes
it in one piece. tests/pretrain/test_pretrain.py holds both against each other.

Shape letters: B texts, N pictures (B = N x questions), T tokens, K answer positions, V vocabulary, H heads,
D head dimension, C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from pretrain.examples import VISUAL_TOKENS
from pretrain.scenes import IMAGE_SIZE
from pretrain.tokenizer import END, IMAGE_PAD, PAD, token_id

PATCH, MERGE = 8, 2  # pixels; patches per side of a visual token
GRID = IMAGE_SIZE // PATCH  # patches per side of the picture
MERGED_GRID = GRID // MERGE  # visual tokens per side
PATCHES = GRID * GRID
HEAD_DIM = 32
ROPE_THETA = 10_000.0
MROPE_SECTION = [6, 5, 5]  # rotary frequencies for time, row, column; half of HEAD_DIM in all

TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 400,
    "num_hidden_layers": 5,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 4096,
}
VISION_SIZES: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 160,
    "intermediate_size": 320,
    "num_heads": 5,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "num_position_embeddings": PATCHES,
    "deepstack_visual_indexes": [1],
}


def make_config(tokenizer: Tokenizer) -> Qwen3VLConfig:
    """The architecture with the tokenizer's special tokens; its vocabulary is a multiple of 64."""
    return Qwen3VLConfig(
        text_config={
            **TEXT_SIZES,
            "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": ROPE_THETA,
                "mrope_section": MROPE_SECTION,
                "mrope_interleaved": True,
            },
            "pad_token_id": token_id(tokenizer, PAD),
            "eos_token_id": token_id(tokenizer, END),
            "bos_token_id": None,
        },
        vision_config={**VISION_SIZES, "out_hidden_size": TEXT_SIZES["hidden_size"]},
        image_token_id=token_id(tokenizer, IMAGE_PAD),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )


def make_model(config: Qwen3VLConfig) -> Qwen3VLForConditionalGeneration:
    """The model with random weights, seeded by `torch.manual_seed`.

    Linear layers start at a deviation of 0.8 / sqrt(inputs), at most 0.06, and embeddings at 0.05: the
    library's 0.02 everywhere is meant for far wider layers.
    """
    model = Qwen3VLForConditionalGeneration(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=min(0.06, 0.8 * module.in_features**-0.5))
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.05)
    model.tie_weights()
    text: Any = config.text_config
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    return model


def patchify(images: Tensor) -> Tensor:
    """Cuts pictures into patches like `Qwen2VLImageProcessor`: each 2 x 2 block together, the frame doubled.

    Args:
        images: (N, 64, 64, 3), 0..255.

    Returns:
        (N, 64, 3 x 2 x 8 x 8), values -1..1.
    """
    pixels = (images.float() / 127.5 - 1).permute(0, 3, 1, 2)
    blocks = pixels.reshape(-1, 3, MERGED_GRID, MERGE, PATCH, MERGED_GRID, MERGE, PATCH)
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # N, block row, column, row, column, C, 1
    return patches.expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(-1, PATCHES, 3 * 2 * PATCH * PATCH)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, computed in float32, returned in the type of `x` (..., T, D)."""
    first, second = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat((-second, first), -1) * sin).to(x.dtype)


class LeanForward(nn.Module):
    """The batched training forward of a `Qwen3VLForConditionalGeneration`, sharing its weights."""

    patch_order: Tensor
    patch_cos: Tensor
    patch_sin: Tensor
    frequencies: Tensor
    axes: Tensor

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        super().__init__()
        self.head: nn.Module = model.lm_head
        self.tower: Any = model.model.visual  # Any: nn.Module's attributes have no useful types
        self.language: Any = model.model.language_model
        vision: Any = model.config.vision_config
        self.image_token = model.config.image_token_id
        self.vision_heads: int = vision.num_heads
        self.vision_head_dim: int = vision.hidden_size // vision.num_heads
        self.deepstack: list[int] = list(vision.deepstack_visual_indexes)

        order = torch.arange(PATCHES).reshape(MERGED_GRID, MERGE, MERGED_GRID, MERGE)
        order = order.permute(0, 2, 1, 3).reshape(-1)
        half = self.vision_head_dim // 2
        speeds = ROPE_THETA ** -(torch.arange(0, half, 2).float() / half)
        angles = torch.cat(((order // GRID)[:, None] * speeds, (order % GRID)[:, None] * speeds), -1)
        angles = torch.cat((angles, angles), -1)
        # which of time, row, column each rotary frequency follows: interleaved, the last one is time again
        axes = torch.tensor([0, 1, 2] * MROPE_SECTION[1] + [0])
        self.register_buffer("patch_order", order, persistent=False)
        self.register_buffer("patch_cos", angles.cos(), persistent=False)
        self.register_buffer("patch_sin", angles.sin(), persistent=False)
        self.register_buffer(
            "frequencies", ROPE_THETA ** -(torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM), persistent=False
        )
        self.register_buffer("axes", axes, persistent=False)

    def forward(self, ids: Tensor, images: Tensor, positions: Tensor) -> Tensor:
        """Logits at a few positions of each text.

        Args:
            ids: (B, T) tokens, padded on the right; each row holds exactly one picture's 16 image tokens.
            images: (N, 64, 64, 3), 0..255; text i belongs to picture i // (B / N).
            positions: (B, K) where to predict from.

        Returns:
            (B, K, V).
        """
        is_image = ids == self.image_token
        visual_index = (is_image.cumsum(1) - 1).clamp(0, VISUAL_TOKENS - 1)
        features, deep = self._see(images)

        def at_image_tokens(visual: Tensor) -> Tensor:
            per_text = visual.repeat_interleave(len(ids) // len(images), 0)
            return per_text.gather(1, visual_index[..., None].expand(-1, -1, visual.shape[-1]))

        here = is_image[..., None]
        hidden = self.language.embed_tokens(ids)
        hidden = torch.where(here, at_image_tokens(features).to(hidden.dtype), hidden)
        cos, sin = self._text_rotation(is_image, visual_index)
        for i, layer in enumerate(self.language.layers):
            hidden = hidden + _attend(layer.self_attn, layer.input_layernorm(hidden), cos, sin)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if i < len(deep):
                hidden = torch.where(here, hidden + at_image_tokens(deep[i]).to(hidden.dtype), hidden)
        answers = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        logits: Tensor = self.head(self.language.norm(answers))
        return logits

    def _see(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Visual tokens (N, 16, hidden) for the input and for the first language layers (DeepStack)."""
        projection = self.tower.patch_embed.proj  # a convolution over single patches is a linear layer
        hidden = F.linear(patchify(images), projection.weight.flatten(1), projection.bias)
        hidden = hidden + self.tower.pos_embed.weight[self.patch_order]
        deep = []
        for i, block in enumerate(self.tower.blocks):
            states = block.attn.qkv(block.norm1(hidden))
            states = states.reshape(-1, PATCHES, 3, self.vision_heads, self.vision_head_dim)
            q, k, v = states.permute(2, 0, 3, 1, 4)
            q, k = rotate(q, self.patch_cos, self.patch_sin), rotate(k, self.patch_cos, self.patch_sin)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            hidden = hidden + block.attn.proj(mixed)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if i in self.deepstack:
                merger = self.tower.deepstack_merger_list[self.deepstack.index(i)]
                deep.append(merger(hidden).reshape(len(images), VISUAL_TOKENS, -1))
        return self.tower.merger(hidden).reshape(len(images), VISUAL_TOKENS, -1), deep

    def _text_rotation(self, is_image: Tensor, visual_index: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the multimodal rotary positions, (B, 1, T, D) each.

        The picture's tokens share one time and count rows and columns from there; the text after it goes on
        behind the picture's longer side, 4 instead of 16 positions later.
        """
        index = torch.arange(is_image.shape[1], device=is_image.device).expand_as(is_image)
        start = is_image.int().argmax(1, keepdim=True)
        text = torch.where(index >= start + VISUAL_TOKENS, index - VISUAL_TOKENS + MERGED_GRID, index)
        time = torch.where(is_image, start, text)
        row = torch.where(is_image, start + visual_index // MERGED_GRID, text)
        column = torch.where(is_image, start + visual_index % MERGED_GRID, text)
        places = torch.stack((time, row, column), -1).float()
        angles = places[..., self.axes] * self.frequencies
        angles = torch.cat((angles, angles), -1)[:, None]
        return angles.cos(), angles.sin()


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Causal self-attention of one language layer, (B, T, hidden) to the same; as many key as query heads."""
    shape = (*hidden.shape[:2], -1, HEAD_DIM)
    q = rotate(attention.q_norm(attention.q_proj(hidden).view(shape)).transpose(1, 2), cos, sin)
    k = rotate(attention.k_norm(attention.k_proj(hidden).view(shape)).transpose(1, 2), cos, sin)
    v = attention.v_proj(hidden).view(shape).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
    output: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return output
