"""TENT plus a consistency loss between views of a picture: one of the teams' own reading of "SAR".

L = mean over questions of H(p_1) + weight * (H(mean_v p_v) - mean_v H(p_v)),

p_v the prediction for view v, p_1 for the picture itself. The second term is the mean KL divergence of the
views' predictions from their mean, the generalised Jensen-Shannon divergence: 0 when all views agree, ln C at
most, the same in whatever order the views come. Answers are read from the picture itself.

Source: entropy term Wang et al. 2021 (arXiv 2006.10726); divergence Lin 1991, Divergence Measures Based on
the Shannon Entropy, section V. The published method called SAR is `vqa/sar.py`.

Notation: B questions, W views of each, C letters.
"""

from collections.abc import Sequence

import torch

from vqa.adapted_weights import AdaptedWeights
from vqa.adapting import Adapting, Scores
from vqa.entropy_loss import entropies, view_divergence
from vqa.letter_gradient import Outputs, letter_gradient
from vqa.question import Question
from vqa.views import viewed
from vqa.weight_method import WeightMethod


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
