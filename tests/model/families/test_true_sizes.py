"""Models of conf/model have the structure they are published with, and adapters go on all of their layers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.harness.true_sizes import SIZES, few_layers, true_config
from tests.conftest import CONF
from vqa.model.families.structure import lora_targets, model_class, structure_of
from vqa.model.families.table import FAMILIES, family_of
from vqa.model.generic_text import GenericText
from vqa.model.packing import Suffix
from vqa.model.vision.features import VisionFeatures

BILLIONS = {  # as published, sound and multi-token prediction apart
    "qwen3_5_4b": 4.5,
    "qwen3_5_9b": 9.4,
    "qwen3_8_27b": 27.4,
    "gemma4_e4b": 7.6,
    "gemma4_12b": 12.0,
    "internvl3_5_8b": 8.5,
    "internvl3_5_14b": 15.1,
    "varco2_14b": 15.2,
    "exaone4_5_33b": 34.0,
    "smolvlm2_2b": 2.2,
    "glm4_6v_flash": 10.3,
}


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        model = model_class(config)(config)
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", SIZES)
def test_a_named_model_has_its_published_size_and_adapters_in_every_layer(name: str) -> None:
    assert (CONF / "model" / f"{name}.yaml").is_file()
    model = on_meta(true_config(name))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == pytest.approx(BILLIONS[name] * 1e9, rel=0.04)
    family, structure = family_of(model.config), structure_of(model)
    assert family in FAMILIES
    config = LoraConfig(r=2, target_modules=lora_targets(family, structure, "all_linear"))
    with torch.device("meta"):
        adapted: Any = get_peft_model(model, config)
    hit = [n for n, m in adapted.named_modules() if hasattr(m, "lora_A")]
    layers = {n.removeprefix(f"base_model.model.{structure.layers}.").split(".")[0] for n in hit}
    assert layers == {str(i) for i in range(model.config.get_text_config().num_hidden_layers)}


@pytest.mark.families
@pytest.mark.parametrize("name", SIZES)
def test_a_few_layers_of_true_width_answer_with_and_without_a_shared_prefix(name: str) -> None:
    layers = {"gemma4_e4b": 12, "gemma4_12b": 6}.get(name, 4)
    config = few_layers(name, layers)
    inner = config.get_text_config()
    inner.vocab_size = inner.vocab_size_per_layer_input = 512
    config.image_token_id = 5
    torch.manual_seed(0)
    model: Any = model_class(config)(config).eval()
    writer: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    text = GenericText(model, writer, True, torch.device("cpu"))
    pooled = torch.randn(16, inner.hidden_size)
    listed = config.model_type != "internvl"
    features = VisionFeatures(pooled, (), (1, 16), (1, 8, 8), "", listed)
    prefix, own = torch.arange(10, 80), torch.arange(100, 120)
    suffixes = [Suffix(torch.cat([torch.full((16,), 5), own[:k]]), (features,), 0, 4) for k in (9, 20, 14)]
    found = []
    for shares in (False, True):
        text.shares_prefix = shares
        with torch.no_grad():
            found.append(text.logits(text.batch(prefix, suffixes, False, False)).float())
    assert found[0].shape == (3, 512)
    assert bool(found[0].isfinite().all())
    spread = found[0].std()
    assert float((found[0] - found[1]).abs().max() / spread) < 1e-3
