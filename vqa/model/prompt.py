"""How a question becomes text: the chat template filled in, cut into the shared prefix and the rest."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from vqa.config.settings import PromptSettings
from vqa.errors import UserError
from vqa.machine.interrupt import time_limit
from vqa.question import LETTERS, Question, letters_of

VISION_START = "<|vision_start|>"
CUT = "\ufdd0"  # a code point that no text may hold: where a control word is cut, so that it stays text
TEMPLATE_S = 10.0  # a template takes a millisecond; a loop of loops in a stranger's takes for ever
# What a template's own mistakes raise, and what Jinja's sandbox forbids.
TEMPLATE_FAULTS = (
    *(TemplateError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError),
    *(RecursionError, MemoryError, TimeoutError),
)
Order = Sequence[int]  # which choice stands at a, b, c, ...


@dataclass(frozen=True)
class Rendered:
    """One question as text.

    Args:
        prefix: Everything before the pictures; the same for every question.
        suffix: The pictures' places, question, options, up to where the answer goes; or to the end of turn.
    """

    prefix: str
    suffix: str


@functools.lru_cache(maxsize=8)
def control_words(tokenizer: Any) -> re.Pattern[str] | None:
    """What the tokenizer takes for more than text: its special tokens, and others in angle brackets.

    Gemma also adds runs of blanks and line ends as tokens; they are text.
    """
    words = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if len(token.content) > 1 and (token.special or re.fullmatch(r"<.*>", token.content))
    ]
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if words else None


def plain_text(text: str, words: re.Pattern[str] | None) -> str:
    """A text of a question with every control word cut after its first character.

    `token_ids` cuts there, so that no piece holds the word; a chat template does not see it either.
    """
    text = text.replace(CUT, "")
    return words.sub(lambda found: found[0][0] + CUT + found[0][1:], text) if words else text


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text, control words recognised but for those that are cut."""
    pieces = tokenizer(text.split(CUT), add_special_tokens=False)["input_ids"]
    return [number for piece in pieces for number in piece]


def rows_with_control_words(tokenizer: Any, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Id of each question that holds a control word, and the first such word; they are asked as text."""
    words = control_words(tokenizer)
    if words is None:
        return []
    found = [(q.id, words.search("\n".join([q.text, *q.choices]))) for q in questions]
    return [(id_, word[0]) for id_, word in found if word]


def as_written(question: Question) -> Order:
    """The order that leaves a question's options as they are."""
    return tuple(range(len(question.choices)))


def named_options(text: str) -> int | None:
    """How many options a template names one by one, as {a}, {b}, ...; None where it has {options}."""
    named = [letter for letter in LETTERS if f"{{{letter}}}" in text]
    return len(named) if named else None


def written_out(prompt: Mapping[str, Any], options: int) -> str:
    """The template of the user's turn for so many options, which it names one by one: {a}, {b}, ..."""
    letters, line = letters_of(options), prompt.get("option_line", "")
    lines = [line.replace("{letter}", letter).replace("{option}", f"{{{letter}}}") for letter in letters]
    user = str(prompt["user"]).replace("{options}", "\n".join(lines))
    return user.replace("{letters}", ", ".join(letters))


def refuse_other_options(prompt: PromptSettings, questions: Sequence[Question]) -> None:
    """Refuse questions with more or fewer options than the prompt speaks of.

    Raises:
        UserError: Names the setting, the first such question, and what to do.
    """
    spoken = {
        "prompt.user names": named_options(prompt.user),
        "prompt.reasoning names": named_options(prompt.reasoning),
        "prompt.n_options says": prompt.n_options,
    }
    for what, n in spoken.items():
        other = next((q for q in questions if n not in (None, len(q.choices))), None)
        if other is not None and n is not None:
            raise UserError(
                f"{what} {n} options ({', '.join(letters_of(n))}), but question {other.id!r} has "
                f"{len(other.choices)}: use a prompt that says {{options}} and {{letters}}, such as "
                "prompt=direct_en or direct_ko"
            )


def user_text(
    prompt: PromptSettings,
    question: Question,
    order: Sequence[int],
    words: re.Pattern[str] | None = None,
) -> str:
    """The user's message with the options in a given order.

    Args:
        prompt: The template.
        question: What is asked.
        order: Which choice stands at a, b, c, ...; (0, 1, 2, ...) leaves them as they are.
        words: Control words of the tokenizer, which are cut where a question or an option holds one.

    Raises:
        UserError: The template has a field of its own.
    """
    options = {
        letter: plain_text(question.choices[index], words)
        for letter, index in zip(question.letters, order, strict=True)
    }
    lines = [prompt.option_line.format(letter=letter, option=text) for letter, text in options.items()]
    fields = {"options": "\n".join(lines), "letters": ", ".join(options)} | options
    try:
        return prompt.user.format(question=plain_text(question.text, words), **fields)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"prompt.user has a field that is none of question, options, letters, {', '.join(options)} "
            f"({error}); write {{{{ and }}}} for braces"
        ) from error


def answer_message(question: Question, order: Sequence[int]) -> dict[str, Any]:
    """The assistant's turn: the gold letter.

    Raises:
        ValueError: The question has no answer.
    """
    if question.answer is None:
        raise ValueError(f"question {question.id!r} has no answer to write")
    letter = LETTERS[list(order).index(LETTERS.index(question.answer))]
    return {"role": "assistant", "content": [{"type": "text", "text": letter}]}


def render(
    tokenizer: Any, prompt: PromptSettings, question: Question, order: Sequence[int], answered: bool = False
) -> Rendered:
    """Fill in the model's own chat template.

    The cut is at the first picture's start mark. That is a special token, so cutting there changes no other
    token.

    Args:
        tokenizer: Knows the template.
        prompt: The texts.
        question: What is asked.
        order: Which choice stands at a, b, c, ...
        answered: Go on with the gold letter and what ends the assistant's turn.

    Raises:
        UserError: The model's template raises an error, does not end, or puts no picture into the user's
            message.
        ValueError: `answered`, and the question has no answer.
    """
    text = {"type": "text", "text": user_text(prompt, question, order, control_words(tokenizer))}
    pictures = max(1, len(question.pictures))  # without one, the plug takes its marks out again
    content = [*({"type": "image"} for _ in range(pictures)), text]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt.system}]})
    if answered:
        messages.append(answer_message(question, order))
    try:
        with time_limit(TEMPLATE_S, computing=True):
            whole = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not answered
            )
    except TEMPLATE_FAULTS as error:
        raise UserError(
            f"model: its chat template cannot be filled in ({type(error).__name__}: {error}); "
            "use another model"
        ) from error
    prefix, mark, suffix = whole.partition(VISION_START)
    if not mark:
        raise UserError(
            f"model: its chat template writes no {VISION_START}; only Qwen-VL models are supported"
        )
    return Rendered(prefix, mark + suffix)
