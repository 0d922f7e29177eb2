"""Calls to a server that went away are repeated, with growing pauses, messages and a time limit.

Our own and not tenacity: its `Retrying` would take over the pauses, which are three lines. When to give up,
the message once a minute, the error that says how to go on and "answers again" would be callbacks of ours.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from vqa.errors import UserError

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
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
