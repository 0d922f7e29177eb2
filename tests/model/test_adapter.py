"""Adapters come and go without a trace, hit only the language model, and load in plain PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.conftest import Make
from tests.helpers.tiny_models import FAMILIES
from vqa.answer.score import score
from vqa.errors import UserError
from vqa.model.adapter import VISION_MODULE, adapter_state, attached, loaded, save_adapter
from vqa.model.base import Base
from vqa.model.encode import Encoder
from vqa.model.families.structure import lora_targets, structure_of
from vqa.model.families.table import family_of
from vqa.question import Question


def weights(base: Base) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.model.state_dict().items()}


def test_the_base_is_as_it_was_after_an_adapter(base: Base, settings: Make) -> None:
    before = weights(base)
    with attached(base, settings().lora, seed=0) as model:
        assert any("lora_" in name for name, _ in model.named_parameters())
    after = weights(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


# Every argument of peft.LoraConfig, and what was looked at: that the base is the same after it.
OPTIONS: dict[str, dict[str, Any]] = {
    "lora_bias": {"lora_bias": True},
    "use_dora": {"use_dora": True},
    "use_rslora": {"use_rslora": True},
    "use_qalora": {"use_qalora": True, "qalora_group_size": 16},
    "target_parameters": {"target_modules": "none", "target_parameters": ["q_proj.weight"]},
    "lm_head": {"target_modules": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}},
    "exclude_modules": {"exclude_modules": ["q_proj"]},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "velora_config": {"velora_config": {}},
    "monteclora_config": {"monteclora_config": {}},
    "megatron_config": {"megatron_config": {}},
    # only read with init_lora_weights of that name, which is refused
    **{name: {name: {}} for name in ("loftq_config", "eva_config", "corda_config", "lora_ga_config")},
}
# PEFT's own complaint -> what is configured; midway through the layers, or before them
FAIL: dict[str, dict[str, Any]] = {
    "only 2d and 3d are supported": {"target_parameters": ["input_layernorm.weight"]},
    "matches neither A nor B": {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}},
    "layers_to_transform": {"layers_to_transform": [0]},
    "ephemeral_gpu_offload": {"runtime_config": {"ephemeral_gpu_offload": True}},
}
REFUSED = {"kasa_config", "alora_invocation_tokens", "arrow_config", "layer_replication", "modules_to_save"}
REFUSED |= {"bias", "init_lora_weights", "trainable_token_indices"}  # by vqa.config.check
PLAIN = {"r", "target_modules", "lora_alpha", "lora_dropout"}
PARTS = {"qalora_group_size", "ensure_weight_tying", "alpha_pattern", "megatron_core", "layers_pattern"}


def test_every_argument_of_peft_was_looked_at() -> None:
    """A new version may bring one that changes the base, as kasa_config does."""
    from dataclasses import fields

    from peft import PeftConfig

    own = {f.name for f in fields(LoraConfig)} - {f.name for f in fields(PeftConfig)}
    tried = {name for more in FAIL.values() for name in more} | OPTIONS.keys()
    assert own - tried - REFUSED - PLAIN - PARTS == set()


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_leaves_a_trace_on_the_base(
    option: str, base: Base, encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    before, expected = weights(base), [p.p for p in score(encoder, questions[:4], 4)]
    with attached(base, settings().lora | OPTIONS[option], seed=0) as model:
        moved = [weight for name, weight in model.named_parameters() if weight.requires_grad]
        assert moved
        for weight in moved:
            weight.data.add_(0.01)
    after = weights(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.p for p in score(encoder, questions[:4], 4)] == expected


@pytest.mark.parametrize("message", FAIL)
def test_an_adapter_that_peft_refuses_midway_leaves_no_trace(
    message: str, base: Base, settings: Make
) -> None:
    before = weights(base)
    with (
        pytest.raises(UserError, match=rf"lora: .*{message}"),
        attached(base, settings().lora | FAIL[message], seed=0),
    ):
        pass
    assert weights(base).keys() == before.keys()
    assert not any("lora" in type(module).__module__ for module in base.model.modules())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("size")])
def test_the_base_is_as_it_was_after_an_adapter_that_failed_half_way(
    base: Base, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = weights(base)
    with attached(base, settings().lora, seed=0) as model:
        save_adapter(model, tmp_path, base)

    def fail(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(PeftModel, "load_adapter", fail)
    words = "does not fit into the memory" if isinstance(error, torch.OutOfMemoryError) else "does not fit"
    with pytest.raises(UserError, match=words), loaded(base, tmp_path):
        pass
    assert before.keys() == weights(base).keys()
    assert not hasattr(base.model, "peft_config")


def test_the_same_seed_starts_the_same_adapter(base: Base, settings: Make) -> None:
    states = []
    for seed in (1, 1, 2):
        with attached(base, settings().lora, seed) as model:
            states.append({name: tensor.clone() for name, tensor in adapter_state(model).items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", ["all_linear", "attention", "rslora", "dora"])
def test_target_modules_hit_every_language_layer_and_no_vision_layer(
    family: str, option: str, settings: Make
) -> None:
    base = FAMILIES[family]()
    lora = settings(f"lora={option}").lora
    family_data = family_of(base.config)
    lora |= {"target_modules": lora_targets(family_data, structure_of(base), lora["target_modules"])}
    model: Any = get_peft_model(base, LoraConfig(**{k: v for k, v in lora.items() if not k.startswith("_")}))
    hit = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    layers = base.config.text_config.num_hidden_layers
    assert len(hit) == layers * (4 if option == "attention" else 7)
    assert not [name for name in hit if VISION_MODULE.search(name)]


def test_a_target_in_the_vision_tower_is_refused(base: Base, settings: Make) -> None:
    lora = settings().lora | {"target_modules": ".*(qkv|q_proj)"}
    with (
        pytest.raises(UserError, match=r"lora.target_modules hits the vision tower \(.*visual.*restrict it"),
        attached(base, lora, seed=0),
    ):
        pass
    assert not any("lora_" in name for name, _ in base.model.named_parameters())


def test_a_target_that_does_not_exist_is_refused(base: Base, settings: Make) -> None:
    with (
        pytest.raises(UserError, match=r"lora: .*not found"),
        attached(base, settings().lora | {"target_modules": "nothing"}, seed=0),
    ):
        pass


def test_a_saved_adapter_answers_the_same_here_and_in_plain_peft(
    encoder: Encoder, questions: list[Question], settings: Make, tmp_path: Path
) -> None:
    base = encoder.base
    lora = settings().lora | {"init_lora_weights": False}  # an adapter that changes answers
    with attached(base, lora, seed=3) as model:
        expected = [p.p for p in score(encoder, questions, 16)]
        save_adapter(model, tmp_path / "adapter", base)
    with loaded(base, tmp_path / "adapter") as model:
        assert [p.p for p in score(encoder, questions, 16)] == expected
    plain = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    found = [p.p for p in score(encoder, questions, 16)]
    plain.unload()
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-6)


def test_a_folder_without_an_adapter_is_refused(base: Base, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"adapter=.*no adapter_config.json there; train one"),
        loaded(base, tmp_path),
    ):
        pass


def test_an_adapter_with_missing_weights_is_refused(base: Base, settings: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with attached(base, settings().lora, seed=0) as model:
        save_adapter(model, tmp_path, base)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    stored.pop(next(iter(stored)))
    save_file(stored, tmp_path / "adapter_model.safetensors")
    with (
        pytest.raises(UserError, match="does not fit asset:tiny: 1 weights are missing"),
        loaded(base, tmp_path),
    ):
        pass
