"""The base model: loaded once per process, frozen, shared by every trial."""

import importlib.resources
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from PIL import Image

from vqa.config.check import NEED_OWN_DECODER
from vqa.config.library import build
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.machine.device import cards_for, choose_device, choose_dtype, limit_memory, release_memory
from vqa.model.families.family import Family
from vqa.model.families.structure import (
    Structure,
    empty_model,
    image_token,
    lora_targets,
    model_class,
    read_structure,
    spread_layers,
    stored_quantization,
    structure_of,
)
from vqa.model.families.table import family_of
from vqa.model.generic_prompt import PromptWriter
from vqa.model.generic_text import GenericText
from vqa.model.kernels.delta_net import missing_kernel
from vqa.model.kernels.pointwise import use_compiler
from vqa.model.letters import Letters
from vqa.model.memory import does_not_fit
from vqa.model.own_text import OwnText
from vqa.model.plugs import Text
from vqa.model.vision.cache import VisionCache
from vqa.model.vision.generic_pictures import BLANK, GenericPictures, load_image_processor, load_processor
from vqa.terminal import left_to_others

log = logging.getLogger(__name__)
# what transformers raises for files that are missing, cut off, or made up
UNFIT = (
    *(OSError, ImportError, ValueError, LookupError, TypeError, AttributeError),
    *(RuntimeError, ArithmeticError),
)
TOLD = OSError, ImportError, ValueError  # of any of them the message alone tells what to mend
MOST_LAYERS, LARGEST_SIZE = 1000, 2**24  # of a made-up config.json more would fill any memory before it fails
ASSET = "asset:"
BLANK_TOKENS = (4, 64)  # the same of a tower whose placeholders are only counted
_resident: dict[tuple[Any, ...], "Base"] = {}


@dataclass
class Base:
    """A frozen model with all that belongs to it.

    Args:
        model: Of transformers, for image-text-to-text.
        tokenizer: Its tokenizer.
        letters: Token ids of the option letters, by the number of options.
        vision: Features of the pictures seen so far.
        device: Where it computes.
        dtype: In what type.
        path: Hub id or folder, as configured.
        family: What is special about its kind.
        text: Questions and features to logits.
        structure: Names of its modules.
    """

    model: Any
    tokenizer: Any
    letters: Letters
    vision: VisionCache
    device: torch.device
    dtype: torch.dtype
    path: str
    family: Family
    text: Text
    structure: Structure

    @property
    def image_token(self) -> int:
        """Id of the placeholder for one visual token."""
        return int(image_token(self.model.config))

    @property
    def is_own(self) -> bool:
        """Whether our own decoder computes its language model: hidden states and soft prompts need that."""
        return self.family.is_own(self.model.config)

    def lora_targets(self, kind: str) -> str:
        """What an adapter of that kind ("all_linear", "attention") is put on, as a regular expression."""
        return lora_targets(self.family, self.structure, kind)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, none added."""
        return self.ids_of([text])[0]

    def ids_of(self, texts: list[str]) -> list[list[int]]:
        """The same of several texts, faster than one by one."""
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])


def model_folder(path: str) -> str:
    """Hub id or folder for `model.path`; `asset:name` is a model that comes with the package.

    Raises:
        UserError: A local folder was named that does not exist, or holds no model.
    """
    if path.startswith(ASSET):
        return str(importlib.resources.files("vqa") / "assets" / path.removeprefix(ASSET))
    local = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or local.exists()
    if looks_local and not (local / "config.json").is_file():
        raise UserError(
            f"model.path={path}: no config.json there; "
            "give a model folder or a hub id such as Qwen/Qwen3-VL-8B-Instruct"
        )
    return str(local) if looks_local else path


def model_source(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Where transformers finds a run's model: folder or hub id, and `from_pretrained`'s further arguments.

    Every loader gets these arguments, so that none executes a module of the model's own.

    Raises:
        UserError: A local folder was named that does not exist, or holds no model.
    """
    where = {
        "revision": settings.model.revision,
        "local_files_only": settings.env.offline,
        "trust_remote_code": False,
    }
    return model_folder(settings.model.path), where


def read_model_config(settings: Settings) -> Any:
    """The model's own configuration, without its weights: from a folder, the cache or the hub.

    Raises:
        UserError: It cannot be read, or such models cannot be used here; said before any weight is read.
    """
    from transformers import AutoConfig

    path = settings.model.path
    folder, where = model_source(settings)
    with _files_told(path):
        config: Any = AutoConfig.from_pretrained(folder, **where)
        _refuse_sizes(config.to_dict(), path)
        _refuse_kernels_of_the_hub(config, path)
        for part in (config, config.get_text_config()):
            stored_quantization(part, path)
        model_class(config, path)
        _refuse_needs(settings, family_of(config, settings.env.device_map), config)
    return config


@contextmanager
def _files_told(path: str) -> Iterator[None]:
    """Turn what transformers raises for a model's files inside the block into the user's message.

    Raises:
        UserError: The files are missing, cut off, or made up.
        torch.OutOfMemoryError: As it was raised.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (*UNFIT, SafetensorError, StrictDataclassError) as error:
        if isinstance(error, UNFIT) and not _is_of_files(error):
            raise
        raise UserError(_cannot_load(path, error)) from error
    except Exception as error:  # tokenizers raises this very class, and no narrower one
        if type(error) is not Exception:
            raise
        raise UserError(_cannot_load(path, ValueError(f"tokenizer.json: {error}"))) from error


def _is_of_files(error: Exception) -> bool:
    """Whether files raised it: anything else that our own code raises is a fault, and keeps its traceback.

    A RuntimeError of files is raised while they are read: weights of other sizes than config.json says, or
    JSON that is nested too deeply. A model that runs raises them too, when we ask it wrongly.
    """
    if isinstance(error, TOLD):
        return True
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    calls = {frame.f_code.co_name for frame in frames if _is_of_transformers(frame)}
    return "from_pretrained" in calls if isinstance(error, RuntimeError) else bool(calls)


def _is_of_transformers(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("transformers.")


def _refuse_sizes(values: Mapping[str, Any], path: str) -> None:
    """Refuse sizes that no model has, before a model of them is laid out.

    Args:
        values: Of config.json, with its parts.
        path: The model, as configured.

    Raises:
        UserError: Names the key.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            _refuse_sizes(value, path)
        key = str(name)  # of a table such as id2label a number
        most = MOST_LAYERS if "layers" in key or key == "depth" else LARGEST_SIZE
        bounded = most == MOST_LAYERS or "size" in key or key == "image_token_id"
        least = 1 if key in ("num_hidden_layers", "depth") else 0
        if isinstance(value, int) and bounded and not least <= value <= most:
            raise UserError(
                f"model.path={path}: {name} of config.json must be in {least}..{most}, got {value}"
            )


def read_processor(settings: Settings, config: Any) -> Any | None:
    """The whole processor of a model on the generic path; None for one of our own.

    Raises:
        UserError: It cannot be read, or needs a library that is missing.
    """
    from transformers import AutoTokenizer

    family = family_of(config, settings.env.device_map)
    if family.is_own(config):
        return None
    folder, where = model_source(settings)
    with _files_told(settings.model.path):
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        pixels = load_image_processor(folder, config, family, where)
        return load_processor(folder, config, tokenizer, pixels, where)


def _refuse_kernels_of_the_hub(config: Any, path: str) -> None:
    """Refuse a configuration that names a kernel on the hub: transformers would load its code.

    Raises:
        UserError: Names the part and the kernel.
    """
    parts = {"config.json": config} | {
        f"its {name}": getattr(config, name, None) for name in config.sub_configs
    }
    for name, part in parts.items():
        wanted = getattr(part, "_attn_implementation", None)
        if isinstance(wanted, str) and not wanted.replace("_", "").isalnum():
            raise UserError(
                f"model.path={path}: {name} wants attention by {wanted!r}, which is code of others and not "
                "loaded; remove _attn_implementation from config.json"
            )


HINTS = {  # what the hub's refusals say -> what helps
    "gated repo": "accept its terms at https://huggingface.co/{path}, then: export HF_TOKEN=your-token",
    "401 Client Error": "the hub does not know the token: renew it, then: export HF_TOKEN=your-token",
    "403 Client Error": "the token may not read this model: give it that right, or accept the model's terms",
    "not a valid model identifier": "check the spelling; a private model needs: export HF_TOKEN=your-token",
}


def _cannot_load(path: str, error: Exception) -> str:
    offline = "offline? put the model into HF_HOME first, or give model.path=/a/folder"
    hint = next((hint.format(path=path) for words, hint in HINTS.items() if words in str(error)), offline)
    said = (str(error).splitlines() or [""])[0]
    if not isinstance(error, OSError | ValueError | ImportError):
        said = f"{type(error).__name__}: {said}"
    return f"model.path={path} cannot be loaded: {said} ({hint})"


def release_resident() -> None:
    """Let go of the model that this process holds, for another process that needs its memory."""
    _resident.clear()
    release_memory()


def load_base(settings: Settings) -> Base:
    """Load the model, or take the one this process already holds.

    A worker keeps one model: another one replaces it, so that two never lie in memory together.

    Raises:
        UserError: The model cannot be found, read or used.
    """
    device = choose_device(settings.env.device)
    dtype = choose_dtype(settings.precision, device)
    cards = cards_for(settings.env.device_map, device)
    limit_memory(settings.budget.max_memory_gib, device, cards)
    use_compiler(settings.env.compile)
    key = (settings.model.path, settings.model.revision, settings.quantization.name, device, dtype, cards)
    if key not in _resident:
        _resident.clear()
        release_memory()
        with _files_told(settings.model.path):
            _resident[key] = _load(settings, device, dtype, cards)
    base = _resident[key]
    _refuse_needs(settings, base.family, base.model.config)
    base.vision.limit(settings.image.cache_gib)
    base.vision.use_disk(settings.image)
    return base


def _load(settings: Settings, device: torch.device, dtype: torch.dtype, cards: int) -> Base:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    _set_up_libraries()
    folder, where = model_source(settings)
    log.info("loading %s (%s, %s) on %s", settings.model.path, settings.quantization.name, dtype, device)
    config = read_model_config(settings)
    family = family_of(config, settings.env.device_map)
    _refuse_other_weights(config, folder, settings.model.path)
    weights = _quantization(settings, config, dtype)
    # None would be taken for "not quantised" and overrule what a quantised checkpoint says of itself
    quantized = {} if weights is None else {"quantization_config": weights}
    try:
        with left_to_others():  # bars of downloads and of weights
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                device_map=_device_map(settings, config, device, cards),
                attn_implementation="sdpa",
                **quantized,
                use_safetensors=True,  # no pickled weights
                **where,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        processor = load_image_processor(folder, config, family, where)
    except torch.OutOfMemoryError as error:
        doing = f"{settings.model.path} ({settings.quantization.name})"
        raise UserError(str(does_not_fit(doing, device, error))) from error
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        # bitsandbytes would repack 4-bit weights for CPU inference: they could not be trained on after that,
        # and the layout needs widths divisible by 64
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    letters = Letters(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    structure = structure_of(model)
    if family.is_own(config):
        cache = VisionCache(model, processor, settings.image.cache_gib)
        text: Text = OwnText(model, tokenizer, device)
    else:
        whole = load_processor(folder, config, tokenizer, processor, where)
        cache, samples = _vision(settings, model, processor, whole, family, structure.pictures)
        writer = PromptWriter(whole, tokenizer, family.template, samples)
        prompts = GenericText(model, writer, family.shares_prefix, device)
        own = family.is_packed(config) and _has_kernels(config, device)
        text = OwnText(model, tokenizer, device, prompts) if own else prompts
    return Base(model, tokenizer, letters, cache, device, dtype, settings.model.path, family, text, structure)


def _set_up_libraries() -> None:
    from transformers.utils.logging import disable_progress_bar

    # transformers warns of its own deprecated call whenever PEFT touches a model
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    # cuDNN's SDPA backward gave NaN for a tower with 64 patches on Hopper (pytorch issue 196678)
    torch.backends.cuda.enable_cudnn_sdp(False)


def _vision(
    settings: Settings, model: Any, processor: Any, whole: Any, family: Family, parts: Sequence[str]
) -> tuple[VisionCache, list[str]]:
    """How a model that is not all our own sees pictures, and the placeholders of two blank ones."""
    if family.own_tower:
        cache = VisionCache(model, processor, settings.image.cache_gib)
        return cache, [whole.image_token * tokens for tokens in BLANK_TOKENS]
    pictures = GenericPictures(model, whole, family, parts)
    cache = VisionCache(model, processor, settings.image.cache_gib, pictures)
    blank = [Image.new("RGB", size) for size in BLANK]
    return cache, [pictures.prepare(picture, settings.image).placeholder for picture in blank]


def _device_map(settings: Settings, config: Any, device: torch.device, cards: int) -> dict[str, Any]:
    """The whole model on one device, or its layers over several GPUs."""
    if cards == 1:
        return {"": device}
    kind = stored_quantization(config, settings.model.path) or settings.quantization.name
    return spread_layers(empty_model(config), cards, kind)


def _refuse_other_weights(config: Any, folder: str, path: str) -> None:
    """Refuse weights that are far too few for the configuration: what is missing would be made up in memory.

    Args:
        config: The model's configuration.
        folder: Of the model, or its hub id, which is not looked at.
        path: The model, as configured.

    Raises:
        UserError: The configuration has more than four weights a stored byte.
    """
    stored = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    if stored and (described := sum(p.numel() for p in empty_model(config).parameters())) > 4 * stored:
        raise UserError(
            f"model.path={path} cannot be loaded: config.json describes {described} weights, and the "
            f"safetensors files have {stored} bytes; they are cut off, or not of one model: take both from "
            "one place"
        )


def _has_kernels(config: Any, device: torch.device) -> bool:
    """Whether this machine has what our own decoder needs for such a model; says once what is missing."""
    layers = getattr(config.get_text_config(), "layer_types", None) or ()
    missing = missing_kernel(device) if device.type == "cuda" and "linear_attention" in layers else ""
    if missing:
        log.warning(
            "%s goes through transformers' forward, which is several times slower for its linear attention; "
            "for our own decoder: %s",
            config.model_type,
            missing,
        )
    return not missing


def _refuse_needs(settings: Settings, family: Family, config: Any) -> None:
    """Refuse what needs our own decoder where transformers' forward computes the model.

    Raises:
        UserError: What cannot be done, why, and what can.
    """
    method = settings.adapt.method
    if method in NEED_OWN_DECODER and not family.is_own(config):
        if family_of(config).is_own(config):
            raise UserError(
                f"adapt={method} needs a prompt or hidden states inside the decoder, which cannot be had "
                "while env.device_map=balanced spreads it over several GPUs; use env.device_map=single, or "
                "adapt=tent, sar, consistency, views, zero or repair"
            )
        raise UserError(
            f"adapt={method} needs a prompt or hidden states inside the decoder, which can be had here "
            f"for Qwen2.5-VL and Qwen3-VL only; {config.model_type} gives letter logits; "
            "use adapt=tent, sar, consistency, views, zero or repair, or a Qwen2.5-VL or Qwen3-VL model"
        )


def _quantization(settings: Settings, config: Any, dtype: torch.dtype) -> Any | None:
    """The quantisation to apply while loading; None leaves the checkpoint as it is."""
    kind, wanted = stored_quantization(config, settings.model.path), settings.quantization.weights
    if kind is not None:
        if wanted is not None and settings.quantization.name != kind:
            raise UserError(
                f"quantization={settings.quantization.name}, but {settings.model.path} is stored as {kind}; "
                "use quantization=none to take it as it is"
            )
        return None
    if wanted is None:
        return None
    extra: dict[str, Any] = {"bnb_4bit_compute_dtype": dtype} if wanted.get("load_in_4bit") else {}
    if "llm_int8_skip_modules" not in wanted:  # the vision part and the vocabulary, by their real names
        family = family_of(config)
        extra["llm_int8_skip_modules"] = list(family.unquantised or read_structure(config).unquantised)
    return build("quantization.weights", wanted, **extra)
