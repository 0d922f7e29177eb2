"""Families whose text our own decoder computes: logits and every gradient are those of a question alone.

In float32 against transformers as it is; in float64 against transformers with its float32 round trips taken
out and the delta rule one token at a time.
"""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.float64 import in_float64
from tests.helpers.tiny_families import tiny_config
from tests.model.families.test_families import (
    TARGETS,
    Case,
    Gradients,
    alone,
    by_adapter,
    distance,
    make_case,
)
from vqa.model import base
from vqa.model.decoder import Recompute
from vqa.model.families.table import family_of
from vqa.model.forward import shared_prefix
from vqa.model.kernels import delta_net
from vqa.model.own_text import OwnText

CPU = torch.device("cpu")
NAMES = ("internvl", "llava_onevision", "qwen3_5", "minicpmv4_6")
FAST = ("internvl", "qwen3_5")


def packed_case(name: str, dtype: torch.dtype = torch.float32) -> tuple[Case, OwnText]:
    """A case of the families' tests, and our own decoder on its model."""
    case = make_case(name, dtype)
    assert family_of(case.model.config).is_packed(case.model.config)
    merge = getattr(case.model.config.vision_config, "spatial_merge_size", 1)
    for i, suffix in enumerate(case.suffixes):
        if hasattr(case.model.model, "get_rope_index"):
            grids = [f.grid_thw[1:] for f in suffix.features]  # our own tower counts in visual tokens
            features = tuple(
                replace(f, grid=(height // merge, width // merge))
                for f, (height, width) in zip(suffix.features, grids, strict=True)
            )
            case.suffixes[i] = replace(suffix, features=features)
    return case, OwnText(case.model, None, CPU, case.text)


def ways(case: Case, text: OwnText, recompute: Recompute) -> dict[str, tuple[torch.Tensor, Gradients]]:
    """Logits and gradients with the prefix in the row, repeated in every suffix, and computed before."""
    found = {}
    for name, suffixes in (("in the row", case.suffixes), ("one by one", None)):
        rows = [suffixes] if suffixes else [[suffix] for suffix in case.suffixes]
        batches = [text.batch(case.prefix, row, outside=False, conversation=False) for row in rows]
        logits = torch.cat([text.logits(batch, None, recompute) for batch in batches])
        found[name] = logits.detach(), by_adapter(case, logits)
    found["computed before"] = step(case, text, recompute)
    return found


def step(case: Case, text: OwnText, recompute: Recompute) -> tuple[torch.Tensor, Gradients]:
    """An optimiser step in micro-batches of two and one, the prefix computed once."""
    resident: Any = SimpleNamespace(text=text)
    case.model.zero_grad()
    logits = []
    with shared_prefix(resident, case.prefix) as known:
        for part in (slice(0, 2), slice(2, 3)):
            batch = text.batch(case.prefix, case.suffixes[part], outside=True, conversation=False)
            found = text.logits(batch, known, recompute)
            loss = torch.nn.functional.cross_entropy(found, TARGETS[part], reduction="sum") / 3
            loss.backward()  # type: ignore[no-untyped-call]
            logits.append(found.detach())
    grads = {name: p.grad.clone() for name, p in case.model.named_parameters() if p.grad is not None}
    return torch.cat(logits), grads


def check(
    case: Case,
    text: OwnText,
    recompute: Recompute,
    expected: torch.Tensor,
    wanted: Gradients,
    tolerance: dict[str, float],
) -> None:
    """Logits, and gradients by name, in every way; "" is the logits' tolerance."""
    for way, (logits, grads) in ways(case, text, recompute).items():
        assert distance(logits, expected) <= tolerance[""], way
        assert grads.keys() == wanted.keys(), way
        for key, gradient in wanted.items():
            assert distance(grads[key].to(gradient), gradient) <= tolerance[key], f"{way}: {key}"


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.families) for n in NAMES]
)
def test_a_row_gives_what_each_question_alone_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        in_float64(patch)
        wide, text = packed_case(name, torch.float64)
        exact = alone(wide)
        true = by_adapter(wide, exact)
        check(wide, text, "mlp", exact, true, dict.fromkeys(["", *true], 1e-9))
    case, text = packed_case(name)
    expected = alone(case)
    wanted = by_adapter(case, expected)
    # float32 rounds; ours may round no further from the truth than transformers does
    tolerance = {key: 1e-4 + distance(wanted[key].to(true[key]), true[key]) for key in true}
    check(case, text, "layer", exact, true, tolerance | {"": 1e-4})


@pytest.mark.families
@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layer"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_exact_in_float64_however_memory_is_saved(
    name: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float64(monkeypatch)
    case, text = packed_case(name, torch.float64)
    expected = alone(case)
    wanted = by_adapter(case, expected)
    check(case, text, recompute, expected, wanted, dict.fromkeys(["", *wanted], 1e-9))


@pytest.mark.parametrize(("prefix", "outside"), [(20, False), (20, True), (2, True)])
def test_orders_of_one_question_that_share_its_stem_are_each_alone(
    prefix: int, outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question's branches go on from its stem's state; a prefix may be shorter than the convolution."""
    in_float64(monkeypatch)
    case, text = packed_case("qwen3_5", torch.float64)
    case.prefix = case.prefix[:prefix]
    suffixes, pixels = case.suffixes, case.pixels
    asked = [[s, replace(s, ids=torch.cat([s.ids[:-3], s.ids[-3:].flip(0)]))] for s in suffixes]
    known = text.prefix_states(case.prefix) if outside else None
    with torch.no_grad():
        found = text.logits(text.orders_batch(case.prefix, asked, outside), known, "nothing")
        case.suffixes = [s for pair in asked for s in pair]
        case.pixels = [p for p in pixels for _ in range(2)]
        assert distance(found, alone(case)) <= 1e-9


@pytest.mark.parametrize("name", FAST)
def test_norms_get_the_gradients_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test-time methods train norms: Qwen3.5 stores by how much their weight differs from one."""
    in_float64(monkeypatch)
    case, text = packed_case(name, torch.float64)
    norms = {n: p for n, p in case.model.get_decoder().named_parameters() if "norm" in n}
    case.model.requires_grad_(False)
    for parameter in norms.values():
        parameter.requires_grad_(True)
    wanted = by_adapter(case, alone(case))
    assert len(wanted) == len(norms)
    batch = text.batch(case.prefix, case.suffixes, outside=False, conversation=False)
    grads = by_adapter(case, text.logits(batch, None, "nothing"))
    assert max(distance(grads[key], wanted[key]) for key in wanted) <= 1e-9


@pytest.mark.parametrize("name", FAST)
def test_four_bit_weights_give_what_their_unpacked_ones_give(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float64(monkeypatch)
    case, text = packed_case(name, torch.float64)
    plain, _ = packed_case(name, torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda x: x.to(torch.float32))
        in_four_bits(case.model, plain.model)
    expected = alone(plain)
    wanted = by_adapter(plain, expected)
    logits, grads = step(case, text, "nothing")
    assert distance(logits, expected) <= 1e-9
    assert grads.keys() == wanted.keys()
    assert max(distance(grads[key], wanted[key]) for key in wanted) <= 1e-9


def in_four_bits(model: Any, plain: Any) -> None:
    """Pack the text layers' linear layers to NF4, and give another model's the values that come out again."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    layers = plain.get_decoder().layers
    for name, module in model.get_decoder().layers.named_modules():
        for child, linear in list(module.named_children()):
            if type(linear) is not torch.nn.Linear or child == "default":
                continue
            packed = Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4")
            values = linear.weight.data.to(torch.float32)
            packed.weight = Params4bit(values, requires_grad=False, quant_type="nf4")
            packed.bias = linear.bias
            setattr(module, child, packed.to(CPU))
            twin = layers.get_submodule(f"{name}.{child}" if name else child)
            unpacked = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
            twin.weight.data = unpacked.view_as(values).double()


def test_what_is_missing_on_a_gpu_is_said_once_and_transformers_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config("qwen3_5")
    monkeypatch.setattr(base, "missing_kernel", lambda device: "pip install something")
    assert not base._has_kernels(config, torch.device("cuda"))
    assert "pip install something" in caplog.text
    assert base._has_kernels(config, CPU)
    assert base._has_kernels(tiny_config("internvl"), torch.device("cuda"))


@pytest.mark.parametrize(
    ("found", "triton", "said"),
    [
        (None, "3.7.1", "extra qwen3_5"),
        ("0.4.1", "3.7.1", "0.4.1"),
        ("0.6.0", "3.5.1", "Triton 3.5.1"),
        ("0.6.0", "3.7.1", ""),
    ],
)
def test_versions_of_the_kernels_are_checked(
    found: str | None, triton: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "fla" else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(__version__=triton))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    message = delta_net.missing_kernel(torch.device("cuda"))
    assert (said in message) if said else message == ""


def test_layers_with_a_window_or_another_activation_are_left_to_transformers() -> None:
    for change in (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"hidden_act": "gelu"},
    ):
        config = tiny_config("internvl", text_config=change)
        assert not family_of(config).is_packed(config)
