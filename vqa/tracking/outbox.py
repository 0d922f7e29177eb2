"""A retry queue for a tracking server: while it does not answer, calls wait in order and training goes on."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable

from vqa.machine.retry import reason_of

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class Outbox:
    """Makes calls to a server in order; retries them later, with growing pauses, while it does not answer.

    Args:
        server: How messages name the server.
        kinds: Exceptions that calls raise on trouble with it.
        is_away: Whether one of these means that it does not answer at present; the others go to the caller.
        clock: Seconds, ever growing.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        server: str,
        kinds: tuple[type[Exception], ...],
        is_away: Callable[[Exception], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server
        self.kinds = kinds
        self.is_away = is_away
        self.clock = clock
        self.sleep = sleep
        self.waiting: deque[tuple[str, Callable[[], object]]] = deque()
        self.lost: Counter[str] = Counter()
        self._pause_s = 0.0  # 0 = the server answers
        self._next_try = 0.0

    def send(self, what: str, call: Callable[[], object]) -> None:
        """Make a call now, or after those that wait already.

        Args:
            what: What is lost if it can never be made, for instance "metrics of trial 007".
            call: Without arguments; what it returns is dropped.
        """
        self.waiting.append((what, call))
        if self.clock() >= self._next_try:
            self.flush()

    def flush(self) -> None:
        """Make the calls that wait, up to the first that the server does not answer."""
        while self.waiting:
            what, call = self.waiting.popleft()
            try:
                call()
            except FileNotFoundError:  # the file to be copied is gone by now
                self.lost[what] += 1
            except self.kinds as error:
                if not self.is_away(error):
                    raise
                self.waiting.appendleft((what, call))
                self._put_off(error)
                return
        if self._pause_s:
            log.info(f"{self.server} answers again and has everything that was kept for it")
            self._pause_s = 0.0

    def _put_off(self, error: Exception) -> None:
        if not self._pause_s:
            log.warning(
                f"{self.server} does not answer ({reason_of(error)}): "
                "the run goes on, and what it records is kept"
            )
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._next_try = self.clock() + self._pause_s

    def settle(self, wait_s: float) -> None:
        """Retry the calls that wait for a limited time; then drop them and log what is lost.

        Args:
            wait_s: Seconds to try for.
        """
        end = self.clock() + wait_s
        self.flush()
        while self.waiting and self.clock() < end:
            self.sleep(min(FIRST_PAUSE_S, end - self.clock()))
            self.flush()
        self.lost.update(what for what, _ in self.waiting)
        self.waiting.clear()
        self._pause_s = self._next_try = 0.0
        if self.lost:
            parts = ", ".join(f"{count} x {what}" for what, count in sorted(self.lost.items()))
            log.warning(f"{self.server} never got: {parts}. The files of the run are complete.")
            self.lost.clear()
