"""SAR: entropy minimisation on sure questions only, towards flat minima, with a way back.

Source: Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023 (arXiv 2302.12400),
equations 2 to 4 and algorithm 1. Kept from their code: sure questions are chosen a second time at the moved
weights, and a step is one batch, not one question. Not kept: its reset at a fixed 0.2 whatever the setting, a
moving average that survives the reset, and the mean over no question at all, which is not a number.
The paper trains norm layers and leaves the last blocks alone; here `adapt.parameters` decides.

This is not what one of the teams calls "SAR": that is `vqa/consistency.py`.
"""

from collections.abc import Sequence

import torch

from vqa.adapted_weights import AdaptedWeights
from vqa.adapting import Adapting, Scores
from vqa.entropy_loss import entropies, reliable
from vqa.letter_gradient import Outputs, letter_gradient
from vqa.question import Question
from vqa.sharpness import worst_direction
from vqa.weight_method import WeightMethod

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
