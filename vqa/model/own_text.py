"""Letter logits by our own decoder: one packed row, the prefix once (`packing.py`, `decoder.py`)."""

from collections.abc import Sequence
from typing import Any

import torch

from vqa.config.settings import PromptSettings
from vqa.errors import UserError
from vqa.model.decoder import Recompute, answer_logits, prefix_key_values
from vqa.model.kernels.tree import KeyValue
from vqa.model.packing import PackedBatch, Suffix, is_short, pack, pack_orders, pack_prefix, pad
from vqa.model.plugs import Prompts
from vqa.model.prompt import CUT, Order, as_written, render, token_ids
from vqa.model.vision.features import VisionFeatures
from vqa.question import Question


class QwenPrompts:
    """Prompts of Qwen2.5-VL and Qwen3-VL, cut at the picture's start mark."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device

    @property
    def image_token(self) -> int:
        """Id of the placeholder for one visual token."""
        return int(self.model.config.image_token_id)

    @property
    def pad_token(self) -> int:
        """Id to fill up with."""
        return int(self.tokenizer.pad_token_id)

    def prefix(self, prompt: PromptSettings, question: Question) -> torch.Tensor:
        """(P,) ids of what stands before the picture."""
        return self._ids(render(self.tokenizer, prompt, question, as_written(question)).prefix)

    def suffix(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order,
        features: Sequence[VisionFeatures],
        answered: bool,
    ) -> torch.Tensor:
        """(S,) ids from the first picture on; without features the picture's marks go too."""
        ids = self._ids(render(self.tokenizer, prompt, question, order, answered).suffix)
        placeholder = ids == self.image_token
        if not features:
            config = self.model.config
            marks = placeholder | (ids == config.vision_start_token_id) | (ids == config.vision_end_token_id)
            return ids[~marks]
        if (written := int(placeholder.sum())) != len(features):
            raise UserError(
                f"model: its chat template writes {written} of the {len(features)} pictures of question "
                f"{question.id}; only Qwen-VL models are supported"
            )
        repeats = torch.ones_like(ids)
        repeats[placeholder] = torch.tensor([len(f.pooled) for f in features])
        return ids.repeat_interleave(repeats)

    def lengths(self, prompt: PromptSettings, questions: Sequence[Question]) -> list[int]:
        """Tokens of each suffix without its pictures."""
        texts = [render(self.tokenizer, prompt, q, as_written(q)).suffix for q in questions]
        if not any(CUT in text for text in texts):  # all at once is faster
            return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return [len(token_ids(self.tokenizer, text)) for text in texts]

    def padded(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> dict[str, Any]:
        """The same questions as plain left-padded rows, the model's ordinary inputs."""
        return pad(prefix, suffixes, self.image_token, self.pad_token, self.device)

    def _ids(self, text: str) -> torch.Tensor:
        return torch.tensor(token_ids(self.tokenizer, text))


class OwnText:
    """A language model that our own decoder computes; a `vqa.model.plugs.Text`.

    Args:
        model: The whole model, with or without adapters in its layers.
        tokenizer: Its tokenizer.
        device: Where it computes.
        prompts: Writes its prompts; None: Qwen-VL's.
    """

    def __init__(
        self, model: Any, tokenizer: Any, device: torch.device, prompts: Prompts | None = None
    ) -> None:
        self.model, self.device = model, device
        self.prompts = prompts or QwenPrompts(model, tokenizer, device)
        self.flat = not hasattr(model.model, "get_rope_index")  # positions only count on

    @property
    def image_token(self) -> int:
        """Id of the placeholder for one visual token."""
        return self.prompts.image_token

    @property
    def pad_token(self) -> int:
        """Id to fill up with."""
        return self.prompts.pad_token

    def prefix(self, prompt: PromptSettings, question: Question) -> torch.Tensor:
        """(P,) ids of what stands before the picture."""
        return self.prompts.prefix(prompt, question)

    def suffix(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order,
        features: Sequence[VisionFeatures],
        answered: bool,
    ) -> torch.Tensor:
        """(S,) ids of the rest."""
        return self.prompts.suffix(prompt, question, order, features, answered)

    def lengths(self, prompt: PromptSettings, questions: Sequence[Question]) -> list[int]:
        """Tokens of each suffix without its pictures."""
        return self.prompts.lengths(prompt, questions)

    def shares(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> bool:
        """Whether computing the prefix once costs less than repeating it."""
        return not is_short(prefix, suffixes)

    def batch(
        self, prefix: torch.Tensor, suffixes: Sequence[Suffix], outside: bool, conversation: bool
    ) -> PackedBatch:
        """Lay out a micro-batch as one row."""
        ids = self.image_token, self.pad_token
        return pack(prefix, suffixes, *ids, self.device, outside, conversation, self.flat)

    def orders_batch(
        self, prefix: torch.Tensor, asked: Sequence[Sequence[Suffix]], outside: bool
    ) -> PackedBatch:
        """Questions that are each asked several times: what a question's suffixes begin with stands once."""
        return pack_orders(prefix, asked, self.image_token, self.device, outside, self.flat)

    def padded(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> dict[str, Any]:
        """The same questions as plain left-padded rows, the model's ordinary inputs."""
        return self.prompts.padded(prefix, suffixes)

    def logits(self, batch: PackedBatch, known: list[KeyValue] | None, recompute: Recompute) -> torch.Tensor:
        """(N, V) at the places that are read."""
        return answer_logits(self.model, batch.row, known, recompute)

    def prefix_states(self, prefix: torch.Tensor, recompute: Recompute = "nothing") -> list[KeyValue]:
        """What the prefix (P,) leaves in every layer."""
        return prefix_key_values(self.model, pack_prefix(prefix, self.device, self.flat), recompute)

    def tensors(self, known: list[KeyValue]) -> list[torch.Tensor]:
        """What `prefix_states` gave, one after the other."""
        return [tensor for pair in known for tensor in pair]

    def with_tensors(self, _: list[KeyValue], tensors: Sequence[torch.Tensor]) -> list[KeyValue]:
        """The same states with other tensors."""
        return list(zip(tensors[::2], tensors[1::2], strict=True))
