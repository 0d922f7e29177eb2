"""What a model is made of, read from its configuration before any weight is loaded."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vqa.errors import UserError
from vqa.model.families.family import Family

EXPERT_ROUTERS = ("gate", "router", "shared_expert_gate")  # they choose who computes


@dataclass(frozen=True)
class Structure:
    """Names in a model's module tree.

    Args:
        layers: Of the list of text layers, such as "model.language_model.layers".
        unquantised: Modules that stay in 16 bits: vision, connectors, the vocabulary.
        pictures: Modules that pictures go through: those but the vocabulary.
        linear: Names of the linear layers inside the text layers.
    """

    layers: str
    unquantised: tuple[str, ...]
    pictures: tuple[str, ...]
    linear: tuple[str, ...]


def model_class(config: Any, path: str = "") -> Any:
    """transformers' class for a configuration.

    Args:
        config: Of a model.
        path: Where it is, for messages.

    Raises:
        UserError: It is no vision-language model, or lacks what the generic path needs.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    kind = config.model_type
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(
            f"model.path={path}: {kind} is no image-text-to-text model of transformers; "
            "choose a vision-language model"
        )
    found: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    accepted = inspect.signature(found.forward).parameters
    missing = [
        *(["mm_encoder_outputs in its forward"] if "mm_encoder_outputs" not in accepted else []),
        *(["get_image_features"] if not hasattr(found, "get_image_features") else []),
        *(["image_token_id in its configuration"] if image_token(config) is None else []),
    ]
    if missing:
        raise UserError(
            f"model.path={path}: {kind} cannot be trained here: transformers' {found.__name__} lacks "
            f"{', '.join(missing)}, so its pictures cannot be computed once; choose another model"
        )
    return found


def empty_model(config: Any) -> Any:
    """The model without memory for its weights."""
    found = model_class(config)
    with torch.device("meta"):
        return found(config)


def read_structure(config: Any) -> Structure:
    """Names in the model of a configuration."""
    return structure_of(empty_model(config))


def stored_quantization(config: Any, path: str = "") -> str | None:
    """nf4 or int8 for a checkpoint that bitsandbytes stored in 4 or 8 bits; None for one in 16 or 32.

    Args:
        config: Of a model.
        path: Where it is, for messages.

    Raises:
        UserError: It is stored in another way (AWQ, GPTQ, FP8, ...), which cannot be trained on here.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    # some checkpoints say it of a part only
    told: dict[str, Any] = dict(stored if isinstance(stored, Mapping) else stored.to_dict())
    # bitsandbytes' old files name no method, but a width; MLX' name neither
    old = any(name.lstrip("_").startswith("load_in_") for name in told)
    method = getattr(told.get("quant_method"), "value", told.get("quant_method"))
    method = method or ("bitsandbytes" if old else "an unnamed method such as MLX'")
    if not str(method).startswith("bitsandbytes"):
        raise UserError(
            f"model.path={path}: its weights are stored by {str(method).upper().replace('_', '-')}, and "
            "adapters are trained here on weights in 16 bits or in bitsandbytes' NF4 and INT8 only; give the "
            "model that it was made from, with quantization=nf4 or int8 where memory is short"
        )
    return "nf4" if told.get("load_in_4bit", told.get("_load_in_4bit", False)) else "int8"


def structure_of(model: Any) -> Structure:
    """The names in a model."""
    text, head = model.get_decoder(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    inside = names[text]
    beside = [name for name, _ in model.named_modules() if _beside(name, inside)]
    linear = {
        name.rsplit(".", 1)[-1] for name, m in text.layers.named_modules() if isinstance(m, torch.nn.Linear)
    }
    return Structure(
        layers=f"{inside}.layers",
        unquantised=tuple(dict.fromkeys([*beside, names[head]])),
        pictures=tuple(name for name in beside if name != names[head]),
        linear=tuple(sorted(linear.difference(EXPERT_ROUTERS))),
    )


def lora_targets(family: Family, structure: Structure, kind: str) -> str:
    """What an adapter of that kind ("all_linear", "attention") is put on, as a regular expression.

    It names the language model: plain names such as gate_proj would also hit vision layers.
    """
    names = family.attention if kind == "attention" else family.linear or "|".join(structure.linear)
    text = structure.layers.split(".")[-2]
    return rf".*{text}.*\.({names})"


def image_token(config: Any) -> Any:
    """Id of the placeholder for one visual token; None where a configuration names none."""
    return getattr(config, "image_token_id", getattr(config, "image_token_index", None))


def _beside(name: str, text: str) -> bool:
    """Whether a module stands beside the text model, on its own level or in a parent's."""
    parent, _, _ = name.rpartition(".")
    within = text.startswith(f"{parent}.") if parent else True
    return bool(name) and within and name != text and not text.startswith(f"{name}.")
