"""The processes of one training, one per GPU, as torchrun or `accelerate launch` started them.

Not DistributedDataParallel: it averages gradients over equal shares in the middle of each backward, but here
shares may differ in size, a process may cut its share into micro-batches and do them again when memory ran
out, and the prefix's gradient comes after theirs. So each process adds up its own share of a step, and one
sum over all of them follows; adapters are small enough for that. Started alone, nothing here does anything.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from vqa.errors import UserError

if TYPE_CHECKING:
    import torch


Item = TypeVar("Item")
Result = TypeVar("Result")
# one process waits while another computes vision features or writes; the launcher notices a dead one
TIMEOUT = timedelta(hours=1)


def count() -> int:
    """Processes of this training; 1 when no launcher started it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process writes the files: the first, or the only one."""
    return rank() == 0


def local_rank() -> int | None:
    """Number of this process on its machine, which is that of its GPU; None when it is the only one."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else None


def refuse_several(what: str) -> None:
    """Refuse work that several processes cannot share.

    Raises:
        UserError: A launcher started several.
    """
    if count() > 1:
        raise UserError(
            f"{what} was started in {count()} processes; torchrun and accelerate launch are for stage=final "
            "with loss=answer_only or choice_ce; start this with python -m vqa.run"
        )


@contextmanager
def joined(choose_device: "Callable[[], torch.device]") -> Iterator[None]:
    """Connect the processes for the length of the block; all but the main one stop logging.

    An error in the block is not waited for: the process ends, and its launcher ends the others.

    Args:
        choose_device: Gives this process its device; not called where it is the only process.

    Raises:
        UserError: There is no GPU for this process.
    """
    if count() == 1:
        yield
        return
    import torch.distributed as dist

    gpu = choose_device().type == "cuda"
    # objects travel over gloo: no detour through GPU memory
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
    if not is_main():
        _fall_silent()
    yield
    agreed(lambda: None)  # the main process may still be writing
    dist.destroy_process_group()


def _fall_silent() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
    root.setLevel(logging.ERROR)


def agreed(decide: Callable[[], Result]) -> Result:
    """What the main process decided; the others wait for it.

    Raises:
        UserError: The main process's own.
        SystemExit: In the other processes then, so that the message is printed once.
    """
    if count() == 1:
        return decide()
    import torch.distributed as dist

    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [decide()]
        except UserError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], UserError):
        dist.destroy_process_group()  # idle now; an open one may abort the process at its exit
        if is_main():
            raise outcome[0]
        raise SystemExit(2)
    result: Result = outcome[0]
    return result


def share(chosen: Sequence[int]) -> list[int]:
    """The places in a step's batch whose questions this process trains on.

    A question goes to the same process in nearly every epoch, so that few pictures pass through the tower
    of two processes.

    Args:
        chosen: Numbers of the batch's questions.

    Returns:
        Places in `chosen`. All processes together have each place once, and no process has more than one
        place more than another.
    """
    places = list(range(len(chosen)))
    if count() == 1:
        return places
    places.sort(key=lambda place: chosen[place])
    return places[len(places) * rank() // count() : len(places) * (rank() + 1) // count()]


def own(items: Sequence[Item]) -> Sequence[Item]:
    """Every n-th item, n the number of processes, beginning with this process's own number."""
    return items[rank() :: count()]


def spread(items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
    """Work on all items, each process on its own ones.

    Args:
        items: The same in all processes.
        work: Gives one result per item, in order.

    Returns:
        All results, in the order of the items, in all processes.
    """
    if count() == 1:
        return work(items)
    import torch.distributed as dist

    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, work(own(items)))
    found: list[Any] = [None] * len(items)
    for number, part in enumerate(parts):
        found[number :: count()] = part
    return found


def equalise(parameters: "Sequence[torch.Tensor]") -> None:
    """Copy the main process's parameters to all; equal gradient sums keep them equal afterwards."""
    if count() > 1:
        import torch.distributed as dist

        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)


def sum_gradients(parameters: "Sequence[torch.Tensor]", loss: "torch.Tensor") -> "torch.Tensor":
    """Add up the gradients of all processes in place, as one vector; a missing gradient counts as zero.

    Args:
        parameters: The adapter's.
        loss: () this process's part of the step's loss.

    Returns:
        () the loss of the whole step.
    """
    if count() == 1:
        return loss
    import torch
    import torch.distributed as dist

    for parameter in parameters:
        if parameter.grad is None:  # this process had no question in a short last batch
            parameter.grad = torch.zeros_like(parameter)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    vector = torch.cat([*(grad.flatten() for grad in grads), loss.reshape(1).to(grads[0].dtype)])
    dist.all_reduce(vector)
    for grad, summed in zip(grads, torch.split(vector[:-1], [grad.numel() for grad in grads]), strict=True):
        grad.copy_(summed.view_as(grad))
    return vector[-1].clone()
