"""The one way questions go through the model, for training and scoring alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vqa.model.base import Base
from vqa.model.decoder import Recompute
from vqa.model.plugs import Batch


def letter_logits(
    base: Base,
    batch: Batch,
    prefix: Any = None,
    recompute: Recompute = "nothing",
) -> torch.Tensor:
    """Logits at the answer position of every question, and nowhere else (loss=full: at every text token).

    Args:
        base: The resident model, with or without an adapter on it.
        batch: A micro-batch of this base.
        prefix: The prefix's states, when it is not in the batch.
        recompute: What the backward computes again instead of keeping it.

    Returns:
        (B, V), or (N, V) for a batch of whole conversations.
    """
    return base.text.logits(batch, prefix, recompute)


def known_prefix(base: Base, prefix: torch.Tensor) -> Any:
    """States of the prefix (keys and values), for scoring many batches with the same weights.

    Args:
        base: The resident model.
        prefix: (P,) token ids.
    """
    with torch.no_grad():
        return base.text.prefix_states(prefix)


@contextmanager
def shared_prefix(base: Base, prefix: torch.Tensor) -> Iterator[Any]:
    """States of the prefix (keys and values) for the micro-batches of one optimiser step, computed once.

    The micro-batches' gradients by these states add up, in float32 at least; when the block ends
    they go through the prefix in one backward. That is exact: the sum moves inside a linear map.

    Args:
        base: The resident model.
        prefix: (P,) token ids.
    """
    # computed again at the end, layer by layer: the micro-batches need the memory until then
    made = base.text.prefix_states(prefix, "layer")
    outputs = base.text.tensors(made)
    leaves = [x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_() for x in outputs]
    used = [leaf.to(x.dtype) for leaf, x in zip(leaves, outputs, strict=True)]
    yield base.text.with_tensors(made, used)
    grads = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    torch.autograd.backward(outputs, [g.to(x.dtype) for g, x in zip(grads, outputs, strict=True)])
