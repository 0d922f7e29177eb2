"""Answering while adapting: the registry of methods, and the loop over test batches around any of them.

Questions come in the file's order, `adapt.batch_size` at a time. A method that is not episodic keeps what it
learnt from the earlier ones, so another order gives other answers. Afterwards the model is what it was
before: a digest of its weights checks that.

Notation: Q questions, C letters.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from vqa.answer.adapt.method import Adapting, Method, Scores, joined
from vqa.answer.adapt.picture_methods import PictureRepair, make_views, make_zero
from vqa.answer.adapt.prompt_methods import PromptTuning, make_prompt_align
from vqa.answer.adapt.weight_methods import Consistency, LoraAlign, Sar, Tent, WeightMethod
from vqa.config.settings import AdaptSettings
from vqa.machine import processes
from vqa.machine.device import restart_peak
from vqa.model.encode import Encoder
from vqa.progress import progress
from vqa.question import Question

# Every method by its name in `adapt=`; `Method` of `vqa.config.settings` has the same, to refuse others.
METHODS: dict[str, Callable[[Adapting], Method]] = {
    "tent": partial(WeightMethod, make_rule=Tent),
    "sar": partial(WeightMethod, make_rule=Sar),
    "consistency": partial(WeightMethod, make_rule=Consistency),
    "lora_align": partial(WeightMethod, make_rule=LoraAlign),
    "views": make_views,
    "zero": make_zero,
    "tpt": partial(PromptTuning, online=False),
    "prompt_tuning_online": partial(PromptTuning, online=True),
    "prompt_align": make_prompt_align,
    "repair": PictureRepair,
}


def adapted_scores(
    encoder: Encoder,
    questions: Sequence[Question],
    adapt: AdaptSettings,
    facts: dict[str, Any] | None = None,
    source: Sequence[Question] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the letters, from a model that adapts to the questions batch by batch.

    Args:
        encoder: Makes batches; its base carries the adapter.
        questions: In the order in which the method sees them, all with as many options; labels are not looked
            at.
        adapt: The method and its values.
        facts: A dictionary of the caller's, to be filled: what adaptation did and cost.
        source: Training questions, for methods that compare with them.

    Returns:
        (Q, C), adding up to 1 over the letters, and (Q,) log of the letters' share in the vocabulary; in the
        questions' order, on the CPU.

    Raises:
        RuntimeError: A weight was not put back, so the answers cannot be trusted.
        UserError: Several processes, or no weights of the wanted kind.
    """
    processes.refuse_several(f"adapt={adapt.method}")
    device = encoder.base.device
    adapting = Adapting(encoder, adapt, source[: adapt.source_size])
    adapting.generator.manual_seed(adapt.seed)
    before = weight_digest(encoder.base.model)
    encoder.look(questions)
    begun, held = time.perf_counter(), restart_peak(device)
    method = METHODS[adapt.method](adapting)
    try:
        scores = _in_batches(method, questions, adapt)
    finally:
        method.reset()
    if weight_digest(encoder.base.model) != before:
        raise RuntimeError(f"adapt={adapt.method} left changed weights behind; its answers are not used")
    if facts is not None:
        seconds = time.perf_counter() - begun
        facts["adapt"] = {"method": adapt.method, "seconds_per_row": seconds / len(questions)}
        facts["adapt"] |= dict(adapting.counts) | _extra_memory(device, held)
    return scores


def _in_batches(method: Method, questions: Sequence[Question], adapt: AdaptSettings) -> Scores:
    parts: list[Scores] = []
    for start in range(0, len(questions), adapt.batch_size):
        if adapt.episodic:
            method.reset()
        batch = questions[start : start + adapt.batch_size]
        log_p, log_mass = method.scores(batch)
        parts.append((log_p.detach().cpu(), log_mass.detach().cpu()))
        progress(f"adapting ({adapt.method})", start + len(batch), len(questions))
    return joined(parts)


def _extra_memory(device: torch.device, held: int) -> dict[str, float]:
    """Peak GPU memory above the model's own while adapting; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"extra_peak_memory_gib": (torch.cuda.max_memory_allocated(device) - held) / 2**30}


UNITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_digest(model: Any) -> str:
    """Digest over the bits of every parameter, adapters and quantised weights included.

    It sums each tensor's bits as integers, on the tensor's own device and without a copy: a change of any
    single value changes the sum. Every weight is read once.

    Returns:
        Hex.
    """
    sums: dict[torch.device, dict[str, torch.Tensor]] = {}  # the tower may wait in host memory
    for name, parameter in model.named_parameters():
        bits = parameter.detach().contiguous().view(UNITS[parameter.element_size()])
        sums.setdefault(bits.device, {})[name] = bits.sum(dtype=torch.int64)
    totals: dict[str, int] = {}
    for of_device in sums.values():
        totals |= dict(zip(of_device, torch.stack(list(of_device.values())).tolist(), strict=True))
    lines = [f"{name} {totals[name]}" for name, _ in model.named_parameters()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
