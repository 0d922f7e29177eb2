"""Training examples: a chat prompt and the answer that the model has to give.

Four tasks: 4-choice questions, the same questions without options, reading tasks (find a word among the
options: this is what ties letters to options) and captions. A quarter of everything is Korean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import NamedTuple

from pretrain.emoji import EmojiScene, all_names, ask_emoji, emoji_caption
from pretrain.questions import ask
from pretrain.scenes import MIDDLE, Scene, Thing
from pretrain.words import (
    ALL_WORDS,
    ENGLISH_INSTRUCTIONS,
    KOREAN_INSTRUCTIONS,
    SYSTEM_LINES,
    Word,
)

LETTERS = "abcd"
VISUAL_TOKENS = 16
IMAGE = "<|vision_start|>" + "<|image_pad|>" * VISUAL_TOKENS + "<|vision_end|>"

OPTION_STYLES = ("({}) {}", "{}) {}", "{}. {}", "{}: {}")
OPTION_STYLES_CUMULATIVE = list(accumulate([5, 1.5, 2, 1.5]))


@dataclass(frozen=True)
class TaskMix:
    """Shares of the tasks; what is left are 4-choice questions.

    Args:
        reading: Find a word among the options, or say what an option reads.
        captions: Name everything in the picture.
        open: A question without options, answered in words.
        korean: Share of Korean among those about made-up scenes.
        emoji_korean: Share of Korean among those about emoji.
    """

    reading: float = 0.10
    captions: float = 0.05
    open: float = 0.25
    korean: float = 0.25
    emoji_korean: float = 0.75


MIX = TaskMix()
# The first steps: without much reading early on, the letters stay unbound for a long time.
EARLY_MIX = TaskMix(reading=0.30, captions=0.06, open=0.34)


class Example(NamedTuple):
    """One training example.

    Args:
        prompt: The whole chat up to the place where the answer begins, image tokens included.
        answer: A letter, a word or a caption, without the end token.
    """

    prompt: str
    answer: str


def make_example(random: Random, scene: Scene | EmojiScene, mix: TaskMix) -> Example:
    """One example about the scene, of a random task and language."""
    emoji = isinstance(scene, EmojiScene)
    korean = random.random() < (mix.emoji_korean if emoji else mix.korean)
    system = random.choice(SYSTEM_LINES) if random.random() < 0.4 else ""
    task = random.random()
    if task < mix.reading:
        user, answer = _reading(random, korean, all_names() if emoji else ALL_WORDS)
    elif task < mix.reading + mix.captions:
        user = "그림을 설명하세요." if korean else _perhaps_capital(random, "describe the picture.")
        answer = emoji_caption(scene, korean) if isinstance(scene, EmojiScene) else caption(scene, korean)
    else:
        asked = ask_emoji(random, scene) if isinstance(scene, EmojiScene) else ask(random, scene)
        question = asked.korean if korean else _perhaps_capital(random, asked.english)
        if task < mix.reading + mix.captions + mix.open:
            user, answer = question, asked.answer[korean]
        else:
            user = _with_options(random, question, asked.options, korean)
            answer = LETTERS[asked.options.index(asked.answer)]
    return Example(render_chat(user, system), answer)


def render_chat(user: str, system: str = "") -> str:
    """What the chat template makes of one picture and one text, with the image token already repeated."""
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{opening}<|im_start|>user\n{IMAGE}{user}<|im_end|>\n<|im_start|>assistant\n"


def caption(scene: Scene, korean: bool) -> str:
    """Colour and shape of every thing, the upper ones first, from left to right."""

    def name(thing: Thing) -> str:
        shape = thing.shape[korean]
        return shape if thing.color is None else f"{thing.color[korean]} {shape}"

    return ", ".join(name(thing) for thing in sorted(scene.things, key=lambda t: (t.y > MIDDLE, t.x)))


def _reading(random: Random, korean: bool, words: Sequence[Word]) -> tuple[str, str]:
    """A question about the options themselves and its answer; the picture does not matter."""
    options = random.sample(words, 4)
    wanted = random.randrange(4)
    letter, word = LETTERS[wanted], options[wanted][korean]
    if random.random() < 0.85:
        templates = (
            ("{}라고 적힌 보기는?", "보기에서 {} 고르기.")
            if korean
            else ("which option says {}?", "choose {}.", "find {} in the options.")
        )
        question, answer = random.choice(templates).format(word), letter
    else:
        question, answer = f"보기 {letter} 내용은?" if korean else f"what is option ({letter})?", word
    if not korean:
        question = _perhaps_capital(random, question)
    return _with_options(random, question, options, korean), answer


def _with_options(random: Random, question: str, options: list[Word], korean: bool) -> str:
    style = random.choices(OPTION_STYLES, cum_weights=OPTION_STYLES_CUMULATIVE)[0]
    one_line = style[0] == "(" and random.random() < 0.2
    lines = [style.format(letter, word[korean]) for letter, word in zip(LETTERS, options, strict=True)]
    text = question + "\n" + (" " if one_line else "\n").join(lines)
    if random.random() < 0.15:
        text = ("질문: " if korean else "Question: ") + text
    if random.random() < 0.6:
        instruction = random.choice(KOREAN_INSTRUCTIONS if korean else ENGLISH_INSTRUCTIONS)
        text += "\n" + instruction if instruction else ""
    return text


def _perhaps_capital(random: Random, text: str) -> str:
    return text[0].upper() + text[1:] if random.random() < 0.5 else text
