"""The one way a packed batch goes through the model, for training and scoring alike."""

from typing import Any

import torch
import torch.nn.functional as F

from vqa.attention import tree_attention_on
from vqa.letters import LetterTokens
from vqa.model import Base
from vqa.packing import PackedBatch


def letter_logits(base: Base, model: Any, batch: PackedBatch) -> torch.Tensor:
    """Logits at the answer position of every question, and nowhere else.

    Args:
        base: The resident model.
        model: The base's model itself, or the PEFT model around it.
        batch: A packed micro-batch.

    Returns:
        (B, V).
    """
    # any 4D mask keeps transformers from building a causal one; tree attention ignores it
    unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=base.device)
    with tree_attention_on(base.model):
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=unused_mask,
            mm_encoder_outputs=batch.encoded,
            logits_to_keep=batch.answers,
            use_cache=False,
            tree=batch.tree,
        )
    return output.logits[0]  # type: ignore[no-any-return]


def answer_loss(logits: torch.Tensor, targets: torch.Tensor, letters: LetterTokens) -> torch.Tensor:
    """Cross-entropy over the vocabulary at the answer letter, summed over questions.

    Args:
        logits: (B, V).
        targets: (B,) index of the gold letter, 0..3.
        letters: Which token each letter is.
    """
    ids = torch.tensor(letters.answer, device=logits.device)
    return F.cross_entropy(logits.float(), ids[targets], reduction="sum")
