"""The one console of a process: log lines, bars and the live table are drawn through it.

A line that reaches the terminal past the part that is drawn again and again is overwritten by it, and leaves
copies of it behind. Here such a line goes above that part.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

TOLD_AGAIN = "told_again"  # of a record: the end of the run prints it, so that it is for run.log alone
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}

_console: "Console | None" = None
_shown: "list[LivePart]" = []


def console() -> "Console":
    """The console on standard output; a pipe or file gets plain lines of any length."""
    global _console
    if _console is None:
        from rich.console import Console

        _console = Console()
    return _console


class LivePart:
    """The last lines of a terminal, drawn again and again; elsewhere nothing.

    Args:
        draw: Gives what is to be seen now.
        console: Where; None: the one console.
        keeps: Whether the last picture stays when it ends.
        every_s: How often it is drawn of itself, seconds; None: only by `redraw`.
    """

    def __init__(
        self,
        draw: "Callable[[], RenderableType]",
        console: "Console | None" = None,
        keeps: bool = True,
        every_s: float | None = None,
    ) -> None:
        self.draw = draw
        self.console = console
        self.keeps = keeps
        self.every_s = every_s
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self.console = self.console or console()
        if self.console.is_terminal:
            self._begin()
            _shown.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        if self in _shown:
            _shown.remove(self)
            self._end(self.keeps)

    @property
    def is_shown(self) -> bool:
        """Whether somebody can see it."""
        return self._live is not None

    def redraw(self) -> None:
        """Draw it as it is now."""
        if self._live is not None:
            self._live.refresh()

    def _begin(self) -> None:
        from rich.live import Live

        by_itself = self.every_s is not None
        rate = 1 / self.every_s if self.every_s is not None else 1.0
        self._live = Live(
            console=self.console,
            get_renderable=self.draw,
            auto_refresh=by_itself,
            refresh_per_second=rate,
            vertical_overflow="crop",
        )
        self._live.start()

    def _end(self, keeps: bool) -> None:
        if self._live is not None:
            self._live.transient = not keeps
            self._live.stop()
            self._live = None

    @contextmanager
    def put_away(self) -> Iterator[None]:
        """Take it off the terminal for as long as the block lasts."""
        was_shown = self.is_shown
        self._end(keeps=False)
        try:
            yield
        finally:
            if was_shown:
                self._begin()
                self.redraw()


@contextmanager
def left_to_others() -> Iterator[None]:
    """Leave the terminal to a library that draws bars of its own, such as the hub's downloads."""
    if not _shown:
        yield
        return
    with _shown[-1].put_away():
        yield


class TerminalHandler(logging.StreamHandler[IO[str]]):
    """Brings log lines to standard output; on a terminal without date and logger, above the live part.

    The words of a line may be another language's than those of run.log: `worded` gives them.
    """

    worded: ClassVar[Callable[[str], str]] = str

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__(stream or sys.stdout)
        self.short = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line of a pipe or a file."""
        return self._in_words(super().format(record), record)

    def _in_words(self, line: str, record: logging.LogRecord) -> str:
        return line.replace(record.message, type(self).worded(record.message), 1)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, unless the end of the run prints the same."""
        if getattr(record, TOLD_AGAIN, False):
            return
        if not console().is_terminal:
            super().emit(record)
            return
        from rich.cells import cell_len
        from rich.text import Text

        words = self._in_words(self.short.format(record), record)
        line = Text(words, style=STYLES.get(record.levelno, ""))
        # broken at spaces; an address longer than the line is left to the terminal, so that it stays whole
        console().print(line, soft_wrap=max(map(cell_len, line.plain.split())) > console().width)
