"""What a run may be told: checked before anything is loaded.

The composed Hydra configuration enters here and leaves as one `Settings`. Everything that can be refused
without loading a model is refused here: unknown keys, wrong types, missing values, contradictions, `adapt`
beside other groups that it does not go with.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqa.config.library import TRUSTED, check_target
from vqa.config.messages import LANGUAGES
from vqa.config.place import detected
from vqa.config.settings import AdaptSettings, ImageSettings, InferenceSettings, PromptSettings, Settings
from vqa.errors import UserError, require

STAGES = ("final", "trial", "predict", "evaluate", "doctor", "status", "report", "merge", "serve", "ensemble")
LORA_STARTS = (True, False, "gaussian", "orthogonal")  # lora.init_lora_weights that leave the base alone
LOSSES = ("answer_only", "choice_ce", "full")


def register_resolvers() -> None:
    """Make `${times:x,y}` and `${detected_env:key}` known: what can be derived is never configured twice."""
    OmegaConf.register_resolver("times", lambda *factors: math.prod(factors), replace=True)
    OmegaConf.register_resolver("detected_env", detected, replace=True)


def read_settings(cfg: DictConfig) -> Settings:
    """Check a composed configuration.

    Args:
        cfg: What Hydra composed, without the `hydra` node.

    Returns:
        The same values, typed.

    Raises:
        UserError: A key is unknown, missing, of the wrong type, out of range, or contradicts another one.
    """
    known = {f.name for f in fields(Settings)} - {"plain"}
    if extra := sorted(set(map(str, cfg)) - known):
        raise UserError(f"unknown key {extra[0]!r}; known keys at the top: {', '.join(sorted(known))}")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        # A second merge into a fresh schema: `+image.sise=3` slips through the composed one.
        checked = OmegaConf.merge(OmegaConf.structured(_Schema), OmegaConf.create(plain))
        settings = OmegaConf.to_object(checked)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    if not isinstance(settings, _Schema) or not isinstance(plain, dict):
        raise TypeError(f"configuration must be a mapping, got {type(plain).__name__}")
    settings.plain = {str(key): value for key, value in plain.items()}
    _check_values(settings)
    for name in TRUSTED:
        check_target(name, _node(settings, name))
    return settings


@dataclass
class _Schema(Settings):
    """`Settings` as OmegaConf sees it."""


def _explain(error: OmegaConfBaseException) -> str:
    key = f"configuration key {error.full_key}: " if error.full_key else "configuration: "
    text = (error.msg or str(error)).splitlines()[0]
    if "Environment variable" in text:
        text += "; set it (export NAME=value) or give the key a value on the command line"
    elif "Mandatory value" in text or "Missing mandatory" in text:
        text += "; give it on the command line as key=value"
    elif error.full_key and "not in" in text and error.parent_node is not None:
        known = getattr(error, "ref_type", None) or error.object_type
        text += f"; known keys: {', '.join(f.name for f in fields(known))}" if known else ""
    return key + text


def _number(value: object) -> float:
    """The value as a float; NaN (which fails every rule) when it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _check_values(s: Settings) -> None:
    for key, value, options in (
        ("stage", s.stage, STAGES),
        ("loss", s.loss, LOSSES),
        ("precision", s.precision, ("auto", "float32", "bfloat16", "float16")),
        ("winner", s.winner, ("auto", "none")),
        ("lang", s.lang, LANGUAGES),
        ("image.mode", s.image.mode, ("native", "resize", "pad")),
        ("inference.readout", s.inference.readout, ("letters", "generate", "reasoning")),
        ("inference.orders", s.inference.orders, ("written", "cyclic")),
        ("inference.debias", s.inference.debias, ("none", "pride")),
        ("inference.calibration", s.inference.calibration, ("none", "batch", "contextual")),
        ("ensemble.selection", s.ensemble.selection, ("all", "greedy")),
        ("inference.on_no_answer", s.inference.on_no_answer, ("letters", "error")),
        ("env.device", s.env.device, ("auto", "cpu", "cuda")),
    ):
        require(value in options, key, f"one of {', '.join(options)}", value)
    b = s.budget
    for name in (
        "epochs",
        "batch_size",
        "eval_batch_size",
        "folds",
        "evaluations_per_fit",
    ):
        require(getattr(b, name) >= 1, f"budget.{name}", ">= 1", getattr(b, name))
    for name in ("subsample", "test_limit", "micro_batch_size"):
        require(
            getattr(b, name) is None or getattr(b, name) >= 1,
            f"budget.{name}",
            ">= 1 or null",
            getattr(b, name),
        )
    require(
        b.max_memory_gib is None or b.max_memory_gib > 0,
        "budget.max_memory_gib",
        "> 0 or null",
        b.max_memory_gib,
    )
    require(b.checkpoint_steps >= 1, "budget.checkpoint_steps", ">= 1", b.checkpoint_steps)
    require(0 < b.holdout_share <= 0.5, "budget.holdout_share", "in (0, 0.5]", b.holdout_share)
    require(b.max_grad_norm > 0, "budget.max_grad_norm", "> 0", b.max_grad_norm)
    require(0 <= b.lr_horizon_exponent <= 1, "budget.lr_horizon_exponent", "in [0, 1]", b.lr_horizon_exponent)
    if s.stage == "ensemble":
        members = s.ensemble.members
        require(len(members) >= 2, "ensemble.members", "two or more test_predictions.csv files", members)
    if s.stage == "trial":
        require(b.folds >= 2, "budget.folds", ">= 2 for a K-fold trial", b.folds)
    require(
        bool(s.study) and s.study.strip(".") != "" and "/" not in s.study, "study", "a folder name", s.study
    )
    require(0 <= s.seed < 2**31, "seed", "in [0, 2**31)", s.seed)
    require(
        0 <= s.scheduler.warmup_ratio < 1, "scheduler.warmup_ratio", "in [0, 1)", s.scheduler.warmup_ratio
    )
    require(_number(s.optimizer.get("lr")) > 0, "optimizer.lr", "a number > 0", s.optimizer.get("lr"))
    _check_lora(s.lora)
    _check_image(s.image)
    _check_prompt(s.prompt)
    _check_inference(s.inference)
    check_adapt(s)
    require(1024 <= s.env.port < 2**16, "env.port", "in [1024, 65536)", s.env.port)
    require(s.env.threads is None or s.env.threads >= 1, "env.threads", ">= 1 or null", s.env.threads)


def _check_lora(lora: dict[str, Any]) -> None:
    """Refuse values out of range, and adapters that change the base they are put on.

    Trials share one resident base, and the score with the adapter off is the base's own: an adapter that
    rewrites or trains base weights would change both.
    """
    rank = lora.get("r")
    require(isinstance(rank, int) and rank >= 1, "lora.r", "an integer >= 1", rank)
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
        ("layer_replication", (None, []), "it changes the layers of the base, which all trials share"),
    ]
    for key, allowed, why in rules:
        value = lora.get(key, allowed[0])
        names = ", ".join("null" if option is None else str(option).lower() for option in allowed)
        require(value in allowed, f"lora.{key}", f"{names} ({why})", value)


def _check_prompt(prompt: PromptSettings) -> None:
    for key, text in (("prompt.user", prompt.user), ("prompt.reasoning", prompt.reasoning)):
        for name in ("question", "a", "b", "c", "d"):
            require(f"{{{name}}}" in text, key, f"a text that contains {{{name}}}", text)
    limit = prompt.entropy_threshold
    require(limit is None or limit >= 0, "prompt.entropy_threshold", ">= 0 nats or null", limit)


def _check_inference(inference: InferenceSettings) -> None:
    for name in ("max_new_tokens", "reasoning_tokens"):
        require(getattr(inference, name) >= 1, f"inference.{name}", ">= 1", getattr(inference, name))
    share = inference.pride_share
    require(0 < share <= 1, "inference.pride_share", "in (0, 1]", share)
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
    require(image.size is None or image.size >= 28, "image.size", ">= 28 pixels", image.size)
    require(image.min_visual_tokens >= 1, "image.min_visual_tokens", ">= 1", image.min_visual_tokens)
    top = image.max_visual_tokens
    require(
        top is None or top >= image.min_visual_tokens, "image.max_visual_tokens", ">= min_visual_tokens", top
    )
    require(image.cache_gib is None or image.cache_gib >= 0, "image.cache_gib", ">= 0", image.cache_gib)
    require(image.cache_disk_gib > 0, "image.cache_disk_gib", "> 0", image.cache_disk_gib)


def _node(settings: Settings, name: str) -> dict[str, Any] | None:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]  # TRUSTED names only dictionaries


VIEW_METHODS = ("views", "zero", "tpt", "prompt_tuning_online", "prompt_align")
METHODS = ("none", "tent", "sar", "consistency", "lora_align", "repair", *VIEW_METHODS)
EPISODIC = {"tpt": True, "prompt_align": True, "prompt_tuning_online": False}  # what tells them apart
NEED_VIEWS = ("consistency", *VIEW_METHODS)
NEED_OWN_DECODER = ("lora_align", "tpt", "prompt_tuning_online", "prompt_align")  # more than letter logits
NEED_SOURCE = ("lora_align", "prompt_align", "repair")  # these compare with training questions


def check_adapt(s: Settings) -> None:
    """Refuse values out of range, and read-outs that test-time adaptation does not go with.

    Raises:
        UserError: Key, rule and value, and what to do.
    """
    _check_adapt_values(s.adapt)
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


def _check_adapt_values(a: AdaptSettings) -> None:
    for key, value, options in (
        ("method", a.method, METHODS),
        ("parameters", a.parameters, ("lora", "norm")),
        ("optimizer", a.optimizer, ("adam", "sgd")),
    ):
        require(value in options, f"adapt.{key}", f"one of {', '.join(options)}", value)
    for name in ("steps", "batch_size", "views", "source_size"):
        require(getattr(a, name) >= 1, f"adapt.{name}", ">= 1", getattr(a, name))
    for name in ("lr", "rho", "weight"):
        require(getattr(a, name) >= 0, f"adapt.{name}", ">= 0", getattr(a, name))
    for name in ("keep_share", "entropy_limit", "guard_label_share"):
        require(0 < getattr(a, name) <= 1, f"adapt.{name}", "in (0, 1]", getattr(a, name))
    require(a.guard_kl > 0, "adapt.guard_kl", "> 0 nats", a.guard_kl)
    require(a.reset_below is None or a.reset_below > 0, "adapt.reset_below", "> 0 or null", a.reset_below)
