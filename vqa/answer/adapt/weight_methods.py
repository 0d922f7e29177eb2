"""Test-time methods that move weights: TENT, SAR, consistency and lora_align, and what they have in common.

They have in common the steps, the guard, the way back.

Notation: B questions of a batch, W views of each, C letters.

TENT: minimise the entropy of the predictions, batch by batch.

Source: Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021 (arXiv 2006.10726),
section 3. There the norm layers' scales and shifts are trained (`adapt.parameters=norm`); both teams asked
for the adapter's weights, the default here. Their entropy is over all classes; ours over the four letters.

SAR: entropy minimisation on sure questions only, towards flat minima, with a way back.

Source: Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023 (arXiv 2302.12400),
equations 2 to 4 and algorithm 1. Kept from their code: sure questions are chosen a second time at the moved
weights, and a step is one batch, not one question. Not kept: its reset at a fixed 0.2 whatever the setting, a
moving average that survives the reset, and the mean over no question at all, which is not a number.
The paper trains norm layers and leaves the last blocks alone; here `adapt.parameters` decides.

This is not what one of the teams calls "SAR": that is `adapt=consistency`.

TENT plus a consistency loss between views of a picture: one of the teams' own reading of "SAR".

L = mean over questions of H(p_1) + weight * (H(mean_v p_v) - mean_v H(p_v)),

p_v the prediction for view v, p_1 for the picture itself. The second term is the mean KL divergence of the
views' predictions from their mean, the generalised Jensen-Shannon divergence: 0 when all views agree, ln C at
most, the same in whatever order the views come. Answers are read from the picture itself.

Source: entropy term Wang et al. 2021 (arXiv 2006.10726); divergence Lin 1991, Divergence Measures Based on
the Shannon Entropy, section V. The published method called SAR is `adapt=sar`.

Entropy plus alignment of picture and answer embeddings: the teams' own reading of PromptAlign.

L = mean over questions of H(p) + weight * (misalignment of pictures + misalignment of answers)

A picture's embedding is the mean hidden state of its visual tokens, an answer's the state at its position,
both as they enter the last layer. Before the first batch their mean and variance are taken over training
questions with the trained weights, labels unused; each test batch is then drawn towards them by moving the
adapter.

The published method moves a soft prompt instead and aligns the visual tokens of several views of one question
(Abdul Samadh et al., NeurIPS 2023, arXiv 2311.01459): that is `adapt=prompt_align`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from vqa.answer.adapt.embeddings import Moments, misalignment, moments
from vqa.answer.adapt.formulas import entropies, mean_entropy, reliable, view_divergence
from vqa.answer.adapt.gradient import Outputs, letter_gradient, read_batch
from vqa.answer.adapt.method import Adapting, CollapseGuard, Scores
from vqa.answer.adapt.weights import AdaptedWeights, worst_direction
from vqa.errors import UserError
from vqa.model.vision.views import viewed
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
    """A rule with its weights, watched by the guard; a `vqa.answer.adapt.method.Method`.

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


def make_tent(adapting: Adapting) -> WeightMethod:
    """TENT with its weights and guard."""
    return WeightMethod(adapting, Tent)


class Tent:
    """The rule: one gradient step on the mean entropy."""

    def __init__(self, adapting: Adapting, weights: AdaptedWeights) -> None:
        self.adapting, self.weights = adapting, weights

    def step(self, questions: Sequence[Question]) -> Scores:
        """One step on a batch; returns the predictions of the forward pass it was computed from."""
        found, gradients = letter_gradient(self.adapting.encoder, self.weights, questions, _loss)
        if gradients is not None:
            self.adapting.counts["steps" if self.weights.step(gradients) else "not_finite"] += 1
        return found.scores

    def reset(self) -> None:
        """Nothing of its own to forget."""


def _loss(outputs: Outputs) -> torch.Tensor:
    return mean_entropy(outputs.log_p)


KEPT = 0.9  # of the moving average, at each step


def make_sar(adapting: Adapting) -> WeightMethod:
    """SAR with its weights and guard."""
    return WeightMethod(adapting, Sar)


class Sar:
    """The rule: two passes, both over sure questions, and one step."""

    def __init__(self, adapting: Adapting, weights: AdaptedWeights) -> None:
        self.adapting, self.weights = adapting, weights
        self.limit = adapting.settings.entropy_limit
        self.average: float | None = None

    def step(self, questions: Sequence[Question]) -> Scores:
        """One step on a batch; returns the predictions of the first pass, at the weights before it."""
        encoder, counts = self.adapting.encoder, self.adapting.counts
        found, gradients = letter_gradient(encoder, self.weights, questions, self._loss)
        sure = reliable(found.log_p, self.limit).tolist()
        chosen = [question for question, keep in zip(questions, sure, strict=True) if keep]
        counts["filtered"] += len(questions) - len(chosen)
        if gradients is None:
            return found.scores
        with self.weights.moved(worst_direction(gradients, self.adapting.settings.rho)):
            moved, gradients = letter_gradient(encoder, self.weights, chosen, self._loss)
        if gradients is None:
            return found.scores
        counts["steps" if self.weights.step(gradients) else "not_finite"] += 1
        self._recover(moved.log_p)
        return found.scores

    def reset(self) -> None:
        """Forget the moving average."""
        self.average = None

    def _loss(self, outputs: Outputs) -> torch.Tensor | None:
        """Mean entropy of the sure questions (equation 2); None without any."""
        sure = reliable(outputs.log_p, self.limit)
        return entropies(outputs.log_p)[sure].mean() if bool(sure.any()) else None

    def _recover(self, log_p: torch.Tensor) -> None:
        """Back to the trained weights once the moving average of the loss says that all is sure.

        Args:
            log_p: (B, C) at the moved weights; the loss is the mean entropy of the sure ones.
        """
        loss = float(entropies(log_p)[reliable(log_p, self.limit)].mean())
        self.average = loss if self.average is None else KEPT * self.average + (1 - KEPT) * loss
        below = self.adapting.settings.reset_below
        if below is not None and self.average < below:
            self.adapting.counts["resets"] += 1
            self.weights.reset()
            self.reset()


def make_consistency(adapting: Adapting) -> WeightMethod:
    """TENT with consistency between views, its weights and guard."""
    return WeightMethod(adapting, Consistency)


class Consistency:
    """The rule: one gradient step on entropy and disagreement."""

    def __init__(self, adapting: Adapting, weights: AdaptedWeights) -> None:
        self.adapting, self.weights = adapting, weights

    def step(self, questions: Sequence[Question]) -> Scores:
        """One step on a batch; returns the predictions of the forward pass it was computed from."""
        settings = self.adapting.settings
        asked = [view for question in questions for view in viewed(question, settings.views, settings.seed)]
        found, gradients = letter_gradient(self.adapting.encoder, self.weights, asked, self._loss)
        if gradients is not None:
            self.adapting.counts["steps" if self.weights.step(gradients) else "not_finite"] += 1
        return found.log_p[:: settings.views], found.log_mass[:: settings.views]

    def reset(self) -> None:
        """Nothing of its own to forget."""

    def _loss(self, outputs: Outputs) -> torch.Tensor:
        """From (B x W, C), a question's views side by side."""
        settings = self.adapting.settings
        by_view = outputs.log_p.view(-1, settings.views, outputs.log_p.shape[1])
        return (entropies(by_view[:, 0]) + settings.weight * view_divergence(by_view)).mean()


def make_lora_align(adapting: Adapting) -> WeightMethod:
    """Alignment with its weights and guard.

    Raises:
        UserError: There are no training questions to align with.
    """
    return WeightMethod(adapting, LoraAlign)


class LoraAlign:
    """The rule: one gradient step on entropy and misalignment."""

    def __init__(self, adapting: Adapting, weights: AdaptedWeights) -> None:
        if not adapting.source:
            raise UserError("adapt=lora_align needs training questions to align with; give data.train_csv")
        self.adapting, self.weights = adapting, weights
        self.pictures, self.answers = self._source_moments()

    def step(self, questions: Sequence[Question]) -> Scores:
        """One step on a batch; returns the predictions of the forward pass it was computed from."""
        encoder = self.adapting.encoder
        found, gradients = letter_gradient(encoder, self.weights, questions, self._loss, embeddings=True)
        if gradients is not None:
            self.adapting.counts["steps" if self.weights.step(gradients) else "not_finite"] += 1
        return found.scores

    def reset(self) -> None:
        """Nothing of its own to forget: the source is always the trained model's."""

    def _loss(self, outputs: Outputs) -> torch.Tensor:
        apart = misalignment(outputs.answers, self.answers)
        if len(outputs.pictures):
            apart = apart + misalignment(outputs.pictures, self.pictures)
        return mean_entropy(outputs.log_p) + self.adapting.settings.weight * apart

    def _source_moments(self) -> tuple[Moments, Moments]:
        """Of pictures and answers, over the training questions."""
        encoder, source, size = self.adapting.encoder, self.adapting.source, self.adapting.settings.batch_size
        encoder.look(source)
        read = [
            read_batch(encoder, source[i : i + size], embeddings=True) for i in range(0, len(source), size)
        ]
        pictures = torch.cat([outputs.pictures for outputs in read])
        return moments(pictures), moments(torch.cat([outputs.answers for outputs in read]))
