"""Prefetch: a thread makes the next batches while the GPU computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import torch

from vqa.machine.device import release_memory

Job = TypeVar("Job")
Result = TypeVar("Result")
AHEAD = 2


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
