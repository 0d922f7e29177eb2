"""The intervals that a study searched, as its `study.yaml` keeps them, and whether a value lies at an end.

A best value at the end of its range says that the range was too narrow: a better one may lie outside.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

EDGE = 0.05  # of the range, on its own scale: so near to an end is at the edge
# How Optuna writes an interval: FloatDistribution(high=0.001, log=True, low=1e-05, step=None)
_INTERVAL = re.compile(r"(?:Float|Int)Distribution\(high=([^,]+), log=(True|False), low=([^,]+), step=")


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Args:
        low: Its lower end.
        high: Its upper end.
        log: Whether it was searched on a logarithmic scale.
    """

    low: float
    high: float
    log: bool

    def __str__(self) -> str:
        """As `low..high`."""
        return f"{self.low:g}..{self.high:g}"

    def edge_of(self, value: object) -> str | None:
        """Say at which end a value lies, "lower" or "upper"; None in between, and for what is no number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low >= self.high:
            return None
        low, high, at = (math.log(x) if self.log else float(x) for x in (self.low, self.high, value))
        place = (at - low) / (high - low)
        return "lower" if place <= EDGE else "upper" if place >= 1 - EDGE else None


def ranges_of(terms: Mapping[str, object]) -> dict[str, Range]:
    """The searched intervals by key; choices, and numbers searched as a multiple of another, are left out.

    Args:
        terms: The content of `study.yaml`.
    """
    space = terms.get("space")
    found: dict[str, Range] = {}
    for name, text in space.items() if isinstance(space, Mapping) else ():
        if " / " not in name and (match := _INTERVAL.match(str(text))):
            found[str(name)] = Range(float(match[3]), float(match[1]), match[2] == "True")
    return found
