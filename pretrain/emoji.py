"""Pictures of the emoji quiz's 566 things, alone or several side by side, and questions about them.

Only the styles Noto and Twemoji are read. Held out, so that fine-tuning has something real to learn: what is
*absent* is never asked, a category is asked for one thing in five, and none of the quiz's wordings occurs.
"""

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from pretrain.questions import Asked
from pretrain.scenes import IMAGE_SIZE, Scene, draw_scene
from pretrain.words import CORNERS, Word
from vqa.data.emoji_quiz import (
    TRAINING_STYLES,
    Thing,
    categories_of,
    half_size,
    options_of,
    picture_path,
    side_by_side,
    things,
)

EMOJI_SHARE = 0.5  # of the pictures, made-up scenes the others
ALONE_SHARE = 0.65
CHANGED_SHARE = 0.6  # of the pictures, in size, place and light
CATEGORIZED_SHARE = 0.2  # of the things, for which a category is ever asked


@dataclass(frozen=True, slots=True)
class EmojiScene:
    """A picture and what is in it.

    Args:
        image: Shape (64, 64, 3), RGB.
        shown: Each thing with its quarter (0..3, row by row); the quarter is None for one that is alone.
    """

    image: npt.NDArray[np.uint8]
    shown: tuple[tuple[Thing, int | None], ...]


def word_of(thing: Thing) -> Word:
    """Its two names."""
    return Word(thing.english, thing.korean)


@cache
def all_names() -> tuple[Word, ...]:
    """The names of all things and the category words; categories have no English here."""
    categories = sorted({thing.category for thing in things()})
    return (*map(word_of, things()), *(Word(word, word) for word in categories))


def draw_any(random: Random) -> Scene | EmojiScene:
    """A made-up scene, or real pictures of things."""
    return draw_emoji(random) if random.random() < EMOJI_SHARE else draw_scene(random)


def draw_emoji(random: Random) -> EmojiScene:
    """One thing, or two to four side by side in one style."""
    if random.random() < ALONE_SHARE:
        number, place = divmod(random.randrange(len(things()) * len(TRAINING_STYLES)), len(TRAINING_STYLES))
        picture = np.asarray(_picture(number, TRAINING_STYLES[place]))
        return EmojiScene(_photograph(random, picture), ((things()[number], None),))
    style = random.choice(TRAINING_STYLES)
    count = random.choices((2, 3, 4), (0.25, 0.5, 0.25))[0]
    numbers, cells = random.sample(range(len(things())), count), random.sample(range(4), count)
    whole = np.asarray(side_by_side([_half(number, style) for number in numbers], cells))
    shown = tuple((things()[number], cell) for number, cell in zip(numbers, cells, strict=True))
    return EmojiScene(_photograph(random, whole), shown)


def ask_emoji(random: Random, scene: EmojiScene) -> Asked:
    """A question about one of the things: what it is, which kind, or which of four is there."""
    thing, cell = random.choice(scene.shown)
    if cell is None and thing.korean in _categorized() and random.random() < 0.4:
        return _category(random, thing)
    names = {shown.korean for shown, _ in scene.shown}
    others = options_of(random, thing)[0] if random.random() < 0.6 else random.sample(things(), 8)
    wrong = [word_of(other) for other in others if other.korean not in names][:3]
    while len(wrong) < 3:
        other = word_of(random.choice(things()))
        if other.korean not in names and other not in wrong:
            wrong.append(other)
    options = [*wrong, word_of(thing)]
    random.shuffle(options)
    if cell is None:
        english = random.choice(("what is it?", "what is shown here?", "name the thing.", "what do you see?"))
        korean = random.choice(
            ("이것은 무엇인가요?", "무엇이 보이나요?", "이 물건의 이름은?", "이게 뭐예요?")
        )
    elif random.random() < 0.5:
        corner = CORNERS[cell]
        english = f"what is at the {corner.english}?"
        korean = f"{corner.korean}에 있는 것은 무엇인가요?"
    else:  # only one of the options is in the picture
        english = random.choice(("which of these is there?", "which one can you see?"))
        korean = random.choice(("보이는 것은 어느 것인가요?", "그림에 있는 것은?"))
    return Asked(english, korean, word_of(thing), options)


def emoji_caption(scene: EmojiScene, korean: bool) -> str:
    """The names of all things, row by row."""
    shown = sorted(scene.shown, key=lambda place: place[1] or 0)
    return ", ".join(thing.korean if korean else thing.english for thing, _ in shown)


def _category(random: Random, thing: Thing) -> Asked:
    words = categories_of(random)
    while thing.area not in {_area(word) for word in words}:
        words = categories_of(random)
    words = [thing.category if _area(word) == thing.area else word for word in words]
    options = [Word(word, word) for word in words]
    korean = random.choice(("종류는 무엇인가요?", "어느 갈래인가요?"))
    return Asked(korean, korean, Word(thing.category, thing.category), options)


@cache
def _area(category: str) -> str:
    return next(thing.area for thing in things() if thing.category == category)


@cache
def _categorized() -> frozenset[str]:
    chosen = Random(0).sample(things(), round(CATEGORIZED_SHARE * len(things())))
    return frozenset(thing.korean for thing in chosen)


@cache
def _picture(number: int, style: str) -> Image.Image:
    return Image.open(picture_path(things()[number], style)).convert("RGB")


@cache
def _half(number: int, style: str) -> Image.Image:
    return half_size(_picture(number, style))


def _photograph(random: Random, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Six pictures in ten become smaller or larger, move, and get lighter or darker."""
    if random.random() >= CHANGED_SHARE:
        return picture
    size = round(IMAGE_SIZE * random.uniform(0.72, 1.08))
    ground = tuple([255 if random.random() < 0.7 else random.randint(200, 255)] * 3)
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), ground)
    resized = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
    slack = IMAGE_SIZE - size
    low, high = min(0, slack), max(0, slack)
    canvas.paste(resized, (random.randint(low, high), random.randint(low, high)))
    light, contrast = random.uniform(-20, 20), random.uniform(0.8, 1.2)
    changed = np.clip((np.asarray(canvas, np.float32) - 128) * contrast + 128 + light, 0, 255)
    return np.asarray(changed, np.uint8)
