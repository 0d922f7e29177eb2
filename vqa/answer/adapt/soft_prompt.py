"""A soft prompt: the last tokens before the picture, with a learnt shift added to their embeddings.

Test-time prompt tuning learns the embeddings of a context that starts as "a photo of a" (Shu et al. 2022).
Here the context is the end of the prompt that is there anyway. The shift starts at zero: before the first
step the model is exactly the frozen one, and no token changes its place. The context stands before the
picture, because in a decoder visual tokens see only what comes before them.

Notation: P prefix tokens, K of them soft, B suffixes, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from vqa.answer.adapt.method import Scores, joined
from vqa.machine.device import release_memory
from vqa.model.decoder import Recompute, Row, SoftTokens, answer_logits
from vqa.model.encode import Encoder
from vqa.model.forward import known_prefix
from vqa.model.letters import option_log_probabilities
from vqa.model.memory import does_not_fit
from vqa.model.packing import Suffix, pack
from vqa.question import Question

TOKENS = 4  # K, as many as in "a photo of a"; fewer where the prefix is shorter


class SoftPrompt:
    """Asks questions with shifted embeddings; the states of the prefix before them are computed once.

    Args:
        encoder: Makes suffixes; the weights of its base must not change meanwhile.
        question: Any one: the prefix is the same for all, and all have as many options.
    """

    def __init__(self, encoder: Encoder, question: Question) -> None:
        self.base = encoder.base
        self.letters = self.base.letters[len(question.choices)]
        prefix = encoder.prefix(question)
        self.fixed, self.soft = prefix[:-TOKENS], prefix[-TOKENS:]
        shared = len(self.fixed) > 0 and encoder.shares_prefix(question)
        self.known = known_prefix(self.base, self.fixed) if shared else None

    def untouched(self) -> torch.Tensor:
        """(K, H) zero shift, to be learnt; float32 whatever the base computes in."""
        width = self.base.model.model.language_model.embed_tokens.weight.shape[1]
        return torch.zeros(len(self.soft), width, device=self.base.device, requires_grad=True)

    def row(self, suffixes: Sequence[Suffix], shift: torch.Tensor) -> Row:
        """Pack questions into one row.

        Args:
            suffixes: B of them.
            shift: (K, H) for all of them, or (B, K, H).
        """
        device, pad_token = self.base.device, self.base.tokenizer.pad_token_id
        # soft tokens belong to the suffix, so that the prefix stays shared where each question has its shift
        asked = [replace(suffix, ids=torch.cat([self.soft, suffix.ids])) for suffix in suffixes]
        outside = self.known is not None
        row = pack(self.fixed, asked, self.base.image_token, pad_token, device, outside).row
        if row.answers is None:
            raise ValueError("a packed batch of questions must have answers")
        lengths = torch.tensor([len(suffix.ids) for suffix in asked], device=device)
        begin = row.answers - lengths + 1
        places = begin[:, None] + torch.arange(len(self.soft), device=device)
        each = shift.expand(len(asked), *shift.shape[-2:]).flatten(0, 1)
        return replace(row, soft=SoftTokens(places.flatten(), each))

    def read(self, row: Row, recompute: Recompute = "nothing") -> Scores:
        """(B, C) log probabilities of the letters, (B,) log of their mass; with gradient to the shift."""
        logits = answer_logits(self.base.model, row, self.known, recompute)
        return option_log_probabilities(logits, self.letters)

    def ask(self, suffixes: Sequence[Suffix], shift: torch.Tensor, batch_size: int) -> Scores:
        """As `read`, without gradient.

        Args:
            suffixes: B of them.
            shift: (K, H), or (B, K, H).
            batch_size: Suffixes on the device at once; fewer where memory does not suffice.
        """
        own = shift.expand(len(suffixes), *shift.shape[-2:])
        chunks = range(0, len(suffixes), batch_size)
        return joined([self._halved(suffixes[i : i + batch_size], own[i : i + batch_size]) for i in chunks])

    def _halved(self, suffixes: Sequence[Suffix], shift: torch.Tensor) -> Scores:
        try:
            with torch.no_grad():
                return self.read(self.row(suffixes, shift))
        except torch.OutOfMemoryError as error:
            if len(suffixes) == 1:
                doing = "answering one view of a question at a time"
                raise does_not_fit(doing, self.base.device, error) from error
        release_memory()
        return self.ask(suffixes, shift, (len(suffixes) + 1) // 2)
