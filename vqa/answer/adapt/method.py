"""The interface of a test-time method, and the guard that notices its collapse.

A method has collapsed when it answers much more with one letter than the trained model does, or when its
predictions are far from that model's.

Notation: B questions of a batch, C letters.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vqa.answer.adapt.formulas import kl_divergence
from vqa.config.settings import AdaptSettings
from vqa.model.encode import Encoder
from vqa.question import LETTERS, Question

log = logging.getLogger(__name__)
Scores = tuple[torch.Tensor, torch.Tensor]  # (B, C) log probabilities of the letters, (B,) log of their mass


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts of a batch together, in their order."""
    return torch.cat([log_p for log_p, _ in parts]), torch.cat([log_mass for _, log_mass in parts])


@dataclass
class Adapting:
    """Everything that methods share.

    Args:
        encoder: Makes batches; its base carries the adapter.
        settings: Of the method.
        source: Training questions, at most `settings.source_size`; empty where the method needs none.
        generator: For whatever a method draws; on the CPU.
        counts: How often what happened, by name; written to metrics.json.
    """

    encoder: Encoder
    settings: AdaptSettings
    source: Sequence[Question] = ()
    generator: torch.Generator = field(default_factory=torch.Generator)
    counts: Counter[str] = field(default_factory=Counter)


class Method(Protocol):
    """One way to answer while adapting to the questions themselves."""

    def scores(self, questions: Sequence[Question]) -> Scores:
        """Adapt on a batch and answer it, on any device, without gradient."""

    def reset(self) -> None:
        """Put weights, optimiser and averages back to the start."""


WINDOW = 64  # answers; by chance one of four equally frequent letters has a share of 0.25 +- 0.054
EVERY = 8  # batches between two comparisons with the trained model: 1/8 forward pass more a batch


class CollapseGuard:
    """Three alarms: a prediction is NaN, a letter's share grew too much, the distance from the start did.

    The share is that of the last `WINDOW` answers, and it is compared with the trained model's share of the
    same letter on the same questions: a file that is sorted by letter is no collapse. The trained model is
    asked only where the adapted one's share alone would suffice for an alarm. The distance is
    KL(adapted || trained), the mean over a batch: it is computed on the first batch after a reset and on
    every `EVERY`th from there.

    Args:
        label_share: Largest growth of one letter's share without an alarm.
        kl: Largest distance without an alarm, nats.
    """

    def __init__(self, label_share: float, kl: float) -> None:
        self.label_share, self.kl = label_share, kl
        self.answers: deque[_Answer] = deque(maxlen=WINDOW)
        self.batches = 0

    def wants_frozen(self) -> bool:
        """Whether the next `alarm` needs the trained model's predictions."""
        return self.batches % EVERY == 0

    def alarm(
        self,
        asked: Sequence[Any],
        log_p: torch.Tensor,
        frozen: torch.Tensor | None,
        ask_frozen: Callable[[Sequence[Any]], torch.Tensor],
    ) -> str | None:
        """Count a batch and say what is wrong with it.

        Args:
            asked: B questions, in whatever form `ask_frozen` takes.
            log_p: (B, C) of the adapted model.
            frozen: (B, C) of the trained one; None: not compared this time.
            ask_frozen: Gives the trained model's (N, C) for N questions.

        Returns:
            The alarm's text; None: no alarm.
        """
        self.batches += 1
        if not bool(torch.isfinite(log_p).all()):
            return "a prediction is not a number"
        known = [None] * len(asked) if frozen is None else frozen.argmax(1).tolist()
        letters = log_p.argmax(1).tolist()
        self.answers.extend(map(_Answer, asked, letters, known))
        grown = self._grown_share(ask_frozen)
        if grown is not None:
            return grown
        if frozen is not None and (distance := float(kl_divergence(log_p, frozen).mean())) > self.kl:
            return f"predictions are {distance:.2f} nats (KL) from the trained model's"
        return None

    def _grown_share(self, ask_frozen: Callable[[Sequence[Any]], torch.Tensor]) -> str | None:
        given = [answer.letter for answer in self.answers]
        letter = max(range(len(LETTERS)), key=given.count)
        share = given.count(letter) / len(given)
        if len(given) < WINDOW or share <= self.label_share:
            return None
        unknown = [answer for answer in self.answers if answer.frozen is None]
        if unknown:
            trained = ask_frozen([answer.asked for answer in unknown]).argmax(1).tolist()
            for answer, of_trained in zip(unknown, trained, strict=True):
                answer.frozen = of_trained
        before = sum(answer.frozen == letter for answer in self.answers) / len(given)
        if share - before <= self.label_share:
            return None
        now = f"{share:.0%} of the last {WINDOW} answers are {LETTERS[letter]!r}"
        return f"{now}, {before:.0%} of the trained model's"

    def clear(self) -> None:
        """Drop all counts."""
        self.answers.clear()
        self.batches = 0


@dataclass
class _Answer:
    """An answer in the guard's window: what was asked, the letter, and the trained model's, where known."""

    asked: Any
    letter: int
    frozen: int | None


class Guarded(ABC):
    """A method that learns, under the guard; after an alarm it starts again.

    Args:
        adapting: What methods share.
        start: What it goes back to, as the warning names it.
        advice: What the user may change.
    """

    def __init__(self, adapting: Adapting, start: str, advice: str) -> None:
        self.adapting, self.start, self.advice = adapting, start, advice
        self.guard = CollapseGuard(adapting.settings.guard_label_share, adapting.settings.guard_kl)
        self.warned = False

    @abstractmethod
    def ask_frozen(self, asked: Sequence[Any]) -> Scores:
        """Answer without what was learnt, as the trained model does."""

    @abstractmethod
    def reset(self) -> None:
        """Put everything back to the start, the guard's counts too."""

    def watched(self, asked: Sequence[Any], scores: Scores, frozen: Scores | None) -> Scores:
        """Give the scores of a batch, or after an alarm the trained model's.

        Args:
            asked: B questions, in the form that `ask_frozen` takes.
            scores: The method's.
            frozen: The trained model's, where `guard.wants_frozen` asked for them.
        """
        of_frozen = None if frozen is None else frozen[0]
        alarm = self.guard.alarm(asked, scores[0], of_frozen, lambda some: self.ask_frozen(some)[0])
        if alarm is None:
            return scores
        self.adapting.counts["guard_resets"] += 1
        if not self.warned:
            log.warning(
                "adapt=%s: %s; back to the %s (said once; metrics.json counts). %s",
                self.adapting.settings.method,
                alarm,
                self.start,
                self.advice,
            )
        self.warned = True
        self.reset()
        return frozen or self.ask_frozen(asked)
