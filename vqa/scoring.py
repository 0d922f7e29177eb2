"""Questions to predictions: one forward pass, probabilities of the four letters."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from vqa import ranks
from vqa.device import release_memory
from vqa.encode import Encoder
from vqa.errors import UserError
from vqa.forward import known_prefix, letter_logits
from vqa.generation import generate_answers
from vqa.letters import option_log_probabilities
from vqa.packing import PackedBatch
from vqa.predictions import Prediction
from vqa.prefetch import prefetched
from vqa.question import LETTERS, Question
from vqa.reporting import progress
from vqa.settings import InferenceSettings

log = logging.getLogger(__name__)
NO_ANSWER = "no_answer"


def score(
    encoder: Encoder, questions: Sequence[Question], batch_size: int, what: str = "scoring"
) -> list[Prediction]:
    """Probabilities of a, b, c, d for every question, from the base with whatever adapter is on it.

    Args:
        encoder: Makes batches.
        questions: In any order; like lengths are batched together.
        batch_size: Questions per forward pass; fewer where memory does not suffice.
        what: Text of the progress bar.

    Returns:
        One prediction per question, in the order given.
    """
    base = encoder.base
    order = sorted(range(len(questions)), key=lambda i: encoder.text_length(questions[i]), reverse=True)
    prefix = encoder.prefix(questions[0])
    known = known_prefix(base, prefix) if encoder.shares_prefix(questions[order[-1]]) else None

    def batch(chosen: list[int]) -> tuple[list[int], PackedBatch]:
        return chosen, encoder.batch([questions[i] for i in chosen], outside=known is not None)

    def logits(chosen: list[int], made: PackedBatch) -> torch.Tensor:
        try:
            with torch.no_grad():
                return letter_logits(base, made, known)
        except torch.OutOfMemoryError:
            if len(chosen) == 1:
                raise
        release_memory()
        half = len(chosen) // 2
        return torch.cat([logits(*batch(chosen[:half])), logits(*batch(chosen[half:]))])

    def scored(mine: Sequence[int]) -> list[tuple[int, Prediction]]:
        encoder.look([questions[i] for i in sorted(mine)])
        found: list[tuple[int, Prediction]] = []
        chunks = [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
        for chosen, made in prefetched(batch, chunks, base.device):
            log_p, log_mass = option_log_probabilities(logits(chosen, made), base.letters)
            rows = zip(chosen, log_p.double().softmax(1).tolist(), log_mass.exp().tolist(), strict=True)
            found += [(i, _prediction(questions[i], p, mass)) for i, p, mass in rows]
            progress(what, len(found), len(mine))
        return found

    by_place = dict(ranks.spread(order, scored))
    return [by_place[i] for i in range(len(questions))]


def answer(
    encoder: Encoder, model: Any, questions: Sequence[Question], batch_size: int, inference: InferenceSettings
) -> list[Prediction]:
    """Answer questions the way `inference` says.

    With readout=generate the letter comes from generated text and the probabilities beside it from the
    letters. Text without a letter is "no answer": flagged, counted, and answered by the letter probabilities
    only where `on_no_answer` allows it.

    Raises:
        UserError: Text without a letter, and inference.on_no_answer=error.
    """
    predictions = score(encoder, questions, batch_size)
    mass = sum(p.option_mass for p in predictions) / len(predictions)
    if mass < inference.min_option_mass:
        log.warning(
            "the four letters together get only %.2f of the probability on average "
            "(inference.min_option_mass=%.2f): the model wants to say something else; look at the prompt",
            mass,
            inference.min_option_mass,
        )
    if inference.readout == "letters":
        return predictions
    letters = ranks.spread(
        questions, lambda mine: generate_answers(encoder, model, mine, inference.max_new_tokens)
    )
    silent = sum(letter is None for letter in letters)
    log.info("generated text held no answer for %d of %d questions", silent, len(questions))
    if silent and inference.on_no_answer == "error":
        raise UserError(
            f"generated text held no answer for {silent} of {len(questions)} questions; "
            "use inference.on_no_answer=letters or inference=letters"
        )
    return [_generated(p, letter) for p, letter in zip(predictions, letters, strict=True)]


def _prediction(question: Question, p: list[float], mass: float) -> Prediction:
    a, b, c, d = p
    letter = LETTERS[max(range(len(p)), key=p.__getitem__)]
    return Prediction(
        question.id, letter, (a, b, c, d), min(mass, 1.0), question.answer, question.kind, question.flag
    )


def _generated(prediction: Prediction, letter: str | None) -> Prediction:
    from dataclasses import replace

    if letter is not None:
        return replace(prediction, answer=letter)
    flag = f"{prediction.flag} {NO_ANSWER}".strip()
    return replace(prediction, flag=flag)
