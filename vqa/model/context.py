"""Questions that cannot be asked, refused before any is.

They are too long for the model's context, on more pictures than it takes, or have numbers of options that the
run's settings do not suit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqa.config.settings import PromptSettings, Settings
from vqa.errors import UserError, require
from vqa.model.encode import Encoder
from vqa.model.prompt import as_written, control_words, refuse_other_options, token_ids, user_text
from vqa.model.vision.generic_pictures import budget_arguments, refuse_several_pictures
from vqa.question import Question, by_options

SHOWN = 5
FEWEST_ALIKE = 20  # questions of one number of options from which a prior over their letters is estimated


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


def refuse_options(
    settings: Settings, answered: Sequence[Sequence[Question]], trained: Sequence[Question] = ()
) -> None:
    """Refuse prompts, priors and test-time methods that do not suit the numbers of options.

    A prior over letters is estimated among questions with as many options. A test-time method takes the
    questions of a batch together, so all need as many.

    Args:
        settings: Of the run.
        answered: Lists of questions that are each answered by themselves; empty ones do not matter.
        trained: Questions that are trained on.

    Raises:
        UserError: Says which setting, which number of options, and what to do.
    """
    everything = [question for part in (*answered, trained) for question in part]
    refuse_other_options(settings.prompt, everything)
    numbers = by_options(len(question.choices) for question in everything)
    if len(numbers) < 2:
        return
    said = " and ".join(str(n) for n in numbers)
    method = settings.adapt.method
    require(
        method == "none",
        "adapt.method",
        f"none where questions have unlike numbers of options ({said})",
        method,
    )
    inference = settings.inference
    prior = {"inference.calibration=batch": inference.calibration == "batch"}
    prior |= {"inference.debias=pride": inference.debias == "pride"}
    for key in [key for key, wanted in prior.items() if wanted]:
        for part in answered:
            groups = by_options(len(question.choices) for question in part)
            n, rows = min(groups.items(), key=lambda item: len(item[1]), default=(0, []))
            if len(groups) > 1 and len(rows) < FEWEST_ALIKE:
                raise UserError(
                    f"{key} estimates a prior for each number of options from at least "
                    f"{FEWEST_ALIKE} questions, but {len(rows)} of {len(part)} questions have {n} options: "
                    "use inference=cyclic or letters"
                )
