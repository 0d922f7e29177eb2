"""The machine a run computes on: device, number type, threads, memory, and batches made while it computes."""

import functools
import gc
import os
import resource
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from vqa.errors import UserError
from vqa.machine import processes

_earlier_peak = 0  # bytes on the GPU, before its peak was last reset
LEFT_FREE = 0.25  # of all memory, for other programs
Job = TypeVar("Job")
Result = TypeVar("Result")
AHEAD = 2


def choose_device(wanted: str) -> torch.device:
    """The device for `env.device`.

    Raises:
        UserError: Cuda was asked for and is not there, or there are more processes than GPUs.
    """
    # variable row lengths would leave holes that fixed segments cannot use again
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "env.device=cuda, but torch sees no GPU; use env.device=auto, or install a CUDA build of torch"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    own = processes.local_rank()
    if own is None:
        return torch.device("cuda")
    if own >= torch.cuda.device_count():
        raise UserError(
            f"process {own} of this machine has no GPU: torch sees {torch.cuda.device_count()}; "
            "start as many processes a machine (--nproc-per-node, --num_processes)"
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The computing type for `precision` on a device.

    Raises:
        UserError: Float16 on a CPU, or bfloat16 on a GPU without it.
    """
    if precision == "float16" and device.type == "cpu":
        raise UserError("precision=float16 needs a GPU; use precision=auto (float32 on a CPU)")
    if device.type == "cpu":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    native = torch.cuda.get_device_capability(device) >= (8, 0)  # emulated below Ampere: slower than float32
    if precision == "bfloat16" and not native:
        raise UserError("precision=bfloat16 needs an Ampere or newer GPU; use precision=auto (float16 here)")
    if precision == "auto":
        return torch.bfloat16 if native else torch.float16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def cards_for(device_map: str, device: torch.device) -> int:
    """Over how many GPUs a model's layers are spread: 1, or with `env.device_map=balanced` all that are seen.

    Raises:
        UserError: They are to be spread, and there are fewer than two, or several processes share them.
    """
    if device_map == "single":
        return 1
    seen = torch.cuda.device_count() if device.type == "cuda" else 0
    if seen < 2:
        raise UserError(
            f"env.device_map=balanced spreads a model's layers over several GPUs, and {seen} can be used "
            "here (workers of a sweep share them); use env.device_map=single, or fewer "
            "hydra.sweeper.n_workers"
        )
    processes.refuse_several("env.device_map=balanced, which uses all GPUs in one process,")
    return seen


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy host memory to the device without waiting for its queued work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def copied_beside(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy pinned host memory to the device on a second stream; kernels launched later wait for the copy."""
    if device.type != "cuda":
        return tensor
    stream, computing = _copying(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        moved = tensor.to(device, non_blocking=True)
    computing.wait_stream(stream)
    moved.record_stream(computing)  # its memory is not reused before the computing stream has read it
    return moved


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A GPU tensor's copy in host memory; it is complete when the current stream has reached it."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def sent_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Copy the tensor to host memory as soon as it is computed.

    Returns:
        A function that waits for the copy, but for nothing launched after it, and returns it.
    """
    if not tensor.is_cuda:
        return lambda: tensor
    copy = pinned_copy(tensor)
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> torch.Tensor:
        arrived.synchronize()
        return copy

    return wait


def join_on_host(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Join tensors along the first dimension; for a GPU in pinned memory, which it copies while computing."""
    if device.type != "cuda":
        return torch.cat(list(parts))
    rows = sum(len(part) for part in parts)
    whole = torch.empty(rows, *parts[0].shape[1:], dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(list(parts), out=whole)


def limit_memory(gib: float | None, device: torch.device, cards: int = 1) -> None:
    """Use at most that many GiB of the GPU, or of each of the first `cards`; None: all of it.

    It simulates a smaller one.
    """
    if device.type != "cuda":
        return
    for card in range(cards) if cards > 1 else (torch.cuda.current_device(),):
        total = torch.cuda.get_device_properties(card).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib / total) if gib else 1.0, card)


def memory_share(device: torch.device) -> float:
    """The share of the device's memory that this process may use."""
    return torch.cuda.get_per_process_memory_fraction() if device.type == "cuda" else 1.0


def memory_gib(device: torch.device) -> float:
    """Memory that this process may use, GiB: its share of the GPU's; the machine's on a CPU."""
    if device.type == "cuda":
        return memory_share(device) * torch.cuda.get_device_properties(device).total_memory / 2**30
    return psutil.virtual_memory().total / 2**30


def release_memory() -> None:
    """Give unused GPU memory back, between trials and folds; a CPU has nothing to give back.

    Not within a fold: garbage collection alone takes 0.4 s, and torch frees its unused memory
    by itself before it reports that memory ran out.
    """
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def restart_peak(device: torch.device) -> int:
    """Reset the GPU's peak, to measure one part of a run; `peak_memory_gib` remembers the earlier peak.

    Returns:
        Bytes held now; 0 on a CPU, whose peak cannot be reset.
    """
    global _earlier_peak
    if device.type != "cuda":
        return 0
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch resets no statistics before
    _earlier_peak = max(_earlier_peak, _peak())
    for card in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(card)
    return torch.cuda.memory_allocated(device)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far, GiB: tensors on a GPU, the fullest of several; the whole process on a CPU."""
    if device.type == "cuda":
        return max(_earlier_peak, _peak()) / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes / 2**20


def _peak() -> int:
    """Bytes; a GPU that this process does not use has held none."""
    return max(torch.cuda.max_memory_allocated(card) for card in range(torch.cuda.device_count()))


def use_threads(threads: int | None) -> None:
    """Set torch's CPU threads; None leaves its default."""
    if threads is not None:
        torch.set_num_threads(threads)


def spare_bytes(root: Path = Path("/")) -> int:
    """Bytes that may be taken while a quarter of the memory stays free; negative when less is free already.

    Args:
        root: Of the file system that /proc and /sys are read from.
    """
    machine = psutil.virtual_memory()
    seen = [(machine.total, machine.available), *_limits(root)]
    total, available = (min(values) for values in zip(*seen, strict=True))
    return int(available - LEFT_FREE * total)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and free bytes of the process's control groups and those around them (containers, Slurm).

    Source: the Linux kernel's documentation of cgroup v1 and v2. Cached files count as free.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit, usage, prefix = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = mount / path.lstrip("/")  # in a container often not there: it sees its own at the mount
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            try:
                most = (folder / limit).read_text().strip()
                used = int((folder / usage).read_text())
                parts = dict(part.split() for part in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if most != "max":
                cached = sum(int(parts.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
                yield int(most), int(most) - used + cached


def prefetched(make: Callable[[Job], Result], jobs: Iterable[Job], device: torch.device) -> Iterator[Result]:
    """make(job) for every job, in order; on a GPU a thread makes the next two meanwhile.

    On a CPU each is made when it is asked for. A result that ran out of device memory in the thread is made
    again when it is due.

    Raises:
        Whatever `make` raises; when its result is due.
    """
    if device.type == "cpu":
        yield from map(make, jobs)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: deque[tuple[Job, Future[Result]]] = deque()

        def due() -> Result:
            job, future = waiting.popleft()
            with suppress(torch.OutOfMemoryError):
                return future.result()
            del future  # and with it whatever the attempt still holds
            release_memory()
            return make(job)

        try:
            for job in jobs:
                waiting.append((job, pool.submit(make, job)))
                if len(waiting) > AHEAD:
                    yield due()
            while waiting:
                yield due()
        finally:
            for _, future in waiting:
                future.cancel()


def one_ahead(results: Iterable[Result]) -> Iterator[Result]:
    """The same results, each given only after the next one was begun, so that a GPU has work meanwhile."""
    waiting: deque[Result] = deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
