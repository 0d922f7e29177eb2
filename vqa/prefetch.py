"""Work done ahead in one thread, so that the GPU finds its next batch ready."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")
AHEAD = 2


def prefetched(make: Callable[[Job], Result], jobs: Iterable[Job], device: torch.device) -> Iterator[Result]:
    """make(job) for every job, in order; on a GPU the next two are made meanwhile.

    On a CPU there is nothing to hide: each is made when it is asked for.

    Raises:
        Whatever `make` raises, when the result is due.
    """
    if device.type == "cpu":
        yield from map(make, jobs)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(make, job))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
