"""Random adapters on the small models, and how near two results have to be."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.tiny_models import (
    FAMILIES,
    IMAGE,
    LANGUAGE,
    PAD,
    VOCAB,
    gradients,
    keep_norms_in_own_type,
    make_suffixes,
)
from vqa.model.decoder import Recompute, answer_logits
from vqa.model.packing import pack, pad

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
