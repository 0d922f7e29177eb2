"""How a batch is cut so that it fits into the device's memory; never changes the result.

Not guessed from a formula: a step that runs out of memory is done again one rung down, and the rung that held
is where the process's next fit of the same shape begins.
"""

import logging
from dataclasses import dataclass

import torch

from vqa.errors import DoesNotFitError
from vqa.machine.device import memory_gib, peak_memory_gib, release_memory
from vqa.model.decoder import Recompute

log = logging.getLogger(__name__)
LARGE = 16  # questions whose products fill the device
KEEPING: tuple[Recompute, ...] = ("nothing", "mlp")  # what backward computes again, the least first
_held: dict[tuple[object, ...], int] = {}


@dataclass(frozen=True)
class Rung:
    """Questions on the device at once, and what their backward computes again."""

    micro_batch_size: int
    recompute: Recompute


def rungs(batch_size: int) -> list[Rung]:
    """From the fastest to the leanest.

    Args:
        batch_size: Questions on the device at once, at most.
    """
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    # measured (docs/benchmarks.md): computing twice what a large micro-batch cannot keep is faster than
    # small micro-batches, whose products do not fill the device, and slower than two large ones
    large = [size for size in sizes if size >= LARGE] or [batch_size]
    keeping = [Rung(size, recompute) for recompute in KEEPING for size in large]
    return keeping + [Rung(size, "layer") for size in sizes]


def does_not_fit(doing: str, device: torch.device, error: torch.OutOfMemoryError) -> DoesNotFitError:
    """What to tell the user when the smallest piece of work ran out of memory.

    Args:
        doing: What did not fit, as the message's subject.
        device: Where.
        error: What torch said; its first sentence names the size of the allocation that failed.
    """
    asked = str(error).split(". ")[0].removeprefix("CUDA out of memory").strip(". ")
    return DoesNotFitError(
        f"{doing} does not fit into the memory of {device}: {peak_memory_gib(device):.1f} GiB of "
        f"{memory_gib(device):.1f} GiB were in use{f' ({asked})' if asked else ''}. What helps, the most "
        "first: quantization=nf4, a smaller model, fewer image.max_visual_tokens, a shorter prompt, a "
        "smaller lora.r, env.device_map=balanced with a second GPU"
    )


class Ladder:
    """The rung a fit stands on.

    Args:
        batch_size: Questions on the device at once, at most.
        key: What the memory need depends on; fits with an equal key start where the last one stood.
    """

    def __init__(self, batch_size: int, key: tuple[object, ...]) -> None:
        self.rungs = rungs(batch_size)
        self.key = (batch_size, *key)

    @property
    def rung(self) -> Rung:
        """Where it stands."""
        return self.rungs[_held.get(self.key, 0)]

    def step_down(self) -> bool:
        """Go one rung down after running out of memory; False when there is none left."""
        place = _held.get(self.key, 0) + 1
        if place == len(self.rungs):
            return False
        _held[self.key] = place
        release_memory()
        log.warning(
            "out of memory: micro-batches of %d%s from here, same result",
            self.rung.micro_batch_size,
            "" if self.rung.recompute == "nothing" else f", computing each {self.rung.recompute} twice",
        )
        return True
