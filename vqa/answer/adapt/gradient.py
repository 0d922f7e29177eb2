"""The weights that test-time adaptation moves, and the gradient of a loss over a batch with respect to them.

Steps are taken on float32 master copies: a small step on a bfloat16 weight near 1 would be rounded away. A
sharpness-aware step uses the gradient at the worst point nearby instead of the one at the weights themselves.

A loss may depend on all predictions of the batch at once (a share of sure ones, a mean). Where the batch does
not fit into memory, two passes over its parts give the same gradient. The first pass predicts without
gradient, and the loss is differentiated by these predictions. The second computes each part again and carries
its share of that gradient back to the weights. The price is one more forward pass.

Notation: B questions, N of them with a picture, C letters, H hidden size.

Source of the two passes: GradCache, Gao et al. 2021 (arXiv 2101.06983).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vqa.answer.adapt.formulas import answer_embeddings, picture_embeddings
from vqa.answer.adapt.method import Scores
from vqa.config.settings import AdaptSettings
from vqa.errors import UserError
from vqa.machine.device import memory_share, release_memory
from vqa.model.decoder import Recompute, answer_states
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.letters import option_log_probabilities
from vqa.model.memory import Ladder, Rung, does_not_fit
from vqa.question import Question

MOMENTUM = 0.9  # TENT and SAR step with it where they use SGD
SMALLEST = 1e-12  # added to a gradient's length, so that a zero gradient is not divided by zero
HALF_SCALE = 1024.0  # of a float16 loss: gradients below 6e-8 would be 0
Gradients = list[torch.Tensor]


def trained_parameters(model: Any, kind: str) -> list[torch.nn.Parameter]:
    """The parameters that a method may move at test time.

    Args:
        model: The base's model, with whatever adapter is in it.
        kind: "lora", every weight of the adapter, or "norm", the language model's RMSNorm weights.

    Raises:
        UserError: There are none.
    """
    if kind == "lora":
        parameters = [p for name, p in model.named_parameters() if "lora_" in name]
    else:
        modules = model.get_decoder().modules()
        parameters = [m.weight for m in modules if type(m).__name__.endswith("RMSNorm")]
    if not parameters:
        raise UserError(f"adapt.parameters must be norm without an adapter in the model, got {kind!r}")
    return parameters


class AdaptedWeights:
    """The moved weights, what they were at the start, and their optimiser.

    Args:
        model: The base's model.
        settings: Which weights to move and how.
    """

    def __init__(self, model: Any, settings: AdaptSettings) -> None:
        self.model, self.settings = model, settings
        self.parameters = trained_parameters(model, settings.parameters)
        self.source = [p.detach().clone() for p in self.parameters]
        self.masters = [p.detach().float().clone() for p in self.parameters]
        self.optimizer = self._fresh_optimizer()

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        if self.settings.optimizer == "adam":
            return torch.optim.Adam(self.masters, lr=self.settings.rate)
        return torch.optim.SGD(self.masters, lr=self.settings.rate, momentum=MOMENTUM)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Inside the block these weights, and no others, require gradients."""
        before = [p for p in self.model.parameters() if p.requires_grad]
        self.model.requires_grad_(False)
        for p in self.parameters:
            p.requires_grad_(True)
        try:
            with torch.enable_grad():
                yield
        finally:
            self.model.requires_grad_(False)
            for p in before:
                p.requires_grad_(True)

    def step(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Take one optimiser step; where a gradient is not finite, take none and return False."""
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            return False
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient.float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._put(self.masters)
        return True

    def reset(self) -> None:
        """Put weights and optimiser back to the start, bit for bit."""
        for master, start in zip(self.masters, self.source, strict=True):
            master.copy_(start)
        self.optimizer = self._fresh_optimizer()
        self._put(self.source)

    @contextmanager
    def at_source(self) -> Iterator[None]:
        """Inside the block the model has its trained weights."""
        with self._replaced(self.source):
            yield

    @contextmanager
    def moved(self, offsets: Sequence[torch.Tensor]) -> Iterator[None]:
        """Inside the block `offsets` are added to the weights."""
        pairs = zip(self.masters, offsets, strict=True)
        with self._replaced([master + offset for master, offset in pairs]):
            yield

    @contextmanager
    def _replaced(self, values: Sequence[torch.Tensor]) -> Iterator[None]:
        now = [p.detach().clone() for p in self.parameters]
        self._put(values)
        try:
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)


def worst_direction(gradients: Sequence[torch.Tensor], rho: float) -> list[torch.Tensor]:
    """The step of length `rho` along which the loss rises fastest: rho g / |g|, over all weights together.

    Args:
        gradients: One per weight.
        rho: Length of the step; the weights' own unit.

    Source: SAM, Foret et al., ICLR 2021 (arXiv 2010.01412), equation 2 with p = 2; in SAR, Niu et al., ICLR
    2023 (arXiv 2302.12400), equation 4.
    """
    length = torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]).norm()
    return [g.float() * (rho / (length + SMALLEST)) for g in gradients]


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
