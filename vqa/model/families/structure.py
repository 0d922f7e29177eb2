"""What a model is made of, read from its configuration before any weight is loaded, and on which GPU it lies.

A model whose layers are spread over several GPUs is one process that computes them one after the other (naive
pipeline): accelerate's hooks carry what goes from a layer to the next from GPU to GPU. What is no text layer
stays on the first GPU: vision part, embeddings, vocabulary.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vqa.errors import UserError
from vqa.model.families.family import Family

EXPERT_ROUTERS = ("gate", "router", "shared_expert_gate")  # they choose who computes
QUANTISED = {"int8": 0.52, "nf4": 0.27}  # bytes of a weight and its scales, over those of 16 bits


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


def spread_layers(model: Any, cards: int, quantization: str = "none") -> dict[str, int]:
    """The GPU of every module, as `from_pretrained` takes it for `device_map`.

    Layers stay in their order, and every GPU gets about as many bytes of weights.

    Args:
        model: On any device; one without memory will do.
        cards: Number of GPUs.
        quantization: "nf4" or "int8" where the layers' weights have 4 or 8 bits.
    """
    name = structure_of(model).layers
    share = QUANTISED.get(quantization, 1.0)
    of_layer = [_numel(layer) * share for layer in model.get_submodule(name)]
    held = _numel(model) - _numel(model.get_submodule(name))  # weights on the card that is being filled
    left, card = held + sum(of_layer), 0  # of this card and those after it
    placed = dict.fromkeys(_outside(model, name), 0)
    for i, size in enumerate(of_layer):
        if card < cards - 1 and held + size / 2 > left / (cards - card):
            left, held, card = left - held, 0.0, card + 1
        placed[f"{name}.{i}"] = card
        held += size
    return placed


def _outside(module: nn.Module, layers: str, name: str = "") -> Iterator[str]:
    """Names of all modules, and of parameters outside any, that hold no layer."""
    for own, _ in module.named_parameters(prefix=name, recurse=False):
        yield own
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if layers.startswith(f"{full}."):
            yield from _outside(child, layers, full)
        elif full != layers:
            yield full


def _numel(module: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in module.parameters()))
