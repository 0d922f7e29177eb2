"""LoRA adapters on the resident base: put on, taken off without a trace, saved, loaded."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vqa.config.library import build
from vqa.errors import UserError, refuse_no_adapter, system_error
from vqa.machine.device import release_memory
from vqa.machine.files import replacing_folder
from vqa.machine.interrupt import time_limit
from vqa.model.base import Base
from vqa.model.memory import does_not_fit

TARGETS = ("all_linear", "attention")  # names in conf/lora for what each family has of these
WEIGHTS = "adapter_model.safetensors"
RANK_WITHOUT_WEIGHTS = 64  # small in memory; that the weights are missing is told once the adapter is on
PATTERN_S = 5.0  # for one pattern and all names of modules; a sound one takes milliseconds
VISION_MODULE = re.compile(r"(^|\.)(visual|vision\w*)(\.|$)")


@contextmanager
def attached(base: Base, lora: dict[str, Any], seed: int) -> Iterator[Any]:
    """Put a fresh adapter on the base for the length of the block.

    Afterwards the base is as it was: the next adapter starts from the same modules, whatever came before.

    Args:
        base: The resident model.
        lora: The `lora` node: a peft.LoraConfig.
        seed: For the adapter's random start.

    Yields:
        The PEFT model around the base.

    Raises:
        UserError: target_modules hits nothing, or a vision layer.
    """
    from peft import get_peft_model

    torch.manual_seed(seed)
    if lora.get("target_modules") in TARGETS:
        lora = lora | {"target_modules": base.lora_targets(lora["target_modules"])}
    config = build("lora", lora)
    refuse_slow_patterns(base.model, config, "lora")
    try:
        # adapters in float32: a small update to a bfloat16 weight would be rounded away
        with bare_after_failure(base.model):
            model = get_peft_model(base.model, config, autocast_adapter_dtype=True)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"lora: {error}") from error
    try:
        _check_targets(model)
        yield model
    finally:
        detach(model)


@contextmanager
def loaded(base: Base, folder: Path) -> Iterator[Any]:
    """Put a saved adapter on the base for the length of the block.

    Yields:
        The PEFT model, for inference only.

    Raises:
        UserError: The folder holds no adapter, or one for another model.
    """
    model = plain_adapter(base.model, folder, base.path)
    try:
        model.eval()
        yield model
    finally:
        detach(model)


def plain_adapter(model: Any, folder: Path, base_path: str) -> Any:
    """Load a saved adapter with PEFT, and make sure that it fits: PEFT itself only warns.

    Args:
        model: The base model.
        folder: The adapter's folder.
        base_path: The base's name, for messages.

    Returns:
        The PEFT model.

    Raises:
        UserError: The folder holds no adapter, or one for another model.
    """
    from peft import LoraConfig, PeftModel
    from safetensors import SafetensorError

    refuse_no_adapter(folder)
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # a file that is cut off or made up
        raise UserError(
            f"adapter={folder}: adapter_config.json cannot be read ({error}); train or copy the adapter again"
        ) from error
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"adapter={folder}: no {WEIGHTS} there; weights in another format, such as pickled ones, are not "
            "loaded"
        )
    _refuse_other_rank(config, folder)
    refuse_slow_patterns(model, config, f"adapter={folder}")
    try:
        with bare_after_failure(model):
            made = PeftModel.from_pretrained(model, str(folder))
    except torch.OutOfMemoryError as error:
        raise does_not_fit(f"{base_path} with adapter={folder}", model.device, error) from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"adapter={folder} does not fit {base_path}: {str(error).splitlines()[0]}") from error
    except SafetensorError as error:
        raise UserError(f"{weights}: cannot be read ({error}); train or copy the adapter again") from error
    saved, wanted = stored_names(folder), set(adapter_state(made))
    if saved != wanted:
        detach(made)
        raise UserError(
            f"adapter={folder} does not fit {base_path}: {len(wanted - saved)} weights are missing and "
            f"{len(saved - wanted)} have no place (r={config.r}); give the model it was trained on"
        )
    return made


def _refuse_other_rank(config: Any, folder: Path) -> None:
    """Refuse a rank that the stored weights do not have: layers of that size would be made first.

    Raises:
        UserError: A rank of adapter_config.json is larger than any in the weights, or the weights are no file
            of safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as stored:
            names = [name for name in stored.keys() if "lora_A" in name]  # noqa: SIM118  (no dictionary)
            stored_ranks = [stored.get_slice(name).get_shape()[0] for name in names]
    except (SafetensorError, IndexError) as error:
        raise UserError(
            f"{folder / WEIGHTS}: cannot be read ({error}); train or copy the adapter again"
        ) from error
    largest = max(stored_ranks, default=RANK_WITHOUT_WEIGHTS)
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    if any(not isinstance(rank, int) or rank > largest for rank in ranks):
        raise UserError(
            f"adapter={folder} does not fit its weights: adapter_config.json has r={ranks[0]} or larger, the "
            f"weights have {largest} at most; train or copy the adapter again"
        )


def refuse_slow_patterns(model: Any, config: Any, where: str) -> None:
    """Refuse regular expressions of an adapter that take for ever on the names of the model's modules.

    PEFT matches them with every name, and nothing bounds how often a pattern may go back.

    Raises:
        UserError: A pattern is none, or takes longer than `PATTERN_S`.
    """
    given = [getattr(config, name, None) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    patterns = [text for text in given if isinstance(text, str)]
    patterns += [
        rf".*\.{key}$" for name in ("rank_pattern", "alpha_pattern") for key in getattr(config, name)
    ]
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        try:
            with time_limit(PATTERN_S):
                for name in names:
                    re.fullmatch(pattern, name)
        except (re.error, RecursionError) as error:
            raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from error
        except TimeoutError as error:
            raise UserError(
                f"{where}: {pattern[:80]!r} takes longer than {PATTERN_S:.0f} s on the names of the model's "
                "modules; name the modules in a simpler way"
            ) from error


@contextmanager
def bare_after_failure(model: Any) -> Iterator[None]:
    """Where putting an adapter on fails half-way, take what is there of it off the base again.

    PEFT puts its layers into the model itself, before it loads their weights: the next trial of this process
    would find them there.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        yield
    except BaseException:
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                model.set_submodule(name, module.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        model.requires_grad_(False)
        model.eval()
        raise


def stored_names(folder: Path) -> set[str]:
    """Names of the weights in an adapter's file."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as stored:
        return set(stored.keys())


def stored_state(folder: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """The weights in an adapter's file, on a device.

    Raises:
        UserError: The folder holds no adapter.
    """
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"adapter={folder}: no {file.name} there; train it with stage=final")
    return load_file(str(file), device=str(device))


def detach(model: Any) -> None:
    """Take the adapter off again and free its memory."""
    base = model.unload()
    base.requires_grad_(False)
    base.eval()
    if hasattr(base, "peft_config"):
        del base.peft_config
    release_memory()


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights under the names of its file."""
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def restore(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Put weights taken with `adapter_state` back."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, state)


def save_adapter(model: Any, folder: Path, base: Base) -> None:
    """Write the adapter in PEFT's layout, so that `PeftModel.from_pretrained` loads it as it is.

    The processor's settings go beside it. What was written is compared with the model.

    The folder appears complete or not at all.

    Raises:
        RuntimeError: The file lacks weights of the model, or holds others.
        OSError: The disk is full, or the folder cannot be written.
    """
    with replacing_folder(folder) as unfinished:
        write_adapter(model, unfinished, base)


def write_adapter(model: Any, folder: Path, base: Base) -> None:
    """Write the files of `save_adapter` one after another, for a folder that is replaced as a whole.

    Raises:
        RuntimeError: As `save_adapter`.
        OSError: As `save_adapter`.
    """
    from safetensors import SafetensorError

    model.peft_config["default"].base_model_name_or_path = base.path
    # embeddings are never trained; asking PEFT not to look spares it a call to the hub
    try:
        model.save_pretrained(str(folder), save_embedding_layers=False)
    except SafetensorError as error:
        raise system_error(error, folder) or error from error
    card = folder / "README.md"
    if card.exists():  # PEFT's template says text-generation and leaves every section empty
        card.unlink()
    processor = copy.copy(base.vision.processor)
    for name, value in base.vision.tower.arguments.items():
        setattr(processor, name, value)
    processor.save_pretrained(str(folder))
    if differing := stored_names(folder) ^ set(adapter_state(model)):
        raise RuntimeError(
            f"{folder}: {len(differing)} weights differ from the model's: {sorted(differing)[0]}"
        )


def _check_targets(model: Any) -> None:
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    if hit := [name for name in names if VISION_MODULE.search(name)]:
        raise UserError(
            f"lora.target_modules hits the vision tower ({hit[0]} and {len(hit) - 1} more); "
            "restrict it to language_model"
        )
