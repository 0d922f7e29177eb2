"""Questions about a scene, each in English and Korean, with four options.

Yes/no questions are never negated: `not` occurs only in "which color is not in the picture?" (1 % of the
questions, measured). The names in `pretrain.words.READ_ONLY` occur as wrong options only.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from pretrain.scenes import MIDDLE, Scene, Thing
from pretrain.words import ALL_WORDS, BIG, COLORS, CORNERS, COUNTS, NO, SHAPES, SMALL, YES, Word
from vqa.data.emoji_quiz import with_particle

TOPIC = "은는"


class Asked(NamedTuple):
    """One question.

    Args:
        english: The question, lower case.
        korean: The same question.
        answer: What is true of the picture.
        options: Four different words, the answer among them, in random order.
    """

    english: str
    korean: str
    answer: Word
    options: list[Word]


OBJECT_NOUNS = (Word("object", "물체"), Word("figure", "도형"), Word("thing", "것"), Word("shape", "모양"))


def ask(random: Random, scene: Scene) -> Asked:
    """Asks about one random thing of the scene; kinds that do not fit it are drawn again, up to 8 times."""
    thing = random.choice(scene.things)
    for _ in range(8):
        kind = random.choices(KINDS, cum_weights=KINDS_CUMULATIVE)[0]
        asked = kind(random, scene, thing)
        if asked is not None:
            return asked
    count = COUNTS[len(scene.things) - 1]
    return Asked(
        "how many objects are there?", "물체는 몇 개인가요?", count, with_distractors(random, count, COUNTS)
    )


def with_distractors(random: Random, answer: Word, same_kind: Sequence[Word]) -> list[Word]:
    """The answer and three others, shuffled: words of its own kind first, then any word at all."""
    others = [word for word in same_kind if word is not answer]
    options = random.sample(others, min(3, len(others)))
    while len(options) < 3:
        word = random.choice(ALL_WORDS)
        if word is not answer and word not in options:
            options.append(word)
    options.append(answer)
    random.shuffle(options)  # all four: the place of a wrong option must not tell the answer
    return options


def _is_only_shape(scene: Scene, thing: Thing) -> bool:
    return sum(other.shape is thing.shape for other in scene.things) == 1


def _colors(scene: Scene) -> list[Word] | None:
    """Every thing's colour, or None when one of them has no name."""
    colors = [thing.color for thing in scene.things if thing.color is not None]
    return colors if len(colors) == len(scene.things) else None


def _color(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    if thing.color is None or not _is_only_shape(scene, thing):
        return None
    noun = random.choice(OBJECT_NOUNS) if len(scene.things) == 1 and random.random() < 0.5 else thing.shape
    english = random.choice(
        (
            "what color is the {}?",
            "what is the color of the {}?",
            "which color does the {} have?",
            "name the color of the {}.",
            "the color of the {} is?",
        )
    )
    korean = random.choice(("{} 무슨 색인가요?", "{} 어떤 색입니까?"))
    options = with_distractors(random, thing.color, COLORS)
    return Asked(
        english.format(noun.english),
        korean.format(with_particle(noun.korean, TOPIC)),
        thing.color,
        options,
    )


def _shape(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    named = thing.color is not None and sum(other.color is thing.color for other in scene.things) == 1
    if len(scene.things) == 1 and random.random() < 0.6:
        english = random.choice(
            (
                "what is in the picture?",
                "which shape is it?",
                "what do you see?",
                "what shape can you see?",
                "what kind of object is shown?",
                "which shape does the image show?",
                "what is the shape?",
            )
        )
        korean = random.choice(("무엇이 보이나요?", "그림에 있는 도형은 무엇인가요?", "어떤 모양입니까?"))
    elif named and thing.color is not None:
        english = random.choice(
            (
                "what is the {} object?",
                "which shape is {}?",
                "what is the {} thing?",
                "the {} figure is a what?",
                "which {} object is there?",
            )
        ).format(thing.color.english)
        korean = random.choice(("{} 물체는 무엇인가요?", "{} 도형은 무엇입니까?")).format(thing.color.korean)
    else:
        return None
    return Asked(english, korean, thing.shape, with_distractors(random, thing.shape, SHAPES))


def _presence(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    """Is there such a thing? Half of the answers are yes."""
    answer = random.choice((YES, NO))
    if random.random() < 0.5:
        shapes = [other.shape for other in scene.things]
        shape = thing.shape if answer is YES else random.choice([w for w in SHAPES if w not in shapes])
        english, korean = shape
    else:
        colors = _colors(scene)
        if colors is None or thing.color is None:
            return None
        color = thing.color if answer is YES else random.choice([w for w in COLORS if w not in colors])
        english = f"{color.english} {random.choice(OBJECT_NOUNS).english}"
        korean = f"{color.korean} 물체"
    question = random.choice(
        (
            "is there {}?",
            "do you see {}?",
            "can you see {}?",
            "does the image show {}?",
            "is there {} in the picture?",
            "is {} visible?",
        )
    )
    article = "an" if english[0] in "aeiou" else "a"
    return Asked(
        question.format(f"{article} {english}"),
        korean + random.choice((" 있나요?", " 보이나요?", " 있습니까?")),
        answer,
        with_distractors(random, answer, (YES, NO)),
    )


def _count(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    draw = random.random()
    if draw < 0.5:
        number, what, which = len(scene.things), "objects", "물체는"
    elif draw < 0.8:
        number = sum(other.shape is thing.shape for other in scene.things)
        what, which = f"{thing.shape.english} figures", with_particle(thing.shape.korean, TOPIC)
    else:
        colors = _colors(scene)
        if colors is None or thing.color is None:
            return None
        number = colors.count(thing.color)
        what, which = f"{thing.color.english} objects", f"{thing.color.korean} 물체는"
    answer = COUNTS[number - 1]
    options = with_distractors(random, answer, COUNTS)
    return Asked(f"how many {what} are there?", f"{which} 몇 개인가요?", answer, options)


def _place(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    clear = abs(thing.x - MIDDLE) > 5 and abs(thing.y - MIDDLE) > 5
    if not clear or not _is_only_shape(scene, thing):
        return None
    noun = OBJECT_NOUNS[0] if len(scene.things) == 1 and random.random() < 0.5 else thing.shape
    english = random.choice(("where is the {}?", "in which corner is the {}?")).format(noun.english)
    korean = with_particle(noun.korean, TOPIC) + " 어디에 있나요?"
    return Asked(english, korean, thing.corner, with_distractors(random, thing.corner, CORNERS))


def _background(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    if scene.background is None:
        return None
    english = random.choice(("what color is the background?", "which color is behind the objects?"))
    options = with_distractors(random, scene.background, COLORS)
    return Asked(english, "배경은 무슨 색인가요?", scene.background, options)


def _absence(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    """The wrong options are in the picture, so it takes three different colours or shapes."""
    colors = _colors(scene)
    by_color = random.random() < 0.5 and colors is not None and len(set(colors)) >= 3
    seen = set(colors) if by_color and colors else {other.shape for other in scene.things}
    if len(seen) < 3:
        return None
    noun, korean = ("color", "색은") if by_color else ("shape", "모양은")
    answer = random.choice([word for word in (COLORS if by_color else SHAPES) if word not in seen])
    options = random.sample(sorted(seen), 3)  # sorted: the order of a set changes from process to process
    options.insert(random.randrange(4), answer)
    return Asked(f"which {noun} is not in the picture?", f"그림에 없는 {korean} 무엇인가요?", answer, options)


def _size(random: Random, scene: Scene, thing: Thing) -> Asked | None:
    if len(scene.things) > 1 or 9 < thing.radius < 13:
        return None
    answer = BIG if thing.radius > 11 else SMALL
    english = random.choice(("what is the size of the {}?", "how large is the {}?"))
    korean = with_particle(thing.shape.korean, TOPIC) + " 크기가 어떤가요?"
    options = with_distractors(random, answer, (SMALL, BIG))
    return Asked(english.format(thing.shape.english), korean, answer, options)


KINDS: tuple[Callable[[Random, Scene, Thing], Asked | None], ...] = (
    _color,
    _shape,
    _presence,
    _count,
    _place,
    _background,
    _absence,
    _size,
)
# percent, before those that do not fit are drawn again
KINDS_CUMULATIVE = list(accumulate([24, 26, 24, 6, 8, 4, 3, 5]))
