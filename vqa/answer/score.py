"""Questions to predictions: one forward pass, probabilities of the option letters."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vqa.machine import processes
from vqa.machine.device import one_ahead, prefetched, release_memory, sent_to_host
from vqa.model.encode import Encoder, Order
from vqa.model.forward import known_prefix, letter_logits
from vqa.model.letters import option_log_probabilities
from vqa.model.memory import does_not_fit
from vqa.model.plugs import Batch
from vqa.progress import progress
from vqa.question import Question, by_options
from vqa.results.predictions import Prediction

log = logging.getLogger(__name__)


def option_scores(
    encoder: Encoder,
    questions: Sequence[Question],
    batch_size: int,
    orders: Sequence[Order] | None = None,
    what: str = "scoring",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the C letters for every question in every order of its options.

    Prefix and picture are computed once for all orders of a question.

    Args:
        encoder: Makes batches.
        questions: In any order, all with C options; like lengths are batched together.
        batch_size: Questions per forward pass; fewer where memory does not suffice.
        orders: Orders of the options, O of them; None: as they are written.
        what: Text of the progress bar.

    Returns:
        (Q, O, C), adding up to 1 over the letters in float32, and (Q, O) log of the letters' share in the
        vocabulary; in the questions' order, on the CPU.

    Raises:
        ValueError: The questions have unlike numbers of options.
    """
    if len({len(question.choices) for question in questions}) != 1:
        raise ValueError("letters are scored together only of questions with as many options")
    orders = orders or [tuple(range(len(questions[0].choices)))]
    lengths = encoder.text_lengths(questions)
    by_length = sorted(range(len(questions)), key=lengths.__getitem__, reverse=True)
    prefix = encoder.prefix(questions[0])
    known = known_prefix(encoder.base, prefix) if encoder.shares_prefix(questions[by_length[-1]]) else None
    scoring = _Scoring(encoder, questions, orders, known, what, batch_size)
    rows = sorted(processes.spread(by_length, scoring.rows), key=lambda row: row[0])
    return torch.stack([log_p for _, log_p, _ in rows]), torch.stack([mass for *_, mass in rows])


Row = tuple[int, torch.Tensor, torch.Tensor]  # place in the list, (O, C) log probabilities, (O,) log mass


@dataclass
class _Scoring:
    """One pass over questions, given by their places in the list; each method is one step of it.

    On a GPU the steps of several batches overlap: batches are made ahead by a thread, the pictures of the
    next ones go through the vision tower between two forward passes, and a batch's answers are read after
    the next batch was launched.

    Args:
        encoder: Makes batches.
        questions: All of them.
        orders: Orders of the options, O of them.
        known: The prefix's states; None: the prefix is in every batch.
        what: Text of the progress bar.
        room: Questions per forward pass; halved where memory did not suffice.
    """

    encoder: Encoder
    questions: Sequence[Question]
    orders: Sequence[Order]
    known: Any
    what: str
    room: int

    def rows(self, mine: Sequence[int]) -> list[Row]:
        """Score these questions, the longest first."""
        if self.encoder.base.device.type == "cpu":  # nothing to gain from the tower between the batches
            self.encoder.look(self._asked(sorted(mine)))
        rows: list[Row] = []
        for chosen, sent in one_ahead(self._launched(mine)):
            log_p, log_mass = (arrived().view(len(chosen), len(self.orders), -1) for arrived in sent)
            rows += zip(chosen, log_p.double(), log_mass[..., 0], strict=True)
            progress(self.what, len(rows), len(mine))
        self.encoder.base.vision.settle()
        return rows

    def _launched(self, mine: Sequence[int]) -> Iterator[tuple[list[int], list[Callable[[], torch.Tensor]]]]:
        """Launch batch after batch; calling a result waits until it is copied to the host."""
        base = self.encoder.base
        letters = base.letters[len(self.orders[0])]
        for chosen, batch in prefetched(self._made, self._chunks(mine), base.device):
            read_off = option_log_probabilities(self._logits(chosen, batch), letters)
            yield chosen, [sent_to_host(tensor) for tensor in read_off]

    def _chunks(self, mine: Sequence[int]) -> Iterator[list[int]]:
        """The places of each forward pass; the features of its pictures are computed before."""
        tower_steps = self.encoder.looking(self._asked(mine))
        start = 0
        while start < len(mine):
            chosen = list(mine[start : start + self.room])
            part = self._asked(chosen)
            while not self.encoder.knows(part):
                if next(tower_steps, None) is None:  # the memory for features is full
                    break
            yield chosen
            start += len(chosen)

    def _made(self, chosen: list[int]) -> tuple[list[int], Batch]:
        part, outside = self._asked(chosen), self.known is not None
        if len(self.orders) > 1:
            return chosen, self.encoder.orders_batch(part, self.orders, outside)
        return chosen, self.encoder.batch(part, [self.orders[0]] * len(part), outside=outside)

    def _logits(self, chosen: list[int], batch: Batch) -> torch.Tensor:
        """(B x O, V), in smaller parts from the first time on that memory does not suffice."""
        if len(chosen) <= self.room:
            try:
                with torch.no_grad():
                    return letter_logits(self.encoder.base, batch, self.known)
            except torch.OutOfMemoryError as error:
                if len(chosen) == 1:
                    doing = "answering one question at a time"
                    raise does_not_fit(doing, self.encoder.base.device, error) from error
            release_memory()
            self.room = (len(chosen) + 1) // 2
            log.warning("out of memory: %d questions at a time from here, same answers", self.room)
        parts = [chosen[start : start + self.room] for start in range(0, len(chosen), self.room)]
        return torch.cat([self._logits(*self._made(part)) for part in parts])

    def _asked(self, chosen: Sequence[int]) -> list[Question]:
        return [self.questions[i] for i in chosen]


def score(
    encoder: Encoder, questions: Sequence[Question], batch_size: int, what: str = "scoring"
) -> list[Prediction]:
    """Probabilities of the letters for every question, from the base with whatever adapter is on it.

    Args:
        encoder: Makes batches.
        questions: In any order; like lengths are batched together.
        batch_size: Questions per forward pass; fewer where memory does not suffice.
        what: Text of the progress bar.

    Returns:
        One prediction per question, in the order given.
    """

    def of_alike(asked: Sequence[Question]) -> list[Prediction]:
        log_p, log_mass = option_scores(encoder, asked, batch_size, what=what)
        return predictions_of(asked, log_p[:, 0], log_mass)

    return each_number(questions, of_alike)


def each_number(
    questions: Sequence[Question], answer: Callable[[Sequence[Question]], list[Prediction]]
) -> list[Prediction]:
    """Answer the questions of each number of options apart; the predictions in the order given.

    Args:
        questions: In any order.
        answer: Answers questions that all have as many options.
    """
    found: dict[int, Prediction] = {}
    for places in by_options(len(q.choices) for q in questions).values():
        found |= zip(places, answer([questions[place] for place in places]), strict=True)
    return [found[place] for place in range(len(questions))]


def predictions_of(
    questions: Sequence[Question], log_p: torch.Tensor, log_mass: torch.Tensor
) -> list[Prediction]:
    """From (Q, C) log probabilities of the options, and (Q, O) log probabilities of all letters together."""
    rows = zip(questions, log_p.softmax(1).tolist(), log_mass.exp().mean(1).tolist(), strict=True)
    return [_prediction(question, p, mass) for question, p, mass in rows]


def _prediction(question: Question, p: list[float], mass: float) -> Prediction:
    letter = question.letters[max(range(len(p)), key=p.__getitem__)]
    return Prediction(
        question.id,
        letter,
        tuple(p),
        min(mass, 1.0),
        question.answer,
        question.kind,
        question.flag,
        question.pictures_sha256,
    )
