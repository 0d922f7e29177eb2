"""Calls to a server that went away: repeated while the caller waits, or kept while it goes on.

`Retry` repeats a call with growing pauses, messages and a time limit. `Outbox` keeps calls in order and
retries them later, so that a training does not wait for its tracking server.

Our own and not tenacity: its `Retrying` would take over the pauses, which are three lines. When to give up,
the message once a minute, the error that says how to go on and "answers again" would be callbacks of ours.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

from vqa.errors import UserError

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0  # while the caller waits
FIRST_PUT_OFF_S, LONGEST_PUT_OFF_S = 2.0, 60.0  # while it goes on
MESSAGE_EVERY_S = 60.0
Answer = TypeVar("Answer")


class GoneError(UserError):
    """A server is gone for good. Nothing that needs it can be done any more, not even tidying up."""


class Retry:
    """Repeats calls to a server until it answers.

    Args:
        what: The server, as messages name it.
        limit_s: Seconds to wait for it. 0 = a failure passes through as it is.
        kinds: Exceptions that may mean that it is away.
        is_away: Whether such an exception does mean that.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        what: str,
        limit_s: float,
        kinds: tuple[type[Exception], ...],
        is_away: Callable[[BaseException], bool],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.what = what
        self.limit_s = limit_s
        self.kinds = kinds
        self.is_away = is_away
        self.sleep = sleep

    def call(self, attempt: Callable[[], Answer]) -> Answer:
        """What `attempt` returns, after as many attempts as it takes.

        Raises:
            GoneError: The server stayed away for `limit_s`.
        """
        waited, said_at, pause = 0.0, -MESSAGE_EVERY_S, FIRST_PAUSE_S
        while True:
            try:
                answer = attempt()
            except self.kinds as error:
                if self.limit_s == 0 or not self.is_away(error):
                    raise
                if waited >= self.limit_s:
                    raise GoneError(
                        f"{self.what} did not come back within {self.limit_s:.0f} s: {reason_of(error)}. "
                        "Start it; the same command goes on from here."
                    ) from error
                if waited - said_at >= MESSAGE_EVERY_S:
                    said_at = waited
                    log.warning(
                        f"{self.what} does not answer ({reason_of(error)}); "
                        f"trying again for {self.limit_s - waited:.0f} s"
                    )
                self.sleep(pause)
                waited += pause
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if waited:
                    log.info(f"{self.what} answers again after {waited:.1f} s")
                return answer


def chain_of(error: BaseException) -> list[BaseException]:
    """An exception and all that led to it, the first cause last."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    return chain


def reason_of(error: BaseException) -> str:
    """The first line of the first cause that has a text: drivers wrap it in pages of SQL."""
    texts = [str(cause).strip(" ()\n").partition("\n")[0] for cause in chain_of(error)]
    return next((text for text in reversed(texts) if text), repr(error))


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
        self._pause_s = min(max(FIRST_PUT_OFF_S, 2 * self._pause_s), LONGEST_PUT_OFF_S)
        self._next_try = self.clock() + self._pause_s

    def settle(self, wait_s: float) -> None:
        """Retry the calls that wait for a limited time; then drop them and log what is lost."""
        end = self.clock() + wait_s
        self.flush()
        while self.waiting and self.clock() < end:
            self.sleep(min(FIRST_PUT_OFF_S, end - self.clock()))
            self.flush()
        self.lost.update(what for what, _ in self.waiting)
        self.waiting.clear()
        self._pause_s = self._next_try = 0.0
        if self.lost:
            parts = ", ".join(f"{count} x {what}" for what, count in sorted(self.lost.items()))
            log.warning(f"{self.server} never got: {parts}. The files of the run are complete.")
            self.lost.clear()
