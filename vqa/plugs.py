"""The two places where models differ: how pictures become features, and how text with them becomes logits."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from vqa.decoder import Recompute
from vqa.packing import Conversation, Suffix
from vqa.prompt import Order
from vqa.question import Question
from vqa.settings import ImageSettings, PromptSettings
from vqa.vision_features import VisionFeatures


class Pictures(Protocol):
    """A frozen vision part: vqa/tower.py for Qwen-VL's, vqa/generic_pictures.py for any.

    Args:
        device: Where it computes.
        visual: Its modules.
        merge: Patches along a cell of `VisionFeatures.grid`.
    """

    device: torch.device
    visual: Any
    merge: int

    def prepare(self, picture: Image.Image, image: ImageSettings) -> Any:
        """A picture as it goes to the device, within the budget of visual tokens."""

    def join(self, parts: Sequence[Any]) -> Any:
        """Several prepared pictures for one call of `features`."""

    def features(self, pictures: Any) -> list[VisionFeatures]:
        """What the tower makes of each picture, on the device."""

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it."""


class Batch(Protocol):
    """A micro-batch on the device."""

    @property
    def targets(self) -> torch.Tensor:
        """(B,) index of each gold choice's letter, -1 when unknown."""

    @property
    def conversation(self) -> Conversation | None:
        """What every token teaches; None: only the answers are asked for."""


class Text(Protocol):
    """A language model: vqa/own_text.py for Qwen-VL's, vqa/generic_text.py for any.

    What `prefix_states` gives is for `logits` of the same plug alone.
    """

    @property
    def image_token(self) -> int:
        """Id of the placeholder for one visual token."""

    def prefix(self, prompt: PromptSettings, question: Question) -> torch.Tensor:
        """(P,) ids of what stands before the picture, the same for every question."""

    def suffix(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order,
        features: VisionFeatures | None,
        answered: bool,
    ) -> torch.Tensor:
        """(S,) ids of the rest, up to where the answer goes, or to the end of turn."""

    def lengths(self, prompt: PromptSettings, questions: Sequence[Question]) -> list[int]:
        """Tokens of each suffix without its picture."""

    def shares(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> bool:
        """Whether the prefix may be computed once, and that costs less than repeating it."""

    def batch(
        self, prefix: torch.Tensor, suffixes: Sequence[Suffix], outside: bool, conversation: bool
    ) -> Any:
        """Lay out a micro-batch; `outside`: without the prefix; `conversation`: every token is taught."""

    def orders_batch(self, prefix: torch.Tensor, asked: Sequence[Sequence[Suffix]], outside: bool) -> Any:
        """Lay out questions that are each asked several times, with the same picture."""

    def logits(self, batch: Any, known: Any, recompute: Recompute) -> torch.Tensor:
        """(N, V) at the places that are read; `known`: the prefix's states, when it is not in the batch."""

    def prefix_states(self, prefix: torch.Tensor, recompute: Recompute = "nothing") -> Any:
        """What the prefix (P,) leaves in every layer."""

    def tensors(self, known: Any) -> list[torch.Tensor]:
        """The tensors of such states."""

    def with_tensors(self, known: Any, tensors: Sequence[torch.Tensor]) -> Any:
        """The same states with other tensors."""
