"""The prefix's states for transformers' own layers: written once, then read by every suffix of a batch.

transformers' caches are made for generation: they grow in place, drop what slid out of a window, and copy the
states of linear attention into fixed memory, where no gradient can follow. The two layers here are either
written, once, or read, and reading changes nothing. So gradients reach the prefix, and a backward may compute
a layer again at any time.

Notation: P prefix tokens, S suffix tokens, B suffixes, H_kv heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)


@dataclass(frozen=True)
class PrefixStates:
    """What the prefix left in every layer.

    Args:
        length: P.
        tensors: Two a layer that has states: keys and values (1, H_kv, P, D), or the convolution's last
            inputs and the recurrent state of linear attention.
    """

    length: int
    tensors: Sequence[torch.Tensor]


class _KeyValueLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Full or sliding attention. A sliding layer keeps the whole prefix too: its mask hides what is far."""

    def __init__(
        self, is_sliding: bool, known: tuple[torch.Tensor, torch.Tensor] | None, length: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = is_sliding
        self.known, self.length = known, length
        self.written: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of prefix and suffix (B, H_kv, P + S, D)."""
        if self.known is None:
            self.written = key_states, value_states
            return self.written
        B = len(key_states)
        key, value = (x.expand(B, -1, -1, -1) for x in self.known)
        return torch.cat([key, key_states], dim=2), torch.cat([value, value_states], dim=2)

    def get_seq_length(self) -> int:
        """Tokens seen before."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask is for, and where they begin."""
        return self.length + query_length, 0


class _RecurrentLayer(LinearAttentionLayer):
    """Linear attention: a short convolution and a recurrent state."""

    def __init__(self, known: tuple[torch.Tensor, torch.Tensor] | None, rows: int) -> None:
        super().__init__()
        self.written: list[torch.Tensor | None] = [None, None]
        if known is not None:
            self.conv_states[0], self.recurrent_states[0] = (x.expand(rows, *x.shape[1:]) for x in known)
            self.has_previous_state[0] = True

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> torch.Tensor:
        """The convolution's inputs with those before them."""
        width = conv_kernel_size or conv_states.shape[-1]
        if self.has_previous_state[state_idx]:
            before: Any = self.conv_states[state_idx]
            return torch.cat([before, conv_states], dim=-1)
        whole = pad(conv_states, (max(0, width - conv_states.shape[-1]), 0))
        self.written[0] = whole[..., -width:]
        return whole

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """The state as it is: only the prefix's is written."""
        if not self.has_previous_state[state_idx]:
            self.written[1] = recurrent_states
        return recurrent_states


class _PrefixCache(Cache):
    """Layers as above, in the order of the model's."""


def can_share(config: Any) -> bool:
    """Whether every layer of a model keeps states of the kinds known here.

    Args:
        config: The model's configuration.
    """
    known = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, DummyLayer)
    return all(type(layer) in known for layer in DynamicCache(config=config).layers)


def empty_cache(config: Any) -> Cache:
    """To be given to a model with the prefix; `written_states` takes them out."""
    return _cache(config, None, 1)


def reading_cache(config: Any, states: PrefixStates, rows: int) -> Cache:
    """To be given to a model with B = `rows` suffixes."""
    return _cache(config, states, rows)


def written_states(cache: Any, length: int) -> PrefixStates:
    """What the prefix of that length wrote."""
    written = [tensor for layer in cache.layers for tensor in (getattr(layer, "written", None) or ())]
    return PrefixStates(length, written)


def _cache(config: Any, states: PrefixStates | None, rows: int) -> Cache:
    tensors = iter(states.tensors if states else ())
    length = states.length if states else 0
    layers: list[Any] = []
    kinds: list[Any] = DynamicCache(config=config).layers
    for layer in kinds:
        if isinstance(layer, DummyLayer):  # it reads an earlier layer's keys
            layers.append(layer)
            continue
        known = (next(tensors), next(tensors)) if states else None
        if isinstance(layer, LinearAttentionLayer):
            layers.append(_RecurrentLayer(known, rows))
        else:
            layers.append(_KeyValueLayer(layer.is_sliding, known, length))
    return _PrefixCache(layers=layers)
