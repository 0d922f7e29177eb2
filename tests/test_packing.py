"""The packed row gives exactly what padded rows give: loss and every adapter gradient, both families."""

from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vqa.decoder import answer_logits
from vqa.packing import Suffix, pack, pad, suffix_positions
from vqa.vision_features import VisionFeatures

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


Shapes = list[tuple[int, int, int] | None]  # rows, columns, text tokens; None: without a picture


def make_suffixes(model: Any, shapes: Shapes) -> list[Suffix]:
    """One suffix per (rows, columns, text tokens); None: a question without its picture."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i, shape in enumerate(shapes):
        text = torch.randint(20, VOCAB, (shape[2] if shape else 6,), generator=generator)
        if shape is None:
            made.append(Suffix(text, None, i % 4))
            continue
        found = features(model, shape[0], shape[1], generator)
        picture = torch.full((shape[0] * shape[1],), IMAGE)
        ids = torch.cat([torch.tensor([START]), picture, torch.tensor([END]), text])
        made.append(Suffix(ids, found, i % 4))
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


CASES = {
    "equal lengths": [(2, 2, 5), (2, 2, 5), (2, 2, 5)],
    "nearly equal texts": [(2, 2, 15), (2, 2, 16), (2, 2, 14)],
    "unequal texts": [(2, 2, 5), (2, 2, 11), (2, 2, 3)],
    "unequal pictures": [(2, 2, 5), (3, 4, 7), (4, 2, 5), (2, 5, 4)],
    "a question without its picture": [(2, 3, 5), None, (4, 2, 9)],
    "one question": [(3, 3, 6)],
}


def check_packed_equals_padded(
    base: Any, model: Any, prefix: torch.Tensor, suffixes: list[Suffix], tolerance: float
) -> None:
    """Loss and each adapter gradient of one step, relative."""
    targets = torch.tensor([s.target for s in suffixes]) + 30

    plain = pad(prefix, suffixes, IMAGE, PAD, torch.device("cpu"))
    logits = model(**plain, use_cache=False).logits[:, -1]
    reference_loss = torch.nn.functional.cross_entropy(logits, targets)
    reference = gradients(model, reference_loss)

    packed = pack(prefix, suffixes, IMAGE, PAD, torch.device("cpu"))
    logits = answer_logits(base, packed.row)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    found = gradients(model, loss)

    assert loss.item() == pytest.approx(reference_loss.item(), rel=tolerance)
    assert found.keys() == reference.keys()
    assert len(found) == 2 * 7 * TEXT["num_hidden_layers"]  # A and B of every linear layer
    for name, gradient in reference.items():
        error = torch.linalg.norm(found[name] - gradient)
        assert error <= tolerance * torch.linalg.norm(gradient), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("prefix_tokens", [2, 13])
def test_packed_loss_and_gradients_equal_the_padded_batch(
    family: str, shapes: Shapes, prefix_tokens: int
) -> None:
    check_packed_equals_padded(*trained_case(family, shapes, prefix_tokens), tolerance=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("prefix_tokens", [2, 13])
def test_in_float64_packed_and_padded_differ_by_nothing_but_its_rounding(
    family: str, shapes: Shapes, prefix_tokens: int
) -> None:
    case = trained_case(family, shapes, prefix_tokens, b_size=1.0, dtype=torch.float64)
    keep_norms_in_own_type(case[0])
    check_packed_equals_padded(*case, tolerance=1e-11)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_of_transformers(family: str) -> None:
    model = FAMILIES[family]()
    ids = torch.cat([torch.tensor([30, START]), torch.full((12,), IMAGE), torch.tensor([END, 31, 32])])
    prefix = torch.arange(40, 45)
    whole = torch.cat([prefix, ids])[None]
    expected, _ = model.model.get_rope_index(
        whole, mm_token_type_ids=(whole == IMAGE).int(), image_grid_thw=torch.tensor([[1, 6, 8]])
    )
    assert torch.equal(suffix_positions(ids, IMAGE, (3, 4), len(prefix)), expected[:, 0, len(prefix) :])


def test_a_grid_that_does_not_match_the_placeholders_is_refused() -> None:
    with pytest.raises(ValueError, match="suffix must hold 6 image tokens for grid"):
        suffix_positions(torch.tensor([START, IMAGE, IMAGE, END]), IMAGE, (2, 3), 0)
