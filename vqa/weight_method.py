"""What every method that moves weights has in common: steps, the guard, the way back.

Notation: B questions of a batch, C letters.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from vqa.adapted_weights import AdaptedWeights
from vqa.adapting import Adapting, Scores
from vqa.collapse_guard import CollapseGuard
from vqa.letter_gradient import read_batch
from vqa.question import Question

log = logging.getLogger(__name__)
COUNTED = ("steps", "filtered", "resets", "guard_resets", "not_finite")  # in metrics.json even where 0


class Rule(Protocol):
    """How the weights move."""

    def step(self, questions: Sequence[Question]) -> Scores:
        """One step on a batch; returns the predictions of the forward pass it was computed from."""

    def reset(self) -> None:
        """Forget averages of its own; the weights are not its business."""


class WeightMethod:
    """A rule with its weights, watched by the guard; a `vqa.adapting.Method`.

    An online method answers from the forward pass it adapts on, as TENT and SAR are published: a question
    profits from the batches before its own. An episodic one would then never show what it learnt, so there a
    second pass, after the last step, gives the answers.

    Args:
        adapting: What methods share.
        make_rule: The rule, from the weights it moves.
    """

    def __init__(self, adapting: Adapting, make_rule: Callable[[Adapting, AdaptedWeights], Rule]) -> None:
        self.adapting = adapting
        self.weights = AdaptedWeights(adapting.encoder.base.model, adapting.settings)
        self.rule = make_rule(adapting, self.weights)
        self.guard = CollapseGuard(adapting.settings.guard_label_share, adapting.settings.guard_kl)
        self.warned = False
        adapting.counts.update(dict.fromkeys(COUNTED, 0))

    def scores(self, questions: Sequence[Question]) -> Scores:
        """Adapt on a batch and answer it; the trained weights answer a batch that raises an alarm."""
        encoder, settings = self.adapting.encoder, self.adapting.settings
        for _ in range(settings.steps):
            found = self.rule.step(questions)
        if settings.episodic:
            found = read_batch(encoder, questions).scores
        frozen = None
        if self.guard.wants_frozen():
            with self.weights.at_source():
                frozen = read_batch(encoder, questions).scores
        alarm = self.guard.alarm(found[0], None if frozen is None else frozen[0])
        if alarm is None:
            return found
        self._forget(alarm)
        return frozen or read_batch(encoder, questions).scores

    def reset(self) -> None:
        """Weights, optimiser, the rule's averages and the guard's memory as at the start."""
        self.weights.reset()
        self.rule.reset()
        self.guard.clear()

    def _forget(self, alarm: str) -> None:
        self.adapting.counts["guard_resets"] += 1
        if not self.warned:
            log.warning(
                "adapt=%s: %s; back to the trained weights (said once; metrics.json counts). "
                "Lower adapt.lr or raise adapt.batch_size",
                self.adapting.settings.method,
                alarm,
            )
        self.warned = True
        self.reset()
