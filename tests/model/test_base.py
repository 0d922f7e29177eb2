"""One frozen model per process, taken as its folder holds it; what cannot be used is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Make
from vqa.errors import UserError
from vqa.model.base import Base, load_base, model_folder, model_source, read_model_config


def quantized_names(base: Base) -> list[str]:
    kinds = ("Linear4bit", "Linear8bitLt")
    return [name for name, module in base.model.named_modules() if type(module).__name__ in kinds]


def test_the_same_settings_share_one_model_and_others_replace_it(settings: Make) -> None:
    first = load_base(settings())
    assert load_base(settings("lora.r=4", "image.cache_gib=0.5")) is first
    assert first.vision.limit_bytes == 2**29
    other = load_base(settings("precision=bfloat16"))
    assert other.dtype == next(other.model.parameters()).dtype == torch.bfloat16
    assert load_base(settings()) is not first


def test_the_base_is_frozen_and_knows_its_picture_token(base: Base) -> None:
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.ids("<|image_pad|>") == [base.image_token]


@pytest.mark.parametrize(
    ("path", "folder"),
    [("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"), ("~/model", "{home}/model")],
)
def test_a_path_is_a_hub_id_or_a_folder(
    path: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    assert model_folder(path) == folder.format(home=tmp_path)


def test_what_every_loader_is_told_runs_no_code(settings: Make) -> None:
    assert model_source(settings())[1]["trust_remote_code"] is False


def test_an_asset_is_a_model_inside_the_package() -> None:
    assert (Path(model_folder("asset:tiny")) / "config.json").is_file()


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_folder_without_a_model_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=rf"model.path={path}: no config.json there; give a model folder or"):
        model_folder(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2 is no image-text-to-text model of transformers; choose a vision"),
        (
            {"model_type": "mllama"},
            r"mllama cannot be trained here: .* lacks mm_encoder_outputs in its",
        ),
        ({"model_type": "unheard_of"}, r"cannot be loaded: .*unheard_of"),
        ({}, "cannot be loaded: Unrecognized model"),
    ],
)
def test_another_kind_of_model_is_refused_before_its_weights_are_read(
    config: dict[str, Any], message: str, tmp_path: Path, settings: Make
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"model.path={tmp_path}:? {message}"):
        load_base(settings(f"model.path={tmp_path}"))


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "gptq", "bits": 4, "load_in_4bit": True}, "GPTQ"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "FP8"),
        ({"quant_method": "fbgemm_fp8"}, "FBGEMM-FP8"),
        ({"quant_method": "compressed-tensors"}, "COMPRESSED-TENSORS"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"group_size": 64, "bits": 4}, "AN UNNAMED METHOD SUCH AS MLX'"),
    ],
)
@pytest.mark.parametrize("part", ["whole", "text"])
def test_weights_that_are_stored_in_another_way_are_refused_before_they_are_read(
    stored: dict[str, Any], name: str, part: str, tmp_path: Path, settings: Make
) -> None:
    config = json.loads((Path(model_folder("asset:tiny")) / "config.json").read_text())
    (config if part == "whole" else config["text_config"])["quantization_config"] = stored
    (tmp_path / "config.json").write_text(json.dumps(config))  # there are no weights
    made = settings(f"model.path={tmp_path}")
    message = rf"model.path={tmp_path}: its weights are stored by {name}, and adapters are trained here on"
    for use in (load_base, read_model_config):  # a run, the doctor
        with pytest.raises(UserError, match=message):
            use(made)


def test_a_hub_model_that_is_not_here_is_refused_offline(settings: Make) -> None:
    made = settings("model.path=nobody/nothing", "env.offline=true")
    with pytest.raises(UserError, match=r"model.path=nobody/nothing cannot be loaded: .*HF_HOME first, or"):
        read_model_config(made)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_the_language_model_is_quantised(settings: Make, quantization: str) -> None:
    base = load_base(settings(f"quantization={quantization}"))
    names = quantized_names(base)
    assert len(names) == base.model.config.text_config.num_hidden_layers * 7
    assert not [name for name in names if "visual" in name or "lm_head" in name]


@pytest.fixture
def stored_nf4(settings: Make, tmp_path: Path) -> Path:
    """A folder that holds the embedded model as NF4."""
    base = load_base(settings("quantization=nf4"))
    for part in (base.model, base.tokenizer, base.vision.processor):
        part.save_pretrained(tmp_path)
    return tmp_path


def test_a_checkpoint_stored_as_nf4_is_taken_as_it_is(settings: Make, stored_nf4: Path) -> None:
    made = load_base(settings("quantization=nf4"))
    base = load_base(settings(f"model.path={stored_nf4}"))
    assert quantized_names(base) == quantized_names(made) != []
    saved, loaded = made.model.state_dict(), base.model.state_dict()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert quantized_names(load_base(settings(f"model.path={stored_nf4}", "quantization=nf4")))
    with pytest.raises(UserError, match=r"quantization=int8, but .* is stored as nf4; use quantization=none"):
        load_base(settings(f"model.path={stored_nf4}", "quantization=int8"))


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (
            "You are trying to access a gated repo.",
            r"accept its terms at https://huggingface.co/Qwen/Q, then",
        ),
        (
            "401 Client Error: Unauthorized for url",
            r"does not know the token: renew it, then: export HF_TOKEN=",
        ),
        ("403 Client Error: Forbidden", r"the token may not read this model"),
        (
            "Qwen/Q is not a local folder and is not a valid model identifier",
            r"check the spelling; a private",
        ),
        ("We couldn't connect to the hub", r"offline\? put the model into HF_HOME first"),
    ],
)
def test_a_refusal_of_the_hub_comes_with_what_helps(
    settings: Make, monkeypatch: pytest.MonkeyPatch, refusal: str, advice: str
) -> None:
    import transformers

    def refuse(*_: object, **__: object) -> None:
        raise OSError(refusal)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match=rf"model.path=Qwen/Q cannot be loaded: .*{advice}"):
        read_model_config(settings("model=qwen3_vl_2b", "model.path=Qwen/Q"))
