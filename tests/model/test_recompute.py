"""Adapters off the plain path: values and every gradient are the padded batch's, however memory is saved.

Nothing that a backward computes again may depend on state outside its arguments. The reference is
transformers' own forward over padded rows with PEFT's own layers, in float64; quantised layers stand there as
linear layers of their unpacked weights.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from peft import LoraConfig, get_peft_model

from tests.helpers.tiny_models import FAMILIES, IMAGE, LANGUAGE, PAD, VOCAB, gradients, make_suffixes
from vqa.model import decoder
from vqa.model.decoder import Recompute, answer_logits
from vqa.model.forward import shared_prefix
from vqa.model.kernels import lora_linear
from vqa.model.kernels.attention import LayerTree, attend
from vqa.model.own_text import OwnText
from vqa.model.packing import Suffix, pack, pad

CPU = torch.device("cpu")
ATTENTION_ONLY = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"
SHAPES: list[tuple[int, int, int] | None] = [(2, 2, 5), (3, 2, 9), None, (2, 2, 4)]
PREFIX = torch.randint(20, VOCAB, (13,), generator=torch.Generator().manual_seed(2))
ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "dropout": {"lora_dropout": 0.3},
    "rank-stabilised with dropout": {"use_rslora": True, "lora_dropout": 0.3},
    "DoRA": {"use_dora": True},
    "DoRA with dropout": {"use_dora": True, "lora_dropout": 0.3},
    "adapter bias": {"lora_bias": True},
    "attention only": {"target_modules": ATTENTION_ONLY, "lora_dropout": 0.3},
}
WEIGHTS = ["float64", "nf4", "int8"]
WAYS: list[Recompute] = ["nothing", "mlp", "layer"]


def language_layers(model: Any) -> list[tuple[Any, str, torch.nn.Linear]]:
    """(parent, name, layer) of every linear layer of the language model."""
    found = []
    for parent in model.model.language_model.modules():
        found += [(parent, n, m) for n, m in parent.named_children() if isinstance(m, torch.nn.Linear)]
    return found


def quantised(layer: torch.nn.Linear, kind: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The layer in bitsandbytes' form, and its unpacked weights."""
    rows, columns = layer.weight.shape
    made: Any
    if kind == "nf4":
        made = Linear4bit(columns, rows, bias=layer.bias is not None, quant_type="nf4", device="meta")
        weight = Params4bit(layer.weight.data.float(), requires_grad=False, quant_type="nf4").to("cpu")
        made.weight, made.bias = weight, layer.bias
        return made, dequantize_4bit(weight.data, weight.quant_state).double()
    made = Linear8bitLt(columns, rows, bias=layer.bias is not None, has_fp16_weights=False)
    made.weight.data = layer.weight.data.float()
    made = made.to("cpu")
    made.bias = layer.bias
    return made, made.weight.data.double() * made.weight.SCB.double()[:, None] / 127


def model_pair(family: str, adapter: str, weights: str) -> tuple[Any, Any]:
    """Twice the same model with the same adapter: ours, quantised as asked, and the reference."""
    made = []
    for ours in (True, False):
        torch.manual_seed(0)
        model: Any = FAMILIES[family]().double()
        model.requires_grad_(False)
        if weights != "float64":
            for parent, name, layer in language_layers(model):
                packed, unpacked = quantised(layer, weights)
                if ours:
                    setattr(parent, name, packed)
                else:
                    layer.weight.data = unpacked
        made.append(model)
    config = {"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE, "init_lora_weights": False}
    for model in made:
        torch.manual_seed(1)
        get_peft_model(model, LoraConfig(**(config | ADAPTERS[adapter])))
    trained = {n: p for n, p in made[1].named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(3)
    for name, parameter in made[0].named_parameters():
        if parameter.requires_grad:
            value = trained[name].data.double()
            trained[name].data = value * (1 + 0.2 * torch.rand(value.shape, generator=generator))
            parameter.data = trained[name].data.clone()
    for model in made:
        for module in model.modules():  # transformers' norms compute in float32
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = wide_norm(module)
        model.model.language_model.rotary_emb.double()
        model.train()
    return made[0], made[1]


def wide_norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


def same_columns_dropped(monkeypatch: pytest.MonkeyPatch, *models: Any) -> None:
    """Dropout that leaves out the same features of every token, in our arithmetic and in PEFT's layers.

    The layouts differ, so masks that also depend on the token cannot be compared.
    """

    def keep(x: torch.Tensor, p: float) -> torch.Tensor:
        mask = torch.rand(x.shape[-1], generator=torch.Generator().manual_seed(x.shape[-1])) >= p
        return x * mask / (1 - p)

    monkeypatch.setattr(
        lora_linear._Group, "_dropped", lambda self, x, i: keep(x, self.projections[i].dropout)
    )
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: keep(x, self.p) if self.training else x)


def reference(model: Any, suffixes: list[Suffix]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model(**pad(PREFIX, suffixes, IMAGE, PAD, CPU), use_cache=False).logits[:, -1]
    return logits.detach(), gradients(model, logits.square().sum())


def by_micro_batches(
    model: Any, suffixes: list[Suffix], size: int, outside: bool, recompute: Recompute
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One optimiser step's logits and gradients, as `fit` makes them."""
    model.zero_grad()
    logits = []

    def parts(known: Any) -> None:
        for start in range(0, len(suffixes), size):
            batch = pack(PREFIX, suffixes[start : start + size], IMAGE, PAD, CPU, outside)
            found = answer_logits(model, batch.row, known, recompute)
            found.square().sum().backward()  # type: ignore[no-untyped-call]
            logits.append(found.detach())

    if outside:
        base: Any = SimpleNamespace(text=OwnText(model, None, CPU))
        with shared_prefix(base, PREFIX) as known:
            parts(known)
    else:
        parts(None)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return torch.cat(logits), grads


def check(
    monkeypatch: pytest.MonkeyPatch, family: str, adapter: str, weights: str, ways: list[Recompute]
) -> None:
    ours, theirs = model_pair(family, adapter, weights)
    suffixes = make_suffixes(theirs, SHAPES)
    same_columns_dropped(monkeypatch, ours, theirs)
    expected, wanted = reference(theirs, suffixes)
    for recompute in ways:
        for size, outside in ((len(suffixes), False), (3, False), (3, True)):
            found, got = by_micro_batches(ours, suffixes, size, outside, recompute)
            case = f"{recompute}, micro-batches of {size}, prefix {'outside' if outside else 'inside'}"
            assert torch.linalg.norm(found - expected) <= 1e-10 * torch.linalg.norm(expected), case
            assert got.keys() == wanted.keys()
            for name, gradient in wanted.items():
                error = torch.linalg.norm(got[name] - gradient)
                assert error <= 1e-9 * torch.linalg.norm(gradient), f"{case}: {name}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", WAYS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_gives_the_padded_batchs_values_and_gradients(
    family: str, adapter: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch, family, adapter, "float64", [recompute])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "rank-stabilised with dropout"])
@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_quantised_weights_give_the_values_of_their_unpacked_ones(
    family: str, weights: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch, family, adapter, weights, WAYS)


@pytest.mark.parametrize("recompute", WAYS)
@pytest.mark.parametrize("adapter", ["dropout", "DoRA with dropout", "adapter bias"])
def test_a_backward_that_comes_after_other_work_gives_the_same_gradients(
    adapter: str, recompute: Recompute
) -> None:
    """Random numbers drawn in between, and another attention called meanwhile, change nothing."""
    model, _ = model_pair("qwen3_vl", adapter, "float64")
    row = pack(PREFIX, make_suffixes(model, SHAPES), IMAGE, PAD, CPU).row
    torch.manual_seed(7)
    expected = gradients(model, answer_logits(model, row).square().sum())
    torch.manual_seed(7)
    loss = answer_logits(model, row, None, recompute).square().sum()
    torch.rand(1000)
    with torch.no_grad():
        model(**pad(PREFIX, make_suffixes(model, SHAPES[:1]), IMAGE, PAD, CPU), use_cache=False)
    found = gradients(model, loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.linalg.norm(found[name] - gradient) <= 1e-10 * torch.linalg.norm(gradient), name


@pytest.mark.parametrize("adapter", ["dropout", "DoRA", "adapter bias"])
def test_a_layer_computed_again_calls_the_same_attention(
    adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention that the forward calls keeps more tensors than another one: recomputing must match."""
    model, _ = model_pair("qwen3_vl", adapter, "float64")
    row = pack(PREFIX, make_suffixes(model, SHAPES), IMAGE, PAD, CPU).row
    calls = []

    def counted(query: Any, key: Any, value: Any, scaling: float, tree: LayerTree) -> torch.Tensor:
        calls.append(len(query))
        return attend(query, key, value, scaling, tree) * torch.ones_like(query)

    monkeypatch.setattr(decoder, "attend", counted)
    logits = answer_logits(model, row, None, "layer")
    layers = len(model.model.language_model.layers)
    assert calls == [len(row.ids)] * layers
    gradients(model, logits.square().sum())
    assert calls == [len(row.ids)] * 2 * layers
