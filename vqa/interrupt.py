"""Ctrl-C that cannot get lost."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """Remembers Ctrl-C while it is entered, and raises KeyboardInterrupt as usual.

    Python drops an exception that is raised inside a weak reference's callback or a destructor, and
    SQLAlchemy spends some of its time there: one Ctrl-C in about forty was without effect. `check` makes up
    for it.
    """

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Self:
        self._in_charge = threading.current_thread() is threading.main_thread()
        if self._in_charge:
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_charge:
            signal.signal(signal.SIGINT, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise the KeyboardInterrupt that came earlier, if one did.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self.came:
            raise KeyboardInterrupt
