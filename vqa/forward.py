"""The one way questions go through the model, for training and scoring alike."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vqa.decoder import Recompute, answer_logits, prefix_key_values
from vqa.model import Base
from vqa.packing import PackedBatch, pack_prefix
from vqa.tree import KeyValue


def letter_logits(
    base: Base,
    batch: PackedBatch,
    prefix: list[KeyValue] | None = None,
    recompute: Recompute = "nothing",
) -> torch.Tensor:
    """Logits at the answer position of every question, and nowhere else (loss=full: at every text token).

    Args:
        base: The resident model, with or without an adapter on it.
        batch: A packed micro-batch.
        prefix: The prefix's keys and values, when it is not in the batch's row.
        recompute: What the backward computes again instead of keeping it.

    Returns:
        (B, V), or (N, V) for a batch of whole conversations.
    """
    return answer_logits(base.model, batch.row, prefix, recompute)


def known_prefix(base: Base, prefix: torch.Tensor) -> list[KeyValue]:
    """Keys and values of the prefix, for scoring many batches with the same weights.

    Args:
        base: The resident model.
        prefix: (P,) token ids.
    """
    with torch.no_grad():
        return prefix_key_values(base.model, pack_prefix(prefix, base.device))


@contextmanager
def shared_prefix(base: Base, prefix: torch.Tensor) -> Iterator[list[KeyValue]]:
    """Keys and values of the prefix for the micro-batches of one optimiser step, computed once.

    The micro-batches' gradients by these keys and values add up, in float32 at least; when the block ends
    they go through the prefix in one backward. That is exact: the sum moves inside a linear map.

    Args:
        base: The resident model.
        prefix: (P,) token ids.
    """
    # computed again at the end, layer by layer: the micro-batches need the memory until then
    pairs = prefix_key_values(base.model, pack_prefix(prefix, base.device), "layer")
    outputs = [x for pair in pairs for x in pair]
    leaves = [x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_() for x in outputs]
    used = [leaf.to(x.dtype) for leaf, x in zip(leaves, outputs, strict=True)]
    yield list(zip(used[::2], used[1::2], strict=True))
    grads = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    torch.autograd.backward(outputs, [g.to(x.dtype) for g, x in zip(grads, outputs, strict=True)])
