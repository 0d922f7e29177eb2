"""Where the parts of a model lie when its layers are spread over several GPUs.

One process computes them one after the other (naive pipeline): accelerate's hooks carry what goes from a
layer to the next from GPU to GPU. What is no text layer stays on the first GPU: vision part, embeddings,
vocabulary.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from vqa.model.families.structure import structure_of

QUANTISED = {"int8": 0.52, "nf4": 0.27}  # bytes of a weight and its scales, over those of 16 bits


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
    placed = dict.fromkeys(_beside(model, name), 0)
    for i, size in enumerate(of_layer):
        if card < cards - 1 and held + size / 2 > left / (cards - card):
            left, held, card = left - held, 0.0, card + 1
        placed[f"{name}.{i}"] = card
        held += size
    return placed


def _beside(module: nn.Module, layers: str, name: str = "") -> Iterator[str]:
    """Names of all modules, and of parameters outside any, that hold no layer."""
    for own, _ in module.named_parameters(prefix=name, recurse=False):
        yield own
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if layers.startswith(f"{full}."):
            yield from _beside(child, layers, full)
        elif full != layers:
            yield full


def _numel(module: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in module.parameters()))
