"""Letter logits and every LoRA gradient of the generic path are those of one unpadded question alone.

The whole matrix, every family in float64 and with every way to save memory, is run by hand:
pytest -m families.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.tiny_families import (
    END,
    IMAGE,
    NAMES,
    ONE_SIZE,
    START,
    VOCAB,
    inputs,
    tiny_config,
    tiny_model,
)
from vqa.model.decoder import Recompute
from vqa.model.families.structure import lora_targets, read_structure, structure_of
from vqa.model.families.table import FAMILIES, family_of
from vqa.model.forward import shared_prefix
from vqa.model.generic_text import GenericText
from vqa.model.packing import Suffix
from vqa.model.vision.features import VisionFeatures
from vqa.model.vision.generic_pictures import GenericPictures, Prepared

CPU = torch.device("cpu")
TARGETS = torch.tensor([11, 12, 13])
LINEAR_ATTENTION = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6")  # transformers' code is in float32 there
FLOAT32_NORMS = ("gemma4_e", "gemma4_31b", "gemma4_unified", "muse_glimmer")  # their backward sums in float32
Gradients = dict[str, torch.Tensor]


@dataclass
class Case:
    """A tiny model with an adapter, three questions on their pictures, and each one's pixels."""

    name: str
    model: Any
    text: GenericText
    prefix: torch.Tensor
    suffixes: list[Suffix]
    pixels: list[dict[str, torch.Tensor]]


ONE_EACH = (1, 1, 1)
SEVERAL = (2, 0, 3)  # pictures of each question


def make_case(
    name: str, dtype: torch.dtype = torch.float32, pictures: tuple[int, int, int] = ONE_EACH
) -> Case:
    model = tiny_model(tiny_config(name)).to(dtype)
    if dtype == torch.float64:  # torch's product of all experts at once knows no float64
        model.set_experts_implementation("eager")
    family, structure = family_of(model.config), structure_of(model)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        init_lora_weights=False,
        target_modules=lora_targets(family, structure, "all_linear"),
    )
    torch.manual_seed(1)
    get_peft_model(model, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(3)

    def words(count: int) -> torch.Tensor:
        return torch.randint(10, VOCAB, (count,), generator=generator)

    prefix = torch.cat([torch.tensor([1]), words(19)])
    sizes = [(32, 32)] * 3 if name in ONE_SIZE else [(32, 16), (16, 16), (32, 32)]
    sizes = [sizes[i % 3] for i in range(sum(pictures))]
    pixels = [inputs(name, size, seed) for seed, size in enumerate(sizes)]
    pixels = [{k: x.to(dtype) if x.is_floating_point() else x for k, x in p.items()} for p in pixels]
    tower = GenericPictures(model, None, family, structure.pictures)
    features = tower.features([Prepared(p, "") for p in pixels])
    suffixes, of_each = [], []
    for count, k in zip(pictures, (5, 9, 7), strict=True):
        own, features = tuple(features[:count]), features[count:]
        marked = [torch.cat([torch.tensor([START]), visual(f), torch.tensor([END])]) for f in own]
        suffixes.append(Suffix(torch.cat([*marked, words(k)]), own, 0, 4))
        of_each.append(joined(name, pixels[:count]))
        pixels = pixels[count:]
    writer: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    return Case(name, model, GenericText(model, writer, True, CPU), prefix, suffixes, of_each)


def joined(name: str, pictures: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The pixels of a question's pictures as the family's processor joins them."""
    if not pictures:
        return {}
    if name == "llava_onevision":  # pictures of fewer tiles are filled up with empty ones
        most = max(p["pixel_values"].shape[1] for p in pictures)
        for p in pictures:
            missing = most - p["pixel_values"].shape[1]
            p["pixel_values"] = torch.nn.functional.pad(p["pixel_values"], (0, 0) * 3 + (0, missing))
    along = {"pixel_values": 1 if name == "smolvlm" else 3 if name == "minicpmv4_6" else 0}
    return {key: torch.cat([p[key] for p in pictures], along.get(key, 0)) for key in pictures[0]}


def visual(features: VisionFeatures) -> torch.Tensor:
    return torch.full((len(features.pooled),), IMAGE)


def by_adapter(case: Case, logits: torch.Tensor) -> Gradients:
    """Gradients of the answers' loss."""
    weights = {name: p for name, p in case.model.named_parameters() if p.requires_grad}
    loss = torch.nn.functional.cross_entropy(logits, TARGETS)
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, retain_graph=True)
    return {name: grad for name, grad in zip(weights, found, strict=True) if grad is not None}


def alone(case: Case) -> torch.Tensor:
    """Logits of each question by itself: from pixels, unpadded, no cache."""
    found = []
    for suffix, pixels in zip(case.suffixes, case.pixels, strict=True):
        ids = torch.cat([case.prefix, suffix.ids])[None]
        types = dict.fromkeys(case.text.types, (ids == IMAGE).int())
        if hasattr(case.model.model, "rope_deltas"):
            case.model.model.rope_deltas = None  # what the question before left behind
        found.append(
            case.model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels, **types).logits[0, -1]
        )
    return torch.stack(found)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected).clamp_min(1e-30))


def check(
    case: Case,
    found: torch.Tensor,
    expected: torch.Tensor,
    wanted: Gradients,
    tolerance: float,
    of_gradients: float | None = None,
) -> None:
    grads = by_adapter(case, found)
    assert distance(found, expected) <= tolerance
    assert grads.keys() == wanted.keys()
    assert max(distance(grads[name], wanted[name]) for name in wanted) <= (of_gradients or tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_each_question_alone_gives(name: str) -> None:
    case = make_case(name)
    expected = alone(case)
    wanted = by_adapter(case, expected)
    ways: tuple[tuple[bool, Recompute], ...] = ((False, "nothing"), (True, "layer"))
    for shares, recompute in ways:
        case.text.shares_prefix = shares
        batch = case.text.batch(case.prefix, case.suffixes, outside=False, conversation=False)
        assert (batch.prefix is not None) == shares
        check(case, case.text.logits(batch, None, recompute), expected, wanted, 1e-4)


SEVERAL_IN_GATE = ("qwen3_5", "gemma3", "internvl", "mistral3")


@pytest.mark.parametrize(
    "name",
    [*SEVERAL_IN_GATE, *(pytest.param(n, marks=pytest.mark.families) for n in NAMES)],
)
def test_questions_with_none_two_and_three_pictures_give_what_each_alone_gives(name: str) -> None:
    case = make_case(name, pictures=SEVERAL)
    expected = alone(case)
    wanted = by_adapter(case, expected)
    for shares in (False, True):
        case.text.shares_prefix = shares
        batch = case.text.batch(case.prefix, case.suffixes, outside=False, conversation=False)
        check(case, case.text.logits(batch, None, "nothing"), expected, wanted, 1e-4)


@pytest.mark.families
@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layer"])
@pytest.mark.parametrize("pictures", [ONE_EACH, SEVERAL], ids=["one each", "several"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_exact_in_float64_however_memory_is_saved(
    name: str, pictures: tuple[int, int, int], recompute: Recompute
) -> None:
    case = make_case(name, torch.float64, pictures)
    expected = alone(case)
    wanted = by_adapter(case, expected)
    tolerance = 1e-4 if name in LINEAR_ATTENTION else 1e-9
    for shares in (False, True):
        # transformers' norms compute in float32: the prefix's gradients are rounded there once for all
        # questions, and not question by question
        of_gradients = max(tolerance, 1e-6) if shares or name in FLOAT32_NORMS else tolerance
        case.text.shares_prefix = shares
        batch = case.text.batch(case.prefix, case.suffixes, outside=False, conversation=False)
        logits = case.text.logits(batch, None, recompute)
        check(case, logits, expected, wanted, tolerance, of_gradients)


def step_gradients(case: Case, recompute: Recompute) -> tuple[torch.Tensor, Gradients]:
    """One optimiser step in micro-batches of two and one, the prefix computed once, as `fit` makes it."""
    base: Any = SimpleNamespace(text=case.text)
    case.model.zero_grad()
    found = []
    with shared_prefix(base, case.prefix) as known:
        for part in (slice(0, 2), slice(2, 3)):
            batch = case.text.batch(case.prefix, case.suffixes[part], outside=True, conversation=False)
            logits = case.text.logits(batch, known, recompute)
            loss = torch.nn.functional.cross_entropy(logits, TARGETS[part], reduction="sum") / 3
            loss.backward()  # type: ignore[no-untyped-call]
            found.append(logits.detach())
    grads = {name: p.grad for name, p in case.model.named_parameters() if p.grad is not None}
    return torch.cat(found), grads


STEPS = ("qwen3_5", "gemma4_e", "gemma4_unified", "internvl")


@pytest.mark.parametrize("name", [*STEPS, *(pytest.param(n, marks=pytest.mark.families) for n in NAMES)])
def test_micro_batches_that_share_a_prefix_give_the_step_of_the_whole_batch(name: str) -> None:
    case = make_case(name)
    expected = alone(case)
    wanted = by_adapter(case, expected)
    logits, grads = step_gradients(case, "layer")
    assert distance(logits, expected) <= 1e-4
    assert grads.keys() == wanted.keys()
    assert max(distance(grads[key], wanted[key]) for key in wanted) <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_structure_is_read_without_weights_and_names_every_vision_part(name: str) -> None:
    config = tiny_config(name)
    structure = read_structure(config)
    assert structure == structure_of(tiny_model(config))
    assert structure.unquantised == (*structure.pictures, "lm_head")
    assert all(part.startswith("model.") for part in structure.pictures)


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_on_every_text_layer_and_nowhere_else(name: str) -> None:
    model = tiny_model(tiny_config(name))
    family, structure = family_of(model.config), structure_of(model)
    for kind in ("all_linear", "attention"):
        config = LoraConfig(r=2, target_modules=lora_targets(family, structure, kind))
        hit = [n for n, m in get_peft_model(model, config).named_modules() if hasattr(m, "lora_A")]
        prefix = f"base_model.model.{structure.layers}."
        assert all(n.startswith(prefix) for n in hit)
        assert {n.removeprefix(prefix).split(".")[0] for n in hit} == {"0", "1", "2", "3"}
        model = tiny_model(tiny_config(name))


def test_a_type_has_one_family() -> None:
    types = [kind for family in FAMILIES for kind in family.types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_looked_at_together_are_those_looked_at_alone(name: str) -> None:
    model = tiny_model(tiny_config(name))
    family, structure = family_of(model.config), structure_of(model)
    tower = GenericPictures(model, None, family, structure.pictures)
    sizes = [(32, 32), (32, 32), (32, 16), (16, 32), (32, 32)]
    sizes = [(32, 32)] * 2 if name in ONE_SIZE else sizes
    pictures = [Prepared(inputs(name, size, seed), "") for seed, size in enumerate(sizes)]
    together = tower.features(pictures)
    for picture, found in zip(pictures, together, strict=True):
        (expected,) = tower.features([picture])
        assert found.grid_thw == expected.grid_thw
        assert distance(found.pooled, expected.pooled) <= 1e-5
        for tap, wanted in zip(found.deepstack, expected.deepstack, strict=True):
            assert distance(tap, wanted) <= 1e-5


def test_a_prefix_from_host_memory_goes_to_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As scoring and micro-batches give it; the device without memory stands for a GPU."""
    meta = torch.device("meta")
    writer: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    text = GenericText(tiny_model(tiny_config("internvl")), writer, True, meta)
    asked: list[torch.device] = []
    monkeypatch.setattr(text, "_run", lambda ids, *rest: asked.append(ids.device))
    text.prefix_states(torch.arange(1, 9))
    assert asked == [meta]
