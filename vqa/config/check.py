"""What a run may be told: checked before anything is loaded.

The composed Hydra configuration enters here and leaves as one `Settings`. Everything that can be refused
without loading a model is refused here. Pydantic refuses unknown and missing keys, wrong types and values out
of range, by the types in `vqa.config.settings`; the functions below refuse what several keys say together.
"""

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqa.config.library import TRUSTED, check_target
from vqa.config.messages import LANGUAGES
from vqa.config.near import known_words, nearest
from vqa.config.place import detected
from vqa.config.reference import help_text, rule, type_of
from vqa.config.settings import ImageSettings, InferenceSettings, PromptSettings, Settings
from vqa.config.stages import STAGES, stages_text
from vqa.errors import UserError, require
from vqa.question import FEWEST, LETTERS

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LONGEST_NAME = 200  # bytes of a folder's name: file systems take 255, and files beside it add to it
LORA_STARTS = (True, False, "gaussian", "orthogonal")  # lora.init_lora_weights that leave the base alone
LARGEST_RANK = 2**14  # no matrix of a base is wider where an adapter goes
OUT_OF_RANGE = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")  # pydantic's names


def register_resolvers() -> None:
    """Make the resolvers known that the files in conf/ use, such as `${times:x,y}`."""
    OmegaConf.register_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_resolver("output_folder", _output_folder, replace=True)
    OmegaConf.register_resolver("study_folder", study_name, replace=True)
    OmegaConf.register_resolver("stage_folder", _stage_name, replace=True)
    OmegaConf.register_resolver("times", lambda *factors: math.prod(factors), replace=True)
    OmegaConf.register_resolver("detected_env", detected, replace=True)
    OmegaConf.register_resolver("key_meanings", help_text, replace=True)
    OmegaConf.register_resolver("stage_meanings", stages_text, replace=True)


def read_settings(cfg: DictConfig) -> Settings:
    """Check a composed configuration.

    Args:
        cfg: What Hydra composed, without the `hydra` node.

    Returns:
        The same values, typed.

    Raises:
        UserError: A key is unknown, missing, of the wrong type, out of range, or contradicts another one.
    """
    from pydantic import ValidationError  # a tenth of a second that `--help` does not need

    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    if not isinstance(plain, dict):
        raise TypeError(f"configuration must be a mapping, got {type(plain).__name__}")
    values = {str(key): value for key, value in plain.items()}
    if "plain" in values:  # a field of ours, not a key
        raise UserError("unknown key 'plain'")
    try:
        settings = _validator().validate_python(values)
    except ValidationError as error:
        raise UserError(_refusal(error.errors())) from error
    _refuse_switches(settings, values)
    settings.plain = values
    _check_values(settings)
    for name in TRUSTED:
        check_target(name, _node(settings, name))
    return settings


@cache
def _validator() -> "TypeAdapter[Settings]":
    """What checks types: made once, each job of a sweep needs it."""
    from pydantic import TypeAdapter

    return TypeAdapter(Settings)


def language(cfg: DictConfig) -> str:
    """The language of a configuration of which nothing is checked yet; without the key English.

    Raises:
        UserError: It is none of ours.
    """
    lang = OmegaConf.select(cfg, "lang", default="en")
    require(lang in LANGUAGES, "lang", rule(type_of(["lang"])), lang)
    return str(lang)


def _explain(error: OmegaConfBaseException) -> str:
    key = f"configuration key {error.full_key}: " if error.full_key else "configuration: "
    text = (error.msg or str(error)).splitlines()[0]
    if "Environment variable" in text:
        text += "; set it (export NAME=value) or give the key a value on the command line"
    elif "Mandatory value" in text or "Missing mandatory" in text:
        text += "; give it on the command line as key=value"
    return key + text


def _refusal(errors: Sequence[Any]) -> str:
    """One message for what pydantic refused; an unknown key comes first: it often explains a missing one."""
    first = min(errors, key=lambda error: error["type"] != "unexpected_keyword_argument")
    path = _declared([part for part in first["loc"] if isinstance(part, str)])  # without the place in a list
    key, above = ".".join(path), ".".join(path[:-1])
    if first["type"] == "unexpected_keyword_argument":
        known = ", ".join(f.name for f in fields(type_of(path[:-1])) if f.name != "plain")
        advice = nearest(key, known_words())
        return f"unknown key {key!r}{advice}; known keys {f'of {above}' if above else 'at the top'}: {known}"
    if first["type"] == "missing":
        return f"{key} is missing; give it on the command line as {key}=value"
    return f"{key} must be {rule(type_of(path), first['type'] not in OUT_OF_RANGE)}, got {first['input']!r}"


def _declared(path: Sequence[str]) -> list[str]:
    """The path without what pydantic adds to it: which alternative of a type it tried last."""
    for length in range(1, len(path)):
        declared = type_of(path[:length])
        if not is_dataclass(declared):
            return list(path[:length])
    return list(path)


def _refuse_switches(settings: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse true and false where a number belongs: pydantic takes them for 1 and 0."""
    for name in values:
        read, key = getattr(settings, name), f"{prefix}{name}"
        if is_dataclass(read):
            _refuse_switches(read, values[name], f"{key}.")
        elif isinstance(values[name], bool) and not isinstance(read, bool):
            require(False, key, rule(type_of(key.split(".")), with_kind=True), values[name])


def _number(value: object) -> float:
    """The value as a float; NaN (which fails every rule) when it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _check_values(s: Settings) -> None:
    """Refuse what the type of a single key cannot tell."""
    if s.stage == "ensemble":
        members = s.ensemble.members
        require(len(members) >= 2, "ensemble.members", "two or more test_predictions.csv files", members)
    if s.notify is not None:  # `vqa.run` takes it off the command line
        raise UserError(
            "notify starts a program or calls an address, so it must be given on the command line, not in a "
            f"file; got {s.notify!r}. If that is meant: notify={s.notify!r}"
        )
    if s.tracking.store != "wandb":
        online = f"online with tracking={s.tracking.store}; only wandb has runs to send later"
        require(s.tracking.mode == "online", "tracking.mode", online, s.tracking.mode)
    if s.stage == "compare":
        require(bool(s.compare), "compare", "another study, or the folder of a run", s.compare)
    if s.stage == "trial":
        require(s.budget.folds >= 2, "budget.folds", ">= 2 for a K-fold trial", s.budget.folds)
    study_name(s.study)
    require(_number(s.optimizer.get("lr")) > 0, "optimizer.lr", "a number > 0", s.optimizer.get("lr"))
    _check_lora(s.lora)
    _check_image(s.image)
    _check_prompt(s.prompt)
    _check_inference(s.inference)
    check_adapt(s)


def study_name(name: object) -> str:
    """Return a study's name; its folder is made by Hydra before anything else is checked.

    Raises:
        UserError: It is no name for one folder.
    """
    text = str(name)
    ok = (
        name is not None
        and text.strip(". ") != ""
        and text == text.strip()
        and not any(character in "/\\" or unicodedata.category(character) == "Cc" for character in text)
    )
    require(ok, "study", "a folder name", name)
    size = len(text.encode("utf-8", errors="replace"))
    longest = f"at most {LONGEST_NAME} bytes long (a Korean letter takes three)"
    require(size <= LONGEST_NAME, "study", longest, f"{text[:20]}... ({size} bytes)")
    return text


def _output_folder(path: object) -> str:
    """The folder of all studies; without one Hydra would write to `None` here, or to the root of the disk."""
    ok = isinstance(path, str) and path.strip() != ""
    require(ok, "env.output_root", "a folder (set VQA_OUTPUT=/a/writable/folder)", path)
    return str(path)


def folder_name(text: object) -> str:
    """What a job of a plain multirun is called: its overrides, cut where a file system takes no more.

    A name that was cut ends in a digest of the whole, so that two long texts do not share a folder.
    """
    name = "".join("_" if c == "/" or unicodedata.category(c) == "Cc" else c for c in str(text))
    if len(name.encode("utf-8", errors="replace")) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(str(text).encode("utf-8", errors="replace")).hexdigest()[:12]
    cut = name.encode("utf-8", errors="replace")[: LONGEST_NAME - 13].decode("utf-8", errors="ignore")
    return f"{cut}-{digest}"


def _stage_name(name: object) -> str:
    require(name in STAGES, "stage", f"one of {', '.join(STAGES)}", name)
    return str(name)


def _check_lora(lora: dict[str, Any]) -> None:
    """Refuse values out of range, and adapters that change the base they are put on.

    Trials share one resident base, and the score with the adapter off is the base's own: an adapter that
    rewrites or trains base weights would change both.
    """
    rank = lora.get("r")
    require(isinstance(rank, int) and rank >= 1, "lora.r", "an integer >= 1", rank)
    require(_number(rank) <= LARGEST_RANK, "lora.r", f"<= {LARGEST_RANK}", rank)
    require(_number(lora.get("lora_alpha")) > 0, "lora.lora_alpha", "a number > 0", lora.get("lora_alpha"))
    dropout = lora.get("lora_dropout", 0.0)
    require(0 <= _number(dropout) < 1, "lora.lora_dropout", "in [0, 1)", dropout)
    rules: list[tuple[str, tuple[Any, ...], str]] = [
        ("init_lora_weights", LORA_STARTS, "others rewrite the base's weights, which all trials share"),
        (
            "modules_to_save",
            (None, []),
            "the next trial would start from what this one trained",
        ),
        ("bias", ("none",), "the base's biases stay frozen: all trials share them"),
        (
            "trainable_token_indices",
            (None, [], {}),
            "embeddings stay frozen: all trials share them",
        ),
        ("kasa_config", (None,), "it takes the smallest singular values out of the base's weights"),
        ("alora_invocation_tokens", (None, []), "such an adapter acts after these tokens only, so not here"),
        ("arrow_config", (None,), "it chooses among adapters that are loaded already"),
        ("layer_replication", (None, []), "it changes the layers of the base, which all trials share"),
    ]
    for key, allowed, why in rules:
        value = lora.get(key, allowed[0])
        names = ", ".join("null" if option is None else str(option).lower() for option in allowed)
        require(value in allowed, f"lora.{key}", f"{names} ({why})", value)


def _check_prompt(prompt: PromptSettings) -> None:
    for key, text in (("prompt.user", prompt.user), ("prompt.reasoning", prompt.reasoning)):
        last = max((place for place, letter in enumerate(LETTERS) if f"{{{letter}}}" in text), default=-1)
        options = ["options"] if last < 0 else LETTERS[: max(last + 1, FEWEST)]
        for name in ("question", *options):
            require(f"{{{name}}}" in text, key, f"a text that contains {{{name}}}", text)
        both = last >= 0 and "{options}" in text
        require(not both, key, "a text with {options} or with {a}, {b}, ..., not both", text)
    for name in ("letter", "option"):
        rule = f"a text that contains {{{name}}}"
        require(f"{{{name}}}" in prompt.option_line, "prompt.option_line", rule, prompt.option_line)


def _check_inference(inference: InferenceSettings) -> None:
    if inference.orders == "cyclic":  # the prior of a letter cancels in the mean over the orders
        once = inference.calibration == "none"
        rule = "none with inference.orders=cyclic, which divides any preference for a letter out already"
        require(once, "inference.calibration", rule, inference.calibration)
    if inference.debias == "pride":
        require(
            inference.orders == "written", "inference.orders", "written with debias=pride", inference.orders
        )
        once = inference.calibration == "none"
        require(once, "inference.calibration", "none with debias=pride", inference.calibration)


def _check_image(image: ImageSettings) -> None:
    require(
        (image.size is None) == (image.mode == "native"),
        "image.size",
        "null with image.mode=native and a number of pixels otherwise",
        image.size,
    )
    top = image.max_visual_tokens
    require(
        top is None or top >= image.min_visual_tokens, "image.max_visual_tokens", ">= min_visual_tokens", top
    )


def _node(settings: Settings, name: str) -> dict[str, Any] | None:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]  # TRUSTED names only dictionaries


EPISODIC = {"tpt": True, "prompt_align": True, "prompt_tuning_online": False}  # what tells them apart
NEED_VIEWS = ("consistency", "views", "zero", "tpt", "prompt_tuning_online", "prompt_align")
NEED_OWN_DECODER = ("lora_align", "tpt", "prompt_tuning_online", "prompt_align")  # more than letter logits
NEED_SOURCE = ("lora_align", "prompt_align", "repair")  # these compare with training questions


def check_adapt(s: Settings) -> None:
    """Refuse read-outs, stages and values that a test-time method does not go with.

    Raises:
        UserError: Key, rule and value, and what to do.
    """
    method = s.adapt.method
    if method == "none":
        return
    way_out = f"with adapt={method} (or use adapt=none)"
    for key, value, allowed in (
        ("inference.readout", s.inference.readout, "letters"),
        ("inference.orders", s.inference.orders, "written"),
        ("inference.debias", s.inference.debias, "none"),
        ("inference.calibration", s.inference.calibration, "none"),
        ("prompt.entropy_threshold", s.prompt.entropy_threshold, None),
    ):
        require(value == allowed, key, f"{'null' if allowed is None else allowed} {way_out}", value)
    require(s.stage != "serve", "stage", f"final, predict or evaluate {way_out}", s.stage)
    episodic = EPISODIC.get(method, s.adapt.episodic)
    require(
        s.adapt.episodic == episodic, "adapt.episodic", f"{str(episodic).lower()} {way_out}", s.adapt.episodic
    )
    if method in NEED_VIEWS:
        require(s.adapt.views >= 2, "adapt.views", f">= 2 {way_out}", s.adapt.views)
