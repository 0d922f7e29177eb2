"""How a question becomes text: the chat template filled in, cut into the shared prefix and the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqa.config.settings import PromptSettings
from vqa.errors import UserError
from vqa.question import LETTERS, Question

VISION_START = "<|vision_start|>"
AS_WRITTEN = (0, 1, 2, 3)
Order = Sequence[int]  # which choice stands at a, b, c, d


@dataclass(frozen=True)
class Rendered:
    """One question as text.

    Args:
        prefix: Everything before the picture; the same for every question.
        suffix: The picture's place, question, options, up to where the answer goes; or to the end of turn.
    """

    prefix: str
    suffix: str


def user_text(prompt: PromptSettings, question: Question, order: Sequence[int]) -> str:
    """The user's message with the options in a given order.

    Args:
        prompt: The template.
        question: What is asked.
        order: Which choice stands at a, b, c, d; (0, 1, 2, 3) leaves them as they are.

    Raises:
        UserError: The template has a field of its own.
    """
    options = {letter: question.choices[index] for letter, index in zip(LETTERS, order, strict=True)}
    try:
        return prompt.user.format(question=question.text, **options)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"prompt.user has a field that is none of question, a, b, c, d ({error}); "
            "write {{ and }} for braces"
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

    The cut is at the picture's start mark. That is a special token, so cutting there changes no other token.

    Args:
        tokenizer: Knows the template.
        prompt: The texts.
        question: What is asked.
        order: Which choice stands at a, b, c, d.
        answered: Go on with the gold letter and what ends the assistant's turn.

    Raises:
        UserError: The model's template puts no picture into the user's message.
        ValueError: `answered`, and the question has no answer.
    """
    text = {"type": "text", "text": user_text(prompt, question, order)}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, text]}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt.system}]})
    if answered:
        messages.append(answer_message(question, order))
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answered)
    prefix, mark, suffix = whole.partition(VISION_START)
    if not mark:
        raise UserError(
            f"model: its chat template writes no {VISION_START}; only Qwen-VL models are supported"
        )
    return Rendered(prefix, mark + suffix)
