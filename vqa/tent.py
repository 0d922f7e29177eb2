"""TENT: minimise the entropy of the predictions, batch by batch.

Source: Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021 (arXiv 2006.10726),
section 3. There the norm layers' scales and shifts are trained (`adapt.parameters=norm`); both teams asked
for the adapter's weights, the default here. Their entropy is over all classes; ours over the four letters.
"""

from collections.abc import Sequence

import torch

from vqa.adapted_weights import AdaptedWeights
from vqa.adapting import Adapting, Scores
from vqa.entropy_loss import mean_entropy
from vqa.letter_gradient import Outputs, letter_gradient
from vqa.question import Question
from vqa.weight_method import WeightMethod


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
