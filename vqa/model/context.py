"""Questions that a model cannot be asked: too long for its context, or on more pictures than it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqa.config.settings import PromptSettings
from vqa.errors import UserError
from vqa.model.encode import Encoder
from vqa.model.prompt import as_written, control_words, token_ids, user_text
from vqa.model.vision.generic_pictures import budget_arguments, refuse_several_pictures
from vqa.question import Question

SHOWN = 5


@dataclass(frozen=True)
class TooLong:
    """A question that does not fit.

    Args:
        id: Its id.
        tokens: Those of its message without pictures.
        room: Tokens that prefix and pictures leave for it; below zero where they fill the context alone.
        pictures: How many it has.
    """

    id: str
    tokens: int
    room: int
    pictures: int


def context_length(config: Any) -> int | None:
    """Tokens that a model of this configuration can look at; None where it does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def too_long(
    tokenizer: Any, prompt: PromptSettings, questions: Sequence[Question], room: int, visual: int | None
) -> list[TooLong]:
    """Each question whose message is longer than the room that its pictures leave for it.

    A token is at least one byte, so only texts of more bytes than that are encoded.

    Args:
        tokenizer: The model's.
        prompt: The texts.
        questions: Any.
        room: Tokens of the context without the prefix.
        visual: Most visual tokens of a picture; None: not limited, so that none are counted.
    """
    words, found = control_words(tokenizer), []
    for question in questions:
        text = user_text(prompt, question, as_written(question), words)
        left = room - (visual or 0) * max(1, len(question.pictures))
        if len(text.encode("utf-8", errors="replace")) > left:
            tokens = len(token_ids(tokenizer, text))
            found += [TooLong(question.id, tokens, left, len(question.pictures))] if tokens > left else []
    return found


def describe_too_long(found: Sequence[TooLong], context: int) -> str:
    """The message about such questions."""
    shown = ", ".join(f"{long.id!r} has {long.tokens}" for long in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    several = [long for long in found if long.pictures > 1]
    rooms = sorted({max(long.room, 0) for long in found})
    room = f"{rooms[0]}" if len(rooms) == 1 else f"{rooms[0]} to {rooms[-1]}"
    remedy = "shorten them, or choose another model"
    if several:
        beside = f" beside {max(long.pictures for long in several)} pictures"
        remedy = "lower image.max_visual_tokens (it holds for each picture), " + remedy
    else:
        beside = ""
    return (
        f"{len(found)} question(s) do not fit the model's context of {context} tokens: {room} are left for a "
        f"question with its options{beside}, question {shown}{more}; {remedy}"
    )


def refuse_several(encoder: Encoder, questions: Sequence[Question]) -> None:
    """Refuse questions on several pictures where the model's processor cannot be asked about them.

    Raises:
        UserError: Why it cannot, and the first such question.
    """
    several = next((question for question in questions if question.further), None)
    text = encoder.base.text
    writer = getattr(getattr(text, "prompts", text), "writer", None)
    if several is None or writer is None:  # our own prompts of Qwen-VL take any number
        return
    arguments = budget_arguments(writer.processor, encoder.base.family, encoder.image)
    try:
        refuse_several_pictures(writer.processor, arguments)
    except UserError as error:
        raise UserError(f"question {several.id!r} has {len(several.pictures)} pictures. {error}") from error


def refuse_too_long(encoder: Encoder, questions: Sequence[Question]) -> None:
    """Refuse questions that would not fit: some models compute nonsense beyond their context, all slowly.

    Raises:
        UserError: Names the questions, their length and the room; or the tokenizer lacks the letters of their
            options.
    """
    refuse_several(encoder, questions)
    if questions:
        encoder.base.letters[max(len(question.choices) for question in questions)]
    context = context_length(encoder.base.model.config)
    if context is None or not questions:
        return
    room, visual = context - len(encoder.prefix(questions[0])), encoder.image.max_visual_tokens
    if found := too_long(encoder.base.tokenizer, encoder.prompt, questions, room, visual):
        raise UserError(describe_too_long(found, context))
