"""Predictions for a batch, and the gradient of a loss over them with respect to the adapted weights.

A loss may depend on all predictions of the batch at once (a share of sure ones, a mean). Where the batch does
not fit into memory, two passes over its parts give the same gradient. The first pass predicts without
gradient, and the loss is differentiated by these predictions. The second computes each part again and carries
its share of that gradient back to the weights. The price is one more forward pass.

Notation: B questions, N of them with a picture, C letters, H hidden size.

Source of the two passes: GradCache, Gao et al. 2021 (arXiv 2101.06983).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vqa.answer.adapt.formulas import answer_embeddings, picture_embeddings
from vqa.answer.adapt.method import Scores
from vqa.answer.adapt.weights import AdaptedWeights
from vqa.machine.device import memory_share, release_memory
from vqa.model.decoder import Recompute, answer_states
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.letters import option_log_probabilities
from vqa.model.memory import Ladder, Rung, does_not_fit
from vqa.question import Question

HALF_SCALE = 1024.0  # of a float16 loss: gradients below 6e-8 would be 0


class Outputs(NamedTuple):
    """What a forward pass gives.

    Args:
        log_p: (B, C) log probabilities of the letters.
        log_mass: (B,) log of their share in the vocabulary.
        pictures: (N, H) embedding of each picture; empty when not asked for, or without pictures.
        answers: (B, H) embedding at each answer position; empty when not asked for.
    """

    log_p: torch.Tensor
    log_mass: torch.Tensor
    pictures: torch.Tensor
    answers: torch.Tensor

    @property
    def scores(self) -> Scores:
        """The predictions alone."""
        return self.log_p, self.log_mass


Loss = Callable[[Outputs], torch.Tensor | None]  # None: nothing to learn from, no step
Gradients = list[torch.Tensor]


@torch.no_grad()
def read_batch(encoder: Encoder, questions: Sequence[Question], embeddings: bool = False) -> Outputs:
    """Predict without gradient, in smaller parts where memory does not suffice.

    The prefix is computed with every batch, because its states change with the weights.
    """
    try:
        return _forward(encoder, questions, "nothing", embeddings)
    except torch.OutOfMemoryError as error:
        if len(questions) == 1:
            doing = "answering one question at a time"
            raise does_not_fit(doing, encoder.base.device, error) from error
    release_memory()
    half = len(questions) // 2
    return _joined([read_batch(encoder, part, embeddings) for part in (questions[:half], questions[half:])])


def letter_gradient(
    encoder: Encoder,
    weights: AdaptedWeights,
    questions: Sequence[Question],
    loss_of: Loss,
    embeddings: bool = False,
) -> tuple[Outputs, Gradients | None]:
    """Predict a batch and differentiate a loss of the predictions by the weights.

    Args:
        encoder: Makes batches.
        weights: What to differentiate by.
        questions: The batch.
        loss_of: The loss of a pass's outputs.
        embeddings: Whether the outputs have embeddings too.

    Returns:
        The outputs, without gradient, and one gradient per weight; None when there is no loss.

    Raises:
        UserError: Not even one question fits into memory.
    """
    base = encoder.base
    shape = (base.path, encoder.prompt.system, encoder.image.size, memory_share(base.device))
    ladder = Ladder(len(questions), ("adapt", *shape))
    while True:
        try:
            with weights.learning():
                work = _Work(encoder, weights.parameters, ladder.rung, embeddings)
                return work.whole(questions, loss_of) or work.in_parts(questions, loss_of)
        except torch.OutOfMemoryError as error:
            base.vision.park()
            if not ladder.step_down():
                doing = f"adapting to one of {len(questions)} questions at a time"
                raise does_not_fit(doing, base.device, error) from error


@dataclass(frozen=True)
class _Work:
    """One gradient, at one rung of the memory ladder."""

    encoder: Encoder
    parameters: Sequence[torch.nn.Parameter]
    rung: Rung
    embeddings: bool

    def whole(self, questions: Sequence[Question], loss_of: Loss) -> tuple[Outputs, Gradients | None] | None:
        """Take the batch at once; None where the rung has fewer questions at a time."""
        if self.rung.micro_batch_size < len(questions):
            return None
        outputs = _forward(self.encoder, questions, self.rung.recompute, self.embeddings)
        loss = loss_of(outputs)
        return _detached(outputs), None if loss is None else self._by_weights([loss], [None])

    def in_parts(self, questions: Sequence[Question], loss_of: Loss) -> tuple[Outputs, Gradients | None]:
        """Take two passes over micro-batches."""
        size = self.rung.micro_batch_size
        parts = [questions[i : i + size] for i in range(0, len(questions), size)]
        read = [read_batch(self.encoder, part, self.embeddings) for part in parts]
        outputs = _joined(read)
        leaves = Outputs(*(x.requires_grad_() for x in outputs))
        loss = loss_of(leaves)
        if loss is None:
            return _detached(outputs), None
        by_outputs = torch.autograd.grad(loss, leaves, allow_unused=True)
        sizes = [[len(x) for x in column] for column in zip(*read, strict=True)]
        cut = [
            [None] * len(parts) if g is None else list(torch.split(g, n))
            for g, n in zip(by_outputs, sizes, strict=True)
        ]
        total = [torch.zeros_like(p) for p in self.parameters]
        for part, grads in zip(parts, zip(*cut, strict=True), strict=True):
            again = _forward(self.encoder, part, self.rung.recompute, self.embeddings)
            pairs = [(x, g) for x, g in zip(again, grads, strict=True) if g is not None and len(g)]
            more = self._by_weights([x for x, _ in pairs], [g for _, g in pairs])
            total = [one + other for one, other in zip(total, more, strict=True)]
        return _detached(outputs), total

    def _by_weights(self, outputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor | None]) -> Gradients:
        scale = HALF_SCALE if self.encoder.base.dtype == torch.float16 else 1.0
        by_outputs = [
            (torch.ones_like(x) if g is None else g) * scale for x, g in zip(outputs, grads, strict=True)
        ]
        gradients = torch.autograd.grad(outputs, list(self.parameters), by_outputs, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g / scale
            for p, g in zip(self.parameters, gradients, strict=True)
        ]


def _forward(
    encoder: Encoder, questions: Sequence[Question], recompute: Recompute, embeddings: bool
) -> Outputs:
    base = encoder.base
    batch, letters = encoder.batch(questions), base.letters[len(questions[0].choices)]
    if not embeddings:
        log_p, mass = option_log_probabilities(letter_logits(base, batch, None, recompute), letters)
        return Outputs(log_p, mass, log_p.new_empty(0), log_p.new_empty(0))
    logits, states = answer_states(base.model, batch.row, recompute)
    log_p, mass = option_log_probabilities(logits, letters)
    return Outputs(log_p, mass, picture_embeddings(batch.row, states), answer_embeddings(batch.row, states))


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return Outputs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _detached(outputs: Outputs) -> Outputs:
    return Outputs(*(x.detach() for x in outputs))
