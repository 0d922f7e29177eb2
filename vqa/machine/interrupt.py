"""Ctrl-C and preemption by a cluster, noticed even where Python drops the exception that they raise."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

# Slurm, Kubernetes and the rest announce a preemption with TERM; submitit and `sbatch --signal` with USR2.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Interrupt:
    """Remembers Ctrl-C or a preemption while it is entered, and raises KeyboardInterrupt as usual.

    Python drops an exception that is raised inside a destructor or the callback of a weak reference.
    SQLAlchemy spends some of its time there: one Ctrl-C in about forty was without effect. `check` raises
    it again.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise the KeyboardInterrupt that came earlier, if one did.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed, or the machine is wanted back.
        """
        if self.came:
            raise KeyboardInterrupt


@contextmanager
def time_limit(seconds: float, computing: bool = False) -> Iterator[None]:
    """End Python code inside the block that takes too long; in a thread that is not the main one, nothing.

    Args:
        seconds: How long it may take.
        computing: Count only the time in which this thread computes: not that of a process that was stopped,
            or waits for a processor.

    Raises:
        TimeoutError: It took longer.
    """
    began = time.thread_time()

    def end(number: int, frame: FrameType | None) -> None:
        left = began + seconds - time.thread_time()
        if computing and left > 0:
            signal.setitimer(signal.ITIMER_REAL, left)
            return
        raise TimeoutError(f"took longer than {seconds} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
