"""What `adapt` may be told, alone and beside the other groups; checked before anything is loaded."""

from vqa.errors import require
from vqa.settings import AdaptSettings, Settings

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
    _check_values(s.adapt)
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


def _check_values(a: AdaptSettings) -> None:
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
