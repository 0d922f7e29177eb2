"""Questions to token ids and vision features: what a batch is packed from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vqa.config.settings import ImageSettings, PromptSettings
from vqa.model.base import Base
from vqa.model.packing import Suffix
from vqa.model.prompt import Order, as_written
from vqa.model.vision.features import VisionFeatures
from vqa.question import LETTERS, Question

MANY = 64  # questions of one scoring batch
__all__ = ["Encoder", "Order"]


@dataclass(frozen=True)
class Encoder:
    """Turns questions into batches for one base, prompt and image setting."""

    base: Base
    prompt: PromptSettings
    image: ImageSettings

    def prefix(self, question: Question) -> torch.Tensor:
        """(P,) ids of what stands before every picture; the question only fills the template."""
        return self.base.text.prefix(self.prompt, question)

    def suffixes(
        self, questions: Sequence[Question], orders: Sequence[Order] | None = None, answered: bool = False
    ) -> list[Suffix]:
        """Encode questions, each with its options in the given order (default: as written)."""
        orders = orders or [as_written(q) for q in questions]
        features = self.base.vision.features(questions, self.image)
        return [self._suffix(q, o, f, answered) for q, o, f in zip(questions, orders, features, strict=True)]

    def batch(
        self,
        questions: Sequence[Question],
        orders: Sequence[Order] | None = None,
        outside: bool = False,
        conversation: bool = False,
    ) -> Any:
        """A micro-batch on the base's device, ready for `letter_logits`; a `vqa.model.plugs.Batch`.

        Args:
            questions: What is asked.
            orders: Of each question's options; default: as written.
            outside: Without the prefix.
            conversation: With answer and end of turn, every token taught (loss=full).
        """
        prefix, suffixes = self.prefix(questions[0]), self.suffixes(questions, orders, conversation)
        return self.base.text.batch(prefix, suffixes, outside, conversation)

    def orders_batch(
        self, questions: Sequence[Question], orders: Sequence[Order], outside: bool = False
    ) -> Any:
        """Every question in each of the orders, prefix and pictures shared; `outside`: without the prefix.

        All questions have as many options as the orders.
        """
        features = self.base.vision.features(questions, self.image)
        asked = [
            [self._suffix(question, order, feature, False) for order in orders]
            for question, feature in zip(questions, features, strict=True)
        ]
        return self.base.text.orders_batch(self.prefix(questions[0]), asked, outside)

    def padded(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The same questions as plain padded rows on the base's device: the model's ordinary inputs."""
        return self.base.text.padded(self.prefix(questions[0]), self.suffixes(questions))

    def shares_prefix(self, question: Question) -> bool:
        """Whether the prefix is long enough, beside this question, to be computed once and kept."""
        return self.base.text.shares(self.prefix(question), self.suffixes([question]) * MANY)

    def look(self, questions: Sequence[Question]) -> None:
        """Compute the vision features of all pictures that are not known yet, as far as there is room."""
        self.base.vision.fill(questions, self.image)

    def looking(self, questions: Sequence[Question]) -> Iterator[tuple[int, int]]:
        """The same in steps: pictures given to the tower so far, and of how many."""
        return self.base.vision.filling(questions, self.image)

    def knows(self, questions: Sequence[Question]) -> bool:
        """Whether the pictures of these questions need not be given to the tower."""
        return self.base.vision.knows(questions, self.image)

    def text_lengths(self, questions: Sequence[Question]) -> list[int]:
        """Tokens of each suffix without its pictures, for sorting questions of like length together."""
        return self.base.text.lengths(self.prompt, questions)

    def _suffix(
        self, question: Question, order: Order, features: tuple[VisionFeatures, ...], answered: bool
    ) -> Suffix:
        ids = self.base.text.suffix(self.prompt, question, order, features, answered)
        choice = LETTERS.index(question.answer) if question.answer else -1
        return Suffix(ids, features, list(order).index(choice) if choice >= 0 else -1, len(order))
