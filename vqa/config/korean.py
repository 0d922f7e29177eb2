"""Errors, warnings and alarms in Korean: the English sentence is the key, as in gettext.

The code raises and logs in English and knows no language; what workers tell one another stays English too.
A message is put into Korean where it is shown, by the patterns in `vqa/assets/korean`, a file a room.
In a pattern `{0}`, `{1}`, ... stand for the values, which are taken over as they are: keys, paths, commands.
`{1:ko}` stands for a value that is itself in English, such as the rule in "lora.r must be an integer >= 1".
"""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CATALOGUE = Path(__file__).parents[1] / "assets" / "korean"
PHRASES = "phrases"  # this file holds parts of sentences: alone, they would fit texts that they do not mean
DEEPEST = 6  # sentences within sentences; no message of ours has more than four
VALUE, LAST_VALUE = r"([^\n]*?)", r"([\s\S]*)"  # only what a message ends with has several lines


@dataclass(frozen=True)
class Pattern:
    """One English sentence or phrase and its Korean.

    Args:
        english: With `{0}`, `{1}`, ...
        korean: With the same fields, in its own order.
        is_phrase: Whether it is only looked for within a sentence.
    """

    english: str
    korean: str
    is_phrase: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Its fixed texts, in order."""
        return tuple(text for text, *_ in string.Formatter().parse(self.english) if text)

    def values(self, text: str) -> tuple[str, ...] | None:
        """What stands at the fields in a text; None where the text is another sentence.

        What a sentence begins with is one key or path: `data: lora.r must be ...` is a sentence in another.
        """
        if not all(words in text for words in self.words):  # saves most of the expressions
            return None
        found = _expression(self.english).fullmatch(text)
        if found is None or (self.english.startswith("{") and ": " in found[1]):
            return None
        return found.groups()


@cache
def _expression(english: str) -> re.Pattern[str]:
    parts = list(string.Formatter().parse(english))
    pieces = [re.escape(text) + ("" if field is None else VALUE) for text, field, *_ in parts]
    if parts[-1][1] is not None:
        pieces[-1] = pieces[-1].removesuffix(VALUE) + LAST_VALUE
    return re.compile("".join(pieces))


@cache
def catalogue() -> tuple[Pattern, ...]:
    """All patterns, those with most fixed letters first: the others may fit the same text."""
    import yaml  # only where Korean is asked for

    patterns = [
        Pattern(row["en"], row["ko"], file.stem == PHRASES)
        for file in sorted(CATALOGUE.glob("*.yaml"))
        for row in yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    ]
    return tuple(sorted(patterns, key=lambda pattern: -sum(map(len, pattern.words))))


def in_korean(text: str) -> str:
    """A message in Korean; a line that no pattern fits stays as it is.

    Args:
        text: One message, of one line or several.
    """
    lines = text.split("\n")
    known = [_translated(line) for line in lines]
    if None in known and len(lines) > 1 and (whole := _translated(text)):
        return whole
    return "\n".join(korean or line for korean, line in zip(known, lines, strict=True))


class _Value(str):
    """A value of a sentence: `{0:ko}` gives it in Korean, `{0}` as it is."""

    depth: int

    def __format__(self, spec: str) -> str:
        return (_translated(str(self), self.depth) if spec == "ko" else None) or str(self)


def _translated(text: str, depth: int = 0) -> str | None:
    """A sentence, or a phrase within one, in Korean; None where it is not known."""
    if depth > DEEPEST or not text.strip():
        return None
    for start, rest in _beginnings(text):
        for pattern in catalogue():
            if pattern.is_phrase and depth == 0:
                continue
            if (found := pattern.values(rest)) is not None:
                values = [_Value(value) for value in found]
                for value in values:
                    value.depth = depth + 1
                return start + pattern.korean.format(*values)
    return None


def _beginnings(text: str) -> Iterator[tuple[str, str]]:
    """Where a sentence may begin: at once, after the indent of a list, after a place such as `file.csv: `."""
    yield "", text
    if indent := re.match(r" +(?:- )?", text):
        yield indent[0], text[indent.end() :]
    for place in re.finditer(": ", text.split("\n", 1)[0]):
        yield text[: place.end()], text[place.end() :]
