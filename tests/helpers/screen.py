"""What a terminal shows of what was written to it: line feeds, returns, cursor up, erased lines."""

import io
import re

PIECES = re.compile(r"\x1b\[(\?)?([\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen(io.StringIO):
    """A terminal that takes text; `lines` is what stands there, above the top of the window too."""

    def isatty(self) -> bool:
        """Say that somebody looks."""
        return True

    def lines(self) -> list[str]:
        """Every line, from the first that was written."""
        shown, row, column = [""], 0, 0
        for found in PIECES.finditer(self.getvalue()):
            text, kind, count = found[0], found[3], found[2]
            if text == "\n":
                row, column = row + 1, 0
                shown += [""] * (row + 1 - len(shown))
            elif text == "\r":
                column = 0
            elif kind == "A":
                row = max(0, row - int(count or 1))
            elif kind == "K":
                shown[row] = "" if count == "2" else shown[row][:column]
            elif kind is None:
                shown[row] = shown[row][:column].ljust(column) + text + shown[row][column + len(text) :]
                column += len(text)
        return shown
