"""Where models differ in text: how ids and features become logits (in pictures: `vision/cache.py`)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from vqa.config.settings import PromptSettings
from vqa.model.decoder import Recompute
from vqa.model.packing import Conversation, Suffix
from vqa.model.prompt import Order
from vqa.model.vision.features import VisionFeatures
from vqa.question import Question


class Batch(Protocol):
    """A micro-batch on the device."""

    @property
    def targets(self) -> torch.Tensor:
        """(B,) index of each gold choice's letter, -1 when unknown."""

    @property
    def options(self) -> Sequence[int]:
        """Number of options of each question."""

    @property
    def conversation(self) -> Conversation | None:
        """What every token teaches; None: only the answers are asked for."""


class Prompts(Protocol):
    """Questions to token ids."""

    @property
    def image_token(self) -> int:
        """Id of the placeholder for one visual token."""

    @property
    def pad_token(self) -> int:
        """Id to fill up with."""

    def prefix(self, prompt: PromptSettings, question: Question) -> torch.Tensor:
        """(P,) ids of what stands before the picture, the same for every question."""

    def suffix(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order,
        features: Sequence[VisionFeatures],
        answered: bool,
    ) -> torch.Tensor:
        """(S,) ids of the rest, up to where the answer goes, or to the end of turn."""

    def lengths(self, prompt: PromptSettings, questions: Sequence[Question]) -> list[int]:
        """Tokens of each suffix without its pictures."""

    def padded(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> dict[str, Any]:
        """Plain left-padded rows: what `generate` takes."""


class Text(Prompts, Protocol):
    """A language model: vqa/model/own_text.py for our own decoder's, vqa/model/generic_text.py for any.

    What `prefix_states` gives is for `logits` of the same plug alone.
    """

    def shares(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> bool:
        """Whether the prefix may be computed once, and that costs less than repeating it."""

    def batch(
        self, prefix: torch.Tensor, suffixes: Sequence[Suffix], outside: bool, conversation: bool
    ) -> Any:
        """Lay out a micro-batch; `outside`: without the prefix; `conversation`: every token is taught."""

    def orders_batch(self, prefix: torch.Tensor, asked: Sequence[Sequence[Suffix]], outside: bool) -> Any:
        """Lay out questions that are each asked several times, with the same pictures."""

    def logits(self, batch: Any, known: Any, recompute: Recompute) -> torch.Tensor:
        """(N, V) at the places that are read; `known`: the prefix's states, when it is not in the batch."""

    def prefix_states(self, prefix: torch.Tensor, recompute: Recompute = "nothing") -> Any:
        """What the prefix (P,) leaves in every layer."""

    def tensors(self, known: Any) -> list[torch.Tensor]:
        """The tensors of such states."""

    def with_tensors(self, known: Any, tensors: Sequence[torch.Tensor]) -> Any:
        """The same states with other tensors."""
