"""Qwen3.5 on a GPU: flash-linear-attention's kernels against the portable formulas. Run by hand."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.harness.true_sizes import few_layers
from vqa.model.decoder import Recompute
from vqa.model.families.structure import lora_targets, model_class, structure_of
from vqa.model.families.table import family_of
from vqa.model.forward import shared_prefix
from vqa.model.kernels import delta_net
from vqa.model.kernels.delta_net import Tokens, by_chunks, delta_rule, missing_kernel
from vqa.model.kernels.short_conv import row_levels, short_conv
from vqa.model.kernels.tree import tree_layout
from vqa.model.own_text import OwnText
from vqa.model.packing import Suffix
from vqa.model.vision.features import VisionFeatures

pytestmark = pytest.mark.gpu
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LENGTHS = [45, 80, 1, 130]
IMAGE = 5


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.detach().double().cpu()
    return float(torch.linalg.norm(found.detach().double().cpu() - expected) / torch.linalg.norm(expected))


def test_nothing_is_missing() -> None:
    assert missing_kernel(CUDA) == ""


@pytest.mark.parametrize("state", [False, True])
def test_the_kernel_gives_the_portable_result(state: bool) -> None:
    level = row_levels(tree_layout(0, LENGTHS, CUDA), CUDA)[0]
    T, H, V, K = sum(LENGTHS), 16, 32, 128
    made = [randn(T, H, K, seed=0), randn(T, H, K, seed=1), randn(T, V, K, seed=2)]
    made += [-randn(T, V, seed=3).abs() / 8, randn(T, V, seed=4).sigmoid()]
    made += [randn(len(LENGTHS), V, K, K, seed=5) / 8] if state else []
    grads = randn(T, V, K, seed=6), randn(len(LENGTHS), V, K, K, seed=7) / 8
    results = []
    for function in (by_chunks, delta_rule):
        leaves = [x.to(CUDA, torch.bfloat16 if i < 3 else torch.float32) for i, x in enumerate(made)]
        if function is by_chunks:
            leaves = [x.float() for x in leaves]
        leaves = [x.requires_grad_() for x in leaves]
        outside = leaves[5] if state else None
        found, final = function(Tokens(*leaves[:5]), outside, level, True)
        assert final is not None
        given = [grads[0].to(found), grads[1].to(final)]
        results.append([found, final, *torch.autograd.grad([found, final], leaves, given)])
    for i, (expected, got) in enumerate(zip(*results, strict=True)):
        assert off(got, expected) < 2e-2, i  # bfloat16


def test_the_compiled_convolution_gives_the_plain_result() -> None:
    results = []
    for device in (CPU, CUDA):
        level = row_levels(tree_layout(0, LENGTHS, device), device)[0]
        x, before = randn(sum(LENGTHS), 512, seed=0), randn(len(LENGTHS), 3, 512, seed=1)
        leaves = [x.to(device).requires_grad_(), before.to(device).requires_grad_()]
        found = short_conv(leaves[0], leaves[1], randn(512, 4, seed=2).to(device), level)
        results.append([found, *torch.autograd.grad(found, leaves, randn(*x.shape, seed=3).to(device))])
    for expected, got in zip(*results, strict=True):
        assert off(got, expected) < 1e-5


def model_of_true_width() -> Any:
    """Four layers of Qwen3.5-9B with an adapter in float32."""
    config = few_layers("qwen3_5_9b", 4)
    config.get_text_config().vocab_size = 512
    config.image_token_id = IMAGE
    torch.manual_seed(0)
    model = model_class(config)(config).eval().requires_grad_(False)
    targets = lora_targets(family_of(config), structure_of(model), "all_linear")
    get_peft_model(model, LoraConfig(r=8, lora_alpha=16, init_lora_weights=False, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.1
    return model


def step(model: Any, device: torch.device, recompute: Recompute, outside: bool) -> list[torch.Tensor]:
    """Logits and all gradients of three questions."""
    prompts: Any = type("Prompts", (), {"image_token": IMAGE, "pad_token": 0})()
    text = OwnText(model, None, device, prompts)
    prefix, own = torch.arange(10, 200), torch.arange(200, 330)
    suffixes = []
    for i, words in enumerate((60, 130, 90)):
        pooled = randn(16, model.config.get_text_config().hidden_size, seed=i).to(model.dtype) * 0.02
        features = VisionFeatures(pooled, (), (4, 4), (1, 8, 8))
        suffixes.append(Suffix(torch.cat([torch.full((16,), IMAGE), own[:words]]), (features,), i, 4))
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.grad = None

    def ask(known: Any) -> torch.Tensor:
        batch = text.batch(prefix, suffixes, outside=known is not None, conversation=False)
        logits = text.logits(batch, known, recompute)
        torch.nn.functional.cross_entropy(logits.float(), torch.arange(7, 10, device=device)).backward()  # type: ignore[no-untyped-call]
        return logits.detach()

    if outside:
        base: Any = type("Base", (), {"text": text})()
        with shared_prefix(base, prefix) as known:
            logits = ask(known)
    else:
        logits = ask(None)
    return [logits, torch.cat([p.grad.flatten() for p in weights if p.grad is not None])]


def test_a_bfloat16_step_is_about_as_near_to_float32_as_the_portable_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In half precision the kernel keeps states and inverses in 16 bits, the portable formulas in 32."""
    model = model_of_true_width().to(CUDA)
    exact = step(model, CUDA, "nothing", False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(None if parameter.requires_grad else torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(delta_net, "delta_rule", by_chunks)
        portable = [off(a, b) for a, b in zip(step(model, CUDA, "nothing", False), exact, strict=True)]
    print("logits and gradients off float32, portable:", portable)
    ways: list[tuple[Recompute, bool]] = [
        ("nothing", False),
        ("mlp", False),
        ("layer", False),
        ("nothing", True),
        ("layer", True),
    ]
    for way in ways:
        found = [off(a, b) for a, b in zip(step(model, CUDA, *way), exact, strict=True)]
        print(way, found)
        assert all(f <= 1.5 * p + 1e-3 for f, p in zip(found, portable, strict=True)), way
