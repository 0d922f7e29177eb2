"""Answering while adapting: the loop over test batches, around any method.

Questions go by in the file's order, `adapt.batch_size` at a time, and a method that is not episodic remembers
the earlier ones: with another order it gives other answers. Whatever it does, the model is as it was
afterwards; a cheap fingerprint of its weights checks that.

Notation: Q questions, C letters.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vqa.answer.adapt.method import Adapting, Method, Scores
from vqa.answer.adapt.picture_methods import make_repair, make_views, make_zero
from vqa.answer.adapt.prompt_methods import make_prompt_align, make_prompt_tuning_online, make_tpt
from vqa.answer.adapt.weight_methods import make_consistency, make_lora_align, make_sar, make_tent
from vqa.config.settings import AdaptSettings
from vqa.machine import processes
from vqa.machine.device import restart_peak
from vqa.model.encode import Encoder
from vqa.progress import progress
from vqa.question import Question

METHODS: dict[str, Callable[[Adapting], Method]] = {
    "tent": make_tent,
    "sar": make_sar,
    "consistency": make_consistency,
    "lora_align": make_lora_align,
    "views": make_views,
    "zero": make_zero,
    "tpt": make_tpt,
    "prompt_tuning_online": make_prompt_tuning_online,
    "prompt_align": make_prompt_align,
    "repair": make_repair,
}


def adapted_scores(
    encoder: Encoder,
    model: Any,
    questions: Sequence[Question],
    adapt: AdaptSettings,
    facts: dict[str, Any] | None = None,
    source: Sequence[Question] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the four letters, from a model that adapts to the questions as they come.

    Args:
        encoder: Makes batches; its base carries the adapter.
        model: The PEFT model around the base's model, or that model itself.
        questions: In the order in which they are adapted on; labels are not looked at.
        adapt: The method and its values.
        facts: A dictionary of the caller's; gets what adaptation did and cost.
        source: Training questions, for methods that compare with them.

    Returns:
        (Q, C), adding up to 1 over the letters, and (Q,) log of the letters' share in the vocabulary; in the
        questions' order, on the CPU.

    Raises:
        RuntimeError: A weight is not what it was before; the answers cannot be trusted.
        UserError: Several processes, or no weights of the wanted kind.
    """
    processes.refuse_several(f"adapt={adapt.method}")
    device = encoder.base.device
    adapting = Adapting(encoder, model, adapt, source[: adapt.source_size])
    adapting.generator.manual_seed(adapt.seed)
    before = weight_digest(encoder.base.model)
    encoder.look(questions)
    begun, held = time.perf_counter(), restart_peak(device)
    method = METHODS[adapt.method](adapting)
    try:
        found = _in_batches(method, questions, adapt)
    finally:
        method.reset()
    if weight_digest(encoder.base.model) != before:
        raise RuntimeError(f"adapt={adapt.method} left changed weights behind; its answers are not used")
    if facts is not None:
        seconds = time.perf_counter() - begun
        facts["adapt"] = {"method": adapt.method, "seconds_per_row": seconds / len(questions)}
        facts["adapt"] |= dict(adapting.counts) | _extra_memory(device, held)
    return found


def _in_batches(method: Method, questions: Sequence[Question], adapt: AdaptSettings) -> Scores:
    found: list[Scores] = []
    for start in range(0, len(questions), adapt.batch_size):
        if adapt.episodic:
            method.reset()
        batch = questions[start : start + adapt.batch_size]
        log_p, log_mass = method.scores(batch)
        found.append((log_p.detach().cpu(), log_mass.detach().cpu()))
        progress(f"adapting ({adapt.method})", start + len(batch), len(questions))
    return torch.cat([log_p for log_p, _ in found]), torch.cat([log_mass for _, log_mass in found])


def _extra_memory(device: torch.device, held: int) -> dict[str, float]:
    """What adapting took beside the model, on a GPU."""
    if device.type != "cuda":
        return {}
    return {"extra_peak_memory_gib": (torch.cuda.max_memory_allocated(device) - held) / 2**30}


UNITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_digest(model: Any) -> str:
    """Digest over the bits of every parameter, adapters and quantised weights included.

    Each tensor gives the sum of its bits taken as integers, computed where it lies without a copy: any change
    of a single value shows. It reads every weight once.

    Args:
        model: Any module.

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
