"""A model spread over GPUs: where its parts lie, and that accelerate's hooks change nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules

from benchmarks.harness.true_sizes import true_config
from tests.conftest import Make
from tests.helpers.tiny_families import NAMES, tiny_config, tiny_model
from tests.helpers.tiny_models import FAMILIES as QWEN
from tests.model.families.test_families import Case, by_adapter, make_case
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import split_questions
from vqa.errors import UserError
from vqa.machine.device import cards_for
from vqa.model import base as base_module
from vqa.model.adapter import attached
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.model.families.structure import empty_model, spread_layers, structure_of
from vqa.model.forward import letter_logits
from vqa.model.generic_text import GenericText
from vqa.model.prompt import as_written
from vqa.train.fit import fit
from vqa.train.plan import plan_fit

CPU = torch.device("cpu")


def place_of(placed: dict[str, int], name: str) -> int:
    found = {card for part, card in placed.items() if name == part or name.startswith(f"{part}.")}
    assert len(found) == 1, f"{name}: {found}"
    return found.pop()


@pytest.mark.parametrize("cards", [2, 3])
@pytest.mark.parametrize("name", [*NAMES, *QWEN])
def test_every_weight_has_one_card_and_the_layers_keep_their_order(name: str, cards: int) -> None:
    model = QWEN[name]() if name in QWEN else tiny_model(tiny_config(name))
    placed = spread_layers(model, cards)
    layers = structure_of(model).layers
    for weight, _ in model.named_parameters():
        assert place_of(placed, weight) == 0 or weight.startswith(f"{layers}.")
    order = [placed[f"{layers}.{i}"] for i in range(len(model.get_decoder().layers))]
    assert order == sorted(order)
    assert order[-1] > 0
    assert placed.keys() >= {name for name, _ in model.named_children() if not layers.startswith(f"{name}.")}


@pytest.mark.parametrize("cards", [2, 4])
@pytest.mark.parametrize(
    ("name", "kind", "bits"), [("qwen3_8_27b", "none", 16), ("exaone4_5_33b", "nf4", 4.3)]
)
def test_cards_hold_about_the_same_bytes(name: str, kind: str, bits: float, cards: int) -> None:
    model = empty_model(true_config(name))
    placed, layers = spread_layers(model, cards, kind), structure_of(model).layers
    held, beside = [0.0] * cards, 0.0
    for weight, values in model.named_parameters():
        size = values.numel() * (bits if weight.startswith(layers) else 16) / 8
        held[place_of(placed, weight)] += size
        beside += 0.0 if weight.startswith(layers) else size
    layer = (sum(held) - beside) / len(model.get_decoder().layers)
    assert max(held) <= max(beside, sum(held) / cards + layer)  # what lies beside the layers is not cut
    assert min(held[1:]) > (sum(held) - max(beside, sum(held) / cards)) / (cards - 1) - layer


@pytest.fixture
def hooked() -> Iterator[Any]:
    """Puts accelerate's hooks on a model as they are on one that lies on several GPUs."""
    models: list[Any] = []

    def dispatch(model: Any) -> None:
        places = dict.fromkeys(spread_layers(model, 2), "cpu")
        dispatch_model(model, places, main_device="cpu", force_hooks=True, skip_keys=["past_key_values"])
        models.append(model)

    yield dispatch
    for model in models:
        remove_hook_from_submodules(model)


def gradients(case: Case, recompute: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = case.text.batch(case.prefix, case.suffixes, outside=False, conversation=False)
    logits = case.text.logits(batch, None, recompute)
    return logits.detach(), by_adapter(case, logits)


@pytest.mark.parametrize("name", ["qwen3_5", "gemma4_e", "internvl", "exaone4_5"])
def test_hooks_leave_logits_and_gradients_as_they_are(name: str, hooked: Any) -> None:
    case = make_case(name)
    before, wanted = gradients(case, "layer")
    hooked(case.model)
    for recompute in ("nothing", "mlp", "layer"):
        found, grads = gradients(case, recompute)
        assert torch.equal(found, before)
        assert grads.keys() == wanted.keys()
        assert all(torch.allclose(grads[key], wanted[key], rtol=1e-5, atol=1e-8) for key in wanted)


@pytest.fixture
def balanced(monkeypatch: pytest.MonkeyPatch, hooked: Any) -> Iterator[Any]:
    """Loads as with `env.device_map=balanced`, every card being the CPU."""
    monkeypatch.setattr(base_module, "cards_for", lambda device_map, _: 1 if device_map == "single" else 2)
    monkeypatch.setattr(base_module, "_device_map", lambda *_: {"": CPU})

    def load(settings: Settings) -> Any:
        base = load_base(settings)
        hooked(base.model)
        return base

    yield load
    base_module.release_resident()


def trained(base: Any, settings: Settings) -> tuple[float, list[tuple[float, ...]]]:
    """Loss of the last step, and the answers afterwards."""
    encoder = Encoder(base, settings.prompt, settings.image)
    rows = split_questions(settings)[0]
    losses: list[float] = []
    with attached(base, settings.lora, seed=0) as model:
        plan = plan_fit(settings, 16)
        fit(encoder, model, rows.train[:16], plan, lambda done: losses.append(done.train_loss))
        model.eval()
        answers = [p.p for p in score(encoder, rows.valid[:6], 4)]
    return losses[-1], answers


def test_a_model_of_our_own_decoder_trains_and_answers_the_same_through_transformers(
    settings: Make, balanced: Any
) -> None:
    overrides = ("budget=smoke", "budget.batch_size=8", "env.threads=1")
    plain = settings(*overrides)
    loss, answers = trained(load_base(plain), plain)
    spread = settings(*overrides, "env.device_map=balanced")
    base = balanced(spread)
    assert isinstance(base.text, GenericText)
    assert not base.is_own
    found, given = trained(base, spread)
    assert found == pytest.approx(loss, rel=1e-3)
    assert torch.allclose(torch.tensor(given), torch.tensor(answers), atol=2e-3)


def test_dropout_is_drawn_again_when_a_layer_is_computed_twice(settings: Make, balanced: Any) -> None:
    made = settings("env.device_map=balanced", "env.threads=1")
    base = balanced(made)
    encoder, rows = Encoder(base, made.prompt, made.image), split_questions(made)[0].train[:4]
    found = []
    with attached(base, made.lora | {"lora_dropout": 0.5, "init_lora_weights": False}, seed=0) as model:
        model.train()
        for recompute in ("nothing", "layer"):
            model.zero_grad()
            torch.manual_seed(5)
            batch = encoder.batch(rows, [as_written(q) for q in rows], False, False)
            letter_logits(base, batch, None, recompute).square().sum().backward()  # type: ignore[no-untyped-call]
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert found[0]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("seen", [0, 1])
def test_one_gpu_or_none_is_refused(monkeypatch: pytest.MonkeyPatch, seen: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    device = torch.device("cuda" if seen else "cpu")
    assert cards_for("single", device) == 1
    with pytest.raises(
        UserError, match=rf"several GPUs, and {seen} can be used here.*env\.device_map=single"
    ):
        cards_for("balanced", device)


def test_all_gpus_are_used_by_one_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert cards_for("balanced", torch.device("cuda")) == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="was started in 2 processes"):
        cards_for("balanced", torch.device("cuda"))


def test_what_needs_our_own_decoder_says_that_the_placement_is_in_the_way(settings: Make) -> None:
    made = settings("env.device_map=balanced", "adapt=tpt", "stage=predict")
    with pytest.raises(UserError, match=r"adapt=tpt .*use env\.device_map=single, or adapt=tent"):
        base_module.read_model_config(made)
