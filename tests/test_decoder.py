"""The loop over decoder layers: recomputing, prefixes outside the row and foreign layers change no result."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_packing import (
    FAMILIES,
    IMAGE,
    LANGUAGE,
    PAD,
    VOCAB,
    gradients,
    keep_norms_in_own_type,
    make_suffixes,
)

from vqa.decoder import Recompute, answer_logits, prefix_key_values
from vqa.packing import pack, pack_prefix, pad

CPU = torch.device("cpu")
SHAPES: list[tuple[int, int, int] | None] = [(2, 2, 5), (3, 2, 9), (2, 2, 4)]
PREFIX = torch.randint(20, VOCAB, (13,), generator=torch.Generator().manual_seed(2))


def adapted(
    family: str, seed: int = 0, b_size: float = 1.0, dtype: torch.dtype = torch.float32, **more: Any
) -> Any:
    """A frozen random model with a random adapter on it; `b_size` makes B smaller than PEFT draws it."""
    torch.manual_seed(seed)
    base = FAMILIES[family]()
    base.requires_grad_(False)
    config = {"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE, "init_lora_weights": False} | more
    get_peft_model(base, LoraConfig(**config))
    for name, parameter in base.named_parameters():
        if "lora_B" in name:
            parameter.data *= b_size
    if dtype == torch.float64:
        keep_norms_in_own_type(base)
    return base.to(dtype)


# B as PEFT draws it makes gradients so sensitive that float32 itself is off by more than 1e-5 on some CPUs
exactly = pytest.mark.parametrize(
    ("b_size", "dtype", "tolerance"),
    [(0.1, torch.float32, 1e-5), (1.0, torch.float64, 1e-11)],
    ids=["float32", "float64"],
)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> bool:
    return found.keys() == expected.keys() and all(
        torch.linalg.norm(found[name] - expected[name]) <= tolerance * torch.linalg.norm(expected[name])
        for name in expected
    )


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


def half_precision_step(
    device: torch.device, dtype: torch.dtype, way: Recompute | None, b_size: float, seed: int
) -> torch.Tensor:
    """All gradients of one step in one vector, on the CPU; `way` None: transformers' own forward."""
    model = adapted("qwen3_vl", seed, b_size)
    suffixes = make_suffixes(model, SHAPES)
    for parameter in model.parameters():
        # adapters stay in float32
        parameter.data = parameter.data.to(device, None if parameter.requires_grad else dtype)
    model.model.language_model.rotary_emb.to(device)
    if way is None:
        plain = pad(PREFIX, suffixes, IMAGE, PAD, device)
        logits = model(**plain, use_cache=False).logits[:, -1]
    else:
        logits = answer_logits(model, pack(PREFIX, suffixes, IMAGE, PAD, device).row, None, way)
    found = gradients(model, logits.float().square().mean())
    return torch.cat([gradient.flatten().cpu().double() for gradient in found.values()])


def check_distance_to_float32(device: torch.device, way: Recompute, b_size: float) -> None:
    """Half precision rounds; ours may round no further from float32 than the padded batch does.

    In the geometric mean of eight random models: one alone is off by a quarter either way.
    """
    ratios = []
    for seed in range(8):
        exact = half_precision_step(CPU, torch.float32, None, b_size, seed)
        plain, ours = (
            half_precision_step(device, torch.bfloat16, how, b_size, seed) - exact for how in (None, way)
        )
        ratios.append(torch.linalg.norm(ours) / torch.linalg.norm(plain))
    assert torch.stack(ratios).log().mean().exp() <= 1.15


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
