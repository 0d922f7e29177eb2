"""The weights that test-time adaptation moves: chosen, stepped, put back.

Steps are taken on float32 master copies: a small step on a bfloat16 weight near 1 would be rounded away. A
sharpness-aware step uses the gradient at the worst point nearby instead of the one at the weights themselves.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vqa.config.settings import AdaptSettings
from vqa.errors import UserError

MOMENTUM = 0.9  # TENT and SAR step with it where they use SGD


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


SMALLEST = 1e-12  # added to a gradient's length, so that a zero gradient is not divided by zero


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
