"""Predictions for a batch, and the gradient of a loss over them by the adapted weights, as memory allows.

A loss may depend on all predictions of the batch at once (a share of sure ones, a mean). Where the batch does
not fit, predictions come first, part by part without gradient; then the loss's gradient by them is carried
back through each part computed again. That is exact, at the price of one more forward pass.

Notation: B questions, C letters.

Source of the two passes: GradCache, Gao et al. 2021 (arXiv 2101.06983).
"""

from collections.abc import Callable, Sequence

import torch

from vqa.adapted_weights import AdaptedWeights
from vqa.adapting import Scores
from vqa.device import memory_share, release_memory
from vqa.encode import Encoder
from vqa.forward import letter_logits
from vqa.letters import option_log_probabilities
from vqa.memory import Ladder, Rung
from vqa.question import Question

Loss = Callable[[torch.Tensor], torch.Tensor | None]  # (B, C) log probabilities to a number; None: no step
Gradients = list[torch.Tensor]
HALF_SCALE = 1024.0  # float16 gradients below 6e-8 would be 0


@torch.no_grad()
def read_batch(encoder: Encoder, questions: Sequence[Question]) -> Scores:
    """Log probabilities (B, C) and log mass (B,) of the letters, in parts where memory is short.

    The prefix is in the row: it changes with the weights, and the next batch has other ones.
    """
    try:
        return _forward(encoder, questions, Rung(len(questions), "nothing"))
    except torch.OutOfMemoryError:
        if len(questions) == 1:
            raise
    release_memory()
    half = len(questions) // 2
    return _joined([read_batch(encoder, part) for part in (questions[:half], questions[half:])])


def letter_gradient(
    encoder: Encoder, weights: AdaptedWeights, questions: Sequence[Question], loss_of: Loss
) -> tuple[Scores, Gradients | None]:
    """Predict a batch and differentiate a loss of the predictions by the weights.

    Args:
        encoder: Makes batches.
        weights: What to differentiate by.
        questions: The batch.
        loss_of: From (B, C) log probabilities.

    Returns:
        The predictions, without gradient, and one gradient per weight; None when there is no loss.
    """
    base = encoder.base
    shape = (base.path, encoder.prompt.system, encoder.image.size, memory_share(base.device))
    ladder = Ladder(len(questions), ("adapt", *shape))
    while True:
        try:
            with weights.learning():
                return _gradient(encoder, weights.parameters, questions, loss_of, ladder.rung)
        except torch.OutOfMemoryError:
            base.vision.park()
            if not ladder.step_down():
                raise


def _gradient(
    encoder: Encoder,
    parameters: Sequence[torch.nn.Parameter],
    questions: Sequence[Question],
    loss_of: Loss,
    rung: Rung,
) -> tuple[Scores, Gradients | None]:
    size = rung.micro_batch_size
    parts = [questions[i : i + size] for i in range(0, len(questions), size)]
    if len(parts) == 1:
        log_p, mass = _forward(encoder, questions, rung)
    else:
        log_p, mass = _joined([read_batch(encoder, part) for part in parts])
        log_p.requires_grad_()
    scores, loss = (log_p.detach(), mass.detach()), loss_of(log_p)
    if loss is None:
        return scores, None
    scale = HALF_SCALE if encoder.base.dtype == torch.float16 else 1.0
    if len(parts) == 1:
        found = _gradients(loss * scale, parameters, None)
    else:
        (by_log_p,) = torch.autograd.grad(loss * scale, [log_p])
        found = [torch.zeros_like(p) for p in parameters]
        for part, grad in zip(parts, torch.split(by_log_p, size), strict=True):
            part_log_p, _ = _forward(encoder, part, rung)
            for total, more in zip(found, _gradients(part_log_p, parameters, grad), strict=True):
                total += more
    return scores, found if scale == 1.0 else [g / scale for g in found]


def _forward(encoder: Encoder, questions: Sequence[Question], rung: Rung) -> Scores:
    base = encoder.base
    logits = letter_logits(base, encoder.batch(questions), None, rung.recompute)
    return option_log_probabilities(logits, base.letters)


def _gradients(
    output: torch.Tensor, parameters: Sequence[torch.nn.Parameter], by_output: torch.Tensor | None
) -> Gradients:
    found = torch.autograd.grad(output, list(parameters), by_output, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _joined(parts: Sequence[Scores]) -> Scores:
    return torch.cat([log_p for log_p, _ in parts]), torch.cat([mass for _, mass in parts])
