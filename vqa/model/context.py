"""Questions that are longer than the model's context, told before any of them is computed."""

from collections.abc import Sequence
from typing import Any

from vqa.config.settings import PromptSettings
from vqa.errors import UserError
from vqa.model.encode import Encoder
from vqa.model.prompt import as_written, control_words, token_ids, user_text
from vqa.question import Question

SHOWN = 5


def context_length(config: Any) -> int | None:
    """Tokens that a model of this configuration can look at; None where it does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def too_long(
    tokenizer: Any, prompt: PromptSettings, questions: Sequence[Question], room: int
) -> list[tuple[str, int]]:
    """Id and tokens of each question whose message is longer than the room for it.

    A token is at least one byte, so only texts of more bytes than that are encoded.
    """
    words, found = control_words(tokenizer), []
    for question in questions:
        text = user_text(prompt, question, as_written(question), words)
        if len(text.encode("utf-8", errors="replace")) > room:
            tokens = len(token_ids(tokenizer, text))
            found += [(question.id, tokens)] if tokens > room else []
    return found


def describe_too_long(found: Sequence[tuple[str, int]], room: int, context: int) -> str:
    """The message about such questions."""
    shown = ", ".join(f"{id_!r} has {tokens}" for id_, tokens in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{len(found)} question(s) do not fit the model's context of {context} tokens: {room} are left for a "
        f"question with its options, question {shown}{more}; shorten them, or choose another model"
    )


def refuse_too_long(encoder: Encoder, questions: Sequence[Question]) -> None:
    """Refuse questions that would not fit: some models compute nonsense beyond their context, all slowly.

    Raises:
        UserError: Names the questions, their length and the room; or the tokenizer lacks the letters of their
            options.
    """
    if questions:
        encoder.base.letters[max(len(question.choices) for question in questions)]
    context = context_length(encoder.base.model.config)
    if context is None or not questions:
        return
    room = context - len(encoder.prefix(questions[0])) - (encoder.image.max_visual_tokens or 0)
    if found := too_long(encoder.base.tokenizer, encoder.prompt, questions, room):
        raise UserError(describe_too_long(found, room, context))
