"""Questions to predictions: one forward pass, probabilities of the four letters."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from vqa.machine import processes
from vqa.machine.device import release_memory, sent_to_host
from vqa.machine.prefetch import one_ahead, prefetched
from vqa.model.encode import AS_WRITTEN, Encoder, Order
from vqa.model.forward import known_prefix, letter_logits
from vqa.model.letters import option_log_probabilities
from vqa.model.memory import does_not_fit
from vqa.model.packing import PackedBatch
from vqa.progress import progress
from vqa.question import LETTERS, Question
from vqa.results.predictions import Prediction

log = logging.getLogger(__name__)


def option_scores(
    encoder: Encoder,
    questions: Sequence[Question],
    batch_size: int,
    orders: Sequence[Order] = (AS_WRITTEN,),
    what: str = "scoring",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the four letters for every question in every order of its options.

    Prefix and picture are computed once for all orders of a question.

    Args:
        encoder: Makes batches.
        questions: In any order; like lengths are batched together.
        batch_size: Questions per forward pass; fewer where memory does not suffice.
        orders: Orders of the options, O of them.
        what: Text of the progress bar.

    Returns:
        (Q, O, C), adding up to 1 over the letters in float32, and (Q, O) log of the letters' share in the
        vocabulary; in the questions' order, on the CPU.
    """
    base = encoder.base
    lengths = encoder.text_lengths(questions)
    by_length = sorted(range(len(questions)), key=lengths.__getitem__, reverse=True)
    prefix = encoder.prefix(questions[0])
    known = known_prefix(base, prefix) if encoder.shares_prefix(questions[by_length[-1]]) else None
    room = batch_size  # questions for which memory sufficed so far

    def batch(chosen: list[int]) -> tuple[list[int], PackedBatch]:
        part = [questions[i] for i in chosen]
        if len(orders) > 1:
            return chosen, encoder.orders_batch(part, orders, known is not None)
        return chosen, encoder.batch(part, [orders[0]] * len(part), outside=known is not None)

    def logits(chosen: list[int], made: PackedBatch) -> torch.Tensor:
        nonlocal room
        if len(chosen) <= room:
            try:
                with torch.no_grad():
                    return letter_logits(base, made, known)
            except torch.OutOfMemoryError as error:
                if len(chosen) == 1:
                    raise does_not_fit("answering one question at a time", base.device, error) from error
            release_memory()
            room = (len(chosen) + 1) // 2
            log.warning("out of memory: %d questions at a time from here, same answers", room)
        parts = [chosen[start : start + room] for start in range(0, len(chosen), room)]
        return torch.cat([logits(*batch(part)) for part in parts])

    def chunks(mine: Sequence[int]) -> Iterator[list[int]]:
        looking = encoder.looking([questions[i] for i in mine])
        start = 0
        while start < len(mine):
            chunk = list(mine[start : start + room])
            part = [questions[i] for i in chunk]
            while not encoder.knows(part):
                if next(looking, None) is None:  # the memory for features is full
                    break
            yield chunk
            start += len(chunk)

    def answers(mine: Sequence[int]) -> Iterator[tuple[list[int], list[Callable[[], torch.Tensor]]]]:
        for chosen, made in prefetched(batch, chunks(mine), base.device):
            read_off = option_log_probabilities(logits(chosen, made), base.letters)
            yield chosen, [sent_to_host(tensor) for tensor in read_off]

    def scored(mine: Sequence[int]) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        if base.device.type == "cpu":  # nothing to gain from looking at them between the answers
            encoder.look([questions[i] for i in sorted(mine)])
        found: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        for chosen, sent in one_ahead(answers(mine)):
            log_p, log_mass = (arrived().view(len(chosen), len(orders), -1) for arrived in sent)
            found += zip(chosen, log_p.double(), log_mass[..., 0], strict=True)
            progress(what, len(found), len(mine))
        base.vision.settle()
        return found

    rows = sorted(processes.spread(by_length, scored), key=lambda row: row[0])
    return torch.stack([log_p for _, log_p, _ in rows]), torch.stack([mass for *_, mass in rows])


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
    log_p, log_mass = option_scores(encoder, questions, batch_size, what=what)
    return predictions_of(questions, log_p[:, 0], log_mass)


def predictions_of(
    questions: Sequence[Question], log_p: torch.Tensor, log_mass: torch.Tensor
) -> list[Prediction]:
    """From (Q, C) log probabilities of the options, and (Q, O) of naming one at all."""
    rows = zip(questions, log_p.softmax(1).tolist(), log_mass.exp().mean(1).tolist(), strict=True)
    return [_prediction(question, p, mass) for question, p, mass in rows]


def _prediction(question: Question, p: list[float], mass: float) -> Prediction:
    a, b, c, d = p
    letter = LETTERS[max(range(len(p)), key=p.__getitem__)]
    return Prediction(
        question.id, letter, (a, b, c, d), min(mass, 1.0), question.answer, question.kind, question.flag
    )
