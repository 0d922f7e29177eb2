"""`data=emoji_quiz`: Korean 4-choice questions over pictures of 566 things; the test is in another style.

Three kinds of question: thing ("what is it?"), category ("which kind is it?") and absent ("which of these is
*not* in the picture?", over three things side by side). Training questions show the styles Noto and Twemoji,
test questions show OpenMoji, which neither the embedded base model nor an adapter ever saw: a domain shift.

The options are drawn first and the answer among them afterwards, so that no text gives it away: chance is
0.25 for whoever does not look. Options come from one category and are never near twins (coat and
lab coat, `near_twins.csv`); a category with fewer than four apart falls back to its whole group.

Sources and licences: vqa/assets/emoji_quiz/LICENSES.md, vqa/assets/openmoji/LICENSES.md.
"""

import csv
import hashlib
import importlib.resources
import io
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vqa.data.image import FORMATS, file_sha256
from vqa.errors import UserError, problems_of, require
from vqa.machine.files import replacing
from vqa.question import Question, letters_of

FOUR = letters_of(4)  # every question has four options
KINDS = ("thing", "category", "absent")
TRAINING_STYLES = ("noto", "twemoji")
TEST_STYLE = "openmoji"
MOST = 20_000  # questions of one part; beyond, the same things are asked over and over
CELL, SHOWN = 32, 3  # pixels of a thing beside others; things in a picture of kind absent

# {thing} is the category's word with its particle: "과일은", "꽃이", "악기를"
THING_TEXTS = (
    ("그림 속 {thing} 무엇입니까?", "은는"),
    ("다음 중 그림에 나온 {thing} 고르세요.", "을를"),
    ("그림에 어떤 {thing} 보입니까?", "이가"),
)
CATEGORY_TEXTS = ("그림 속 물체는 어떤 종류에 속합니까?", "이것은 다음 중 무엇으로 분류됩니까?")
ABSENT_TEXTS = (
    ("다음 {thing} 가운데 그림에 없는 것은 무엇입니까?", ""),
    ("그림에서 찾을 수 없는 {thing} 무엇입니까?", "은는"),
    ("그림에 나오지 않은 {thing} 고르세요.", "을를"),
)
ANY_THING = "것"  # stands for the category where options come from a whole group


class Thing(NamedTuple):
    """One thing that can be in a picture.

    Args:
        codepoint: Its file's name without the ending.
        korean: Its name, unique.
        english: Its name.
        group: One of five large groups.
        category: Its Korean category word.
        area: Categories of one area may be confused with each other and never stand side by side as options.
    """

    codepoint: str
    korean: str
    english: str
    group: str
    category: str
    area: str


@dataclass(frozen=True)
class EmojiQuiz:
    """Questions drawn at random; a smaller size draws a subset of what a larger one draws.

    Args:
        train_size: Number of training questions, 1..20,000, in the styles Noto and Twemoji.
        test_size: Number of test questions, 1..20,000, in the style OpenMoji.
        seed: Decides which things, options and letters.
        folder: Where pictures of several things are put together; they are made when first needed.
    """

    train_size: int
    test_size: int
    seed: int
    folder: str

    def train(self) -> list[Question]:
        """Draw training questions; all labelled.

        Raises:
            UserError: The size is out of range, or `folder` cannot be written.
        """
        return _draw("train", self.train_size, self.seed, TRAINING_STYLES, self.folder)

    def test(self) -> list[Question]:
        """Draw test questions in the unseen style; all labelled.

        Raises:
            UserError: The size is out of range, or `folder` cannot be written.
        """
        return _draw("test", self.test_size, self.seed, (TEST_STYLE,), self.folder)

    def check(self) -> list[str]:
        """Draw both parts and list what would stop a run; empty when nothing would."""
        return problems_of(self.train, self.test)


@cache
def things() -> tuple[Thing, ...]:
    """All 566 things."""
    categories = {row["subgroup"]: row for row in _rows("categories.csv")}
    return tuple(
        Thing(
            row["codepoint"], row["name_ko"], row["name_en"], row["group"], found["category"], found["area"]
        )
        for row in _rows("emoji.csv")
        for found in (categories[row["subgroup"]],)
    )


@cache
def disputed() -> frozenset[str]:
    """Korean names of things that people would also put under another category; never asked for theirs."""
    return frozenset(row["name"] for row in _rows("disputed.csv"))


@cache
def near_twins() -> dict[str, frozenset[str]]:
    """Korean name to the names of things that look too much like it."""
    twins: dict[str, frozenset[str]] = defaultdict(frozenset)
    for row in _rows("near_twins.csv"):
        names = row["names"].split("|")
        for name in names:
            twins[name] |= set(names) - {name}
    return twins


def picture_path(thing: Thing, style: str) -> Path:
    """The 64 x 64 picture of a thing: noto, twemoji or openmoji."""
    folder = "openmoji/images" if style == TEST_STYLE else f"emoji_quiz/{style}"
    return _assets() / folder / f"{thing.codepoint}.png"


def with_particle(word: str, pair: str) -> str:
    """Add the particle that Korean grammar wants: the first of the pair after a final consonant.

    A Hangul syllable's index modulo 28 tells whether it ends in a consonant.

    >>> with_particle("과일", "은는"), with_particle("새", "이가"), with_particle("꽃", "")
    ('과일은', '새가', '꽃')
    """
    if not pair:
        return word
    return word + pair[0 if (ord(word[-1]) - 0xAC00) % 28 else 1]


def options_of(rng: random.Random, thing: Thing) -> tuple[list[Thing], str]:
    """Four things of one category, no two near twins, and the word for them.

    The category is that of `thing`, which need not be among the four: whoever draws the answer from the four
    leaves nothing for a text-only guesser. A category that has no such four gives way to its group.
    """
    for pool, word in ((_category(thing.category), thing.category), (_group(thing.group), ANY_THING)):
        for _ in range(20):
            if len(pool) >= len(FOUR) and _apart(found := rng.sample(pool, len(FOUR))):
                return found, word
    raise RuntimeError(f"no four things apart in the group {thing.group!r}")


def categories_of(rng: random.Random) -> list[str]:
    """Four category words of four different areas: no thing belongs to two of them."""
    found: dict[str, str] = {}
    while len(found) < len(FOUR):
        thing = rng.choice(things())
        found.setdefault(thing.area, thing.category)
    words = list(found.values())
    rng.shuffle(words)
    return words


def half_size(picture: Image.Image) -> Image.Image:
    """The picture as it stands beside others."""
    return picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)


def side_by_side(halves: Sequence[Image.Image], cells: Sequence[int]) -> Image.Image:
    """Up to four pictures of half size, each in its quarter (0..3, row by row) of a white one."""
    whole = Image.new("RGB", (2 * CELL, 2 * CELL), "white")
    for half, cell in zip(halves, cells, strict=True):
        whole.paste(half, (CELL * (cell % 2), CELL * (cell // 2)))
    return whole


def _draw(part: str, size: int, seed: int, styles: Sequence[str], folder: str) -> list[Question]:
    if not 1 <= size <= MOST:
        raise UserError(f"data.{part}_size must be in 1..{MOST}, got {size}")
    require(isinstance(folder, str) and folder.strip() != "", "data.folder", "a folder name", folder)
    questions = []
    for number in range(size):
        # a question depends on the seed and its number alone: a larger size only adds to a smaller one
        rng = random.Random(f"{seed} {part} {number}")
        kind, style = KINDS[number % len(KINDS)], rng.choice(styles)
        letter = FOUR[(number // len(KINDS) + seed) % len(FOUR)]
        path, text, choices = _question(rng, kind, style, FOUR.index(letter), Path(folder))
        a, b, c, d = choices
        name = f"{part}_{number:05d}"
        questions.append(Question(name, path, _digest(path), text, (a, b, c, d), letter, kind))
    random.Random(f"{seed} {part}").shuffle(questions)
    return questions


def _question(
    rng: random.Random, kind: str, style: str, gold: int, folder: Path
) -> tuple[Path, str, list[str]]:
    """Picture, text and choices; the choice number `gold` is right."""
    if kind == "category":
        words = categories_of(rng)
        thing = rng.choice([thing for thing in _category(words[gold]) if thing.korean not in disputed()])
        return picture_path(thing, style), rng.choice(CATEGORY_TEXTS), words
    options, word = options_of(rng, rng.choice(things()))
    names = [option.korean for option in options]
    text, particle = rng.choice(THING_TEXTS if kind == "thing" else ABSENT_TEXTS)
    text = text.format(thing=with_particle(word, particle))
    if kind == "thing":
        return picture_path(options[gold], style), text, names
    shown = [option for number, option in enumerate(options) if number != gold]
    rng.shuffle(shown)
    return _put_together(shown, style, rng.sample(range(4), SHOWN), folder), text, names


def _put_together(shown: Sequence[Thing], style: str, cells: Sequence[int], folder: Path) -> Path:
    """The file of a picture with several things; drawn unless it is there."""
    key = " ".join([style, *(f"{thing.codepoint}@{cell}" for thing, cell in zip(shown, cells, strict=True))])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.png"
    if path.exists():
        return path
    content = io.BytesIO()
    halves = [half_size(Image.open(picture_path(thing, style), formats=FORMATS)) for thing in shown]
    side_by_side(halves, cells).save(content, "PNG")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as unfinished:  # it can be put together again
            unfinished.write_bytes(content.getvalue())
    except OSError as error:
        raise UserError(
            f"data.folder: {folder} cannot be written ({error}); give data.folder=FOLDER"
        ) from error
    return path


def _apart(found: Sequence[Thing]) -> bool:
    names = {thing.korean for thing in found}
    return not any(near_twins().get(name, frozenset()) & names for name in names)


@cache
def _category(word: str) -> tuple[Thing, ...]:
    return tuple(thing for thing in things() if thing.category == word)


@cache
def _group(name: str) -> tuple[Thing, ...]:
    return tuple(thing for thing in things() if thing.group == name)


@cache
def _digest(path: Path) -> str:
    return file_sha256(path)


def _rows(name: str) -> list[dict[str, str]]:
    with (_assets() / "emoji_quiz" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _assets() -> Path:
    return Path(str(importlib.resources.files("vqa"))) / "assets"
