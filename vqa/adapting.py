"""What a test-time method gets, and what it has to give.

Notation: B questions of a batch, C letters.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vqa.encode import Encoder
from vqa.question import Question
from vqa.settings import AdaptSettings

Scores = tuple[torch.Tensor, torch.Tensor]  # (B, C) log probabilities of the letters, (B,) log of their mass


@dataclass
class Adapting:
    """Everything that methods share.

    Args:
        encoder: Makes batches; its base carries the adapter.
        model: The PEFT model around the base's model, or that model itself.
        settings: Of the method.
        source: Training questions, at most `settings.source_size`; empty where the method needs none.
        generator: For whatever a method draws; on the CPU.
        counts: What happened, by name; ends in metrics.json.
    """

    encoder: Encoder
    model: Any
    settings: AdaptSettings
    source: Sequence[Question] = ()
    generator: torch.Generator = field(default_factory=torch.Generator)
    counts: Counter[str] = field(default_factory=Counter)


class Method(Protocol):
    """One way to answer while learning from the questions themselves."""

    def scores(self, questions: Sequence[Question]) -> Scores:
        """Adapt on a batch and answer it, on any device, without gradient."""

    def reset(self) -> None:
        """Forget all that was learnt: weights, optimiser, averages are as they were at the start."""
