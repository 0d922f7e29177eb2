"""The loop over decoder layers: recomputing, prefixes outside the row and foreign layers change no result."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.tiny_adapters import (
    CPU,
    PREFIX,
    SHAPES,
    adapted,
    check_distance_to_float32,
    close,
    exactly,
)
from tests.helpers.tiny_models import FAMILIES, IMAGE, LANGUAGE, PAD, gradients, make_suffixes
from vqa.model.decoder import Recompute, answer_logits, prefix_key_values
from vqa.model.packing import pack, pack_prefix, pad


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", ["mlp", "layer"])
def test_computing_twice_gives_the_same_gradients(family: str, recompute: Recompute) -> None:
    model = adapted(family)
    row = pack(PREFIX, make_suffixes(model, SHAPES), IMAGE, PAD, CPU).row
    expected = gradients(model, answer_logits(model, row).square().sum())
    found = gradients(model, answer_logits(model, row, None, recompute).square().sum())
    assert close(found, expected, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_computed_before_gives_the_same_logits(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    with torch.no_grad():
        expected = answer_logits(model, pack(PREFIX, suffixes, IMAGE, PAD, CPU).row)
        known = prefix_key_values(model, pack_prefix(PREFIX, CPU))
        row = pack(PREFIX, suffixes, IMAGE, PAD, CPU, outside=True).row
        found = answer_logits(model, row, known)
    assert len(row.ids) == sum(len(s.ids) for s in suffixes)
    assert torch.allclose(found, expected, atol=1e-5)


@exactly
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_with_other_adapters_are_called_as_they_are(
    family: str, b_size: float, dtype: torch.dtype, tolerance: float
) -> None:
    model = adapted(family, 0, b_size, dtype, use_dora=True)
    suffixes = make_suffixes(model, SHAPES)
    plain = pad(PREFIX, suffixes, IMAGE, PAD, CPU)
    expected = gradients(model, model(**plain, use_cache=False).logits[:, -1].square().sum())
    row = pack(PREFIX, suffixes, IMAGE, PAD, CPU).row
    assert close(gradients(model, answer_logits(model, row).square().sum()), expected, tolerance)


def test_a_tap_after_the_last_layer_is_added_before_the_answers_are_taken() -> None:
    model = adapted("qwen3_vl")
    suffixes = make_suffixes(model, SHAPES)
    text = model.model.language_model
    text.layers = text.layers[:2]  # as many layers as DeepStack taps
    plain = pad(PREFIX, suffixes, IMAGE, PAD, CPU)
    with torch.no_grad():
        expected = model(**plain, use_cache=False).logits[:, -1]
        found = answer_logits(model, pack(PREFIX, suffixes, IMAGE, PAD, CPU).row)
    assert torch.allclose(found, expected, atol=1e-5)


# adapters as training leaves them: their share is a few per cent, at most about as large as the base's
@pytest.mark.parametrize("b_size", [0.1, 0.01])
@pytest.mark.parametrize("way", ["nothing", "mlp", "layer"])
def test_a_bfloat16_step_is_as_near_to_float32_as_transformers_own(way: Recompute, b_size: float) -> None:
    check_distance_to_float32(CPU, way, b_size)


def learning_curve(dtype: torch.dtype, plain: bool) -> torch.Tensor:
    """Losses of 12 steps at a small rate from a fresh adapter, which stays in float32."""
    torch.manual_seed(0)
    model = FAMILIES["qwen3_vl"]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.14)  # 1 / sqrt(hidden size): products as large as their inputs
    model.requires_grad_(False).to(dtype)
    suffixes = make_suffixes(model, SHAPES)
    adapted_model = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=LANGUAGE))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    targets, losses = torch.tensor([30, 31, 32]), []
    for _ in range(12):
        if plain:
            inputs = pad(PREFIX, suffixes, IMAGE, PAD, CPU)
            logits = adapted_model(**inputs, use_cache=False).logits[:, -1]
        else:
            logits = answer_logits(model, pack(PREFIX, suffixes, IMAGE, PAD, CPU).row)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_a_young_adapter_learns_in_bfloat16_as_in_float32() -> None:
    exact, ours = learning_curve(torch.float32, plain=True), learning_curve(torch.bfloat16, plain=False)
    lost = (learning_curve(torch.bfloat16, plain=True) - exact).abs().mean()  # by PEFT's layers, to rounding
    assert (ours - exact).abs().mean() <= 0.4 * lost


@exactly
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layer"])
@pytest.mark.parametrize("with_adapters", [False, True])
def test_norm_weights_get_the_padded_batchs_gradients(
    family: str,
    recompute: Recompute,
    with_adapters: bool,
    b_size: float,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = adapted(family, 0, b_size, dtype)
    model.requires_grad_(False)
    for name, parameter in model.model.language_model.named_parameters():
        parameter.requires_grad_("norm" in name or ("lora_" in name and with_adapters))
    suffixes = make_suffixes(model, SHAPES)
    plain = pad(PREFIX, suffixes, IMAGE, PAD, CPU)
    expected = gradients(model, model(**plain, use_cache=False).logits[:, -1].square().sum())
    row = pack(PREFIX, suffixes, IMAGE, PAD, CPU).row
    found = gradients(model, answer_logits(model, row, None, recompute).square().sum())
    assert sum("norm" in name for name in found) == (13 if family == "qwen3_vl" else 7)  # 3 layers, then one
    assert close(found, expected, tolerance)
