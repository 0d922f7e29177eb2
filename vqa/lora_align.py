"""Entropy plus alignment of picture and answer embeddings: the teams' own reading of PromptAlign.

L = mean over questions of H(p) + weight * (misalignment of pictures + misalignment of answers)

A picture's embedding is the mean hidden state of its visual tokens, an answer's the state at its position,
both as they enter the last layer. Before the first batch their mean and variance are taken over training
questions with the trained weights, labels unused; each test batch is then drawn towards them by moving the
adapter.

The published method moves a soft prompt instead and aligns the visual tokens of several views of one question
(Abdul Samadh et al., NeurIPS 2023, arXiv 2311.01459): that is `adapt=prompt_align`.
"""

from collections.abc import Sequence

import torch

from vqa.adapted_weights import AdaptedWeights
from vqa.adapting import Adapting, Scores
from vqa.embeddings import Moments, misalignment, moments
from vqa.entropy_loss import mean_entropy
from vqa.errors import UserError
from vqa.letter_gradient import Outputs, letter_gradient, read_batch
from vqa.question import Question
from vqa.weight_method import WeightMethod


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
