"""Letter logits from transformers' own forward: the path of every model without arithmetic of our own.

Rows are padded on the right. No token looks at what comes after it, so no real token sees a pad, no mask is
needed for them, and the state of linear attention is right as well; of the hidden states only the answers'
rows go into the vocabulary.

The prefix's states are written once, then read by every suffix of a batch. transformers' caches are made for
generation: they grow in place, drop what slid out of a window, and copy the states of linear attention into
fixed memory, where no gradient can follow. The two layers of a cache here are either written, once, or read,
and reading changes nothing. So gradients reach the prefix, and a backward may compute a layer again at any
time.

Notation: P prefix tokens, B questions, S longest row, C hidden size, N places that are read, V vocabulary,
H_kv heads, D head dim.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from vqa.config.settings import PromptSettings
from vqa.machine.device import to_device
from vqa.model.decoder import Recompute
from vqa.model.families.structure import image_token
from vqa.model.generic_prompt import PromptWriter
from vqa.model.packing import Conversation, Suffix, features_of, is_short, pad
from vqa.model.prompt import Order, as_written
from vqa.model.vision.features import JoinedFeatures, VisionFeatures, join_features
from vqa.question import Question

TYPES = ("mm_token_type_ids", "token_type_ids")  # which tokens belong to a picture, by either name


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
        whole = F.pad(conv_states, (max(0, width - conv_states.shape[-1]), 0))
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
    """Whether every layer of a model keeps states of the kinds known here."""
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


@dataclass(frozen=True)
class PaddedBatch:
    """Questions as rows of one length.

    Args:
        ids: (B, S), without the prefix where that was computed before or is computed once for all.
        types: (B, P + S) 1 for a picture's tokens; what a model is told where it asks for it.
        positions: (3, B, S) of models with multimodal positions; None: they count on by one.
        features: What the vision tower made of the pictures, in the rows' order.
        listed: Whether the model takes features as a list, one tensor a picture, or as one tensor.
        rows: (N,) and `places` (N,): where in the rows a letter, or with a conversation a token, comes next.
        targets: (B,) index of each gold choice's letter, -1 when unknown.
        options: Number of options of each question.
        conversation: What every token teaches; None: only the answers are asked for.
        prefix: (P,) to compute once for this batch; None: it stands in every row, or was computed before.
    """

    ids: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor | None
    features: JoinedFeatures | None
    listed: bool
    rows: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    options: Sequence[int]
    conversation: Conversation | None
    prefix: torch.Tensor | None


class GenericText:
    """The language model of a vision-language model of transformers.

    Args:
        model: For image-text-to-text, with or without adapters in its layers.
        writer: Questions to token ids.
        shares_prefix: Whether its prefix may be computed once: that this is exact was tested for its kind.
        device: Where it computes.
    """

    def __init__(self, model: Any, writer: PromptWriter, shares_prefix: bool, device: torch.device) -> None:
        self.model, self.writer, self.device = model, writer, device
        self.shares_prefix = shares_prefix and can_share(model.config)
        self.image_token = image_token(model.config)
        accepted = inspect.signature(type(model).forward).parameters
        self.types = [name for name in TYPES if name in accepted]
        self.layers = list(model.get_decoder().layers)
        self.multimodal = getattr(model.model, "get_rope_index", None)

    @property
    def pad_token(self) -> int:
        """Id to fill up with: no real token sees one."""
        return int(self.writer.tokenizer.pad_token_id or 0)

    def prefix(self, prompt: PromptSettings, question: Question) -> torch.Tensor:
        """(P,) ids that every question's prompt begins with."""
        return self.writer.prefix(prompt)

    def suffix(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order,
        features: Sequence[VisionFeatures],
        answered: bool,
    ) -> torch.Tensor:
        """(S,) ids of the rest, the pictures in it."""
        token = self.writer.processor.image_token
        placeholders = [f.placeholder or token * len(f.pooled) for f in features]
        return self.writer.suffix(prompt, question, order, placeholders, answered)

    def lengths(self, prompt: PromptSettings, questions: Sequence[Question]) -> list[int]:
        """Tokens of each prompt without its pictures."""
        return [len(self.writer.ids(prompt, q, as_written(q), ())) for q in questions]

    def shares(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> bool:
        """Whether computing the prefix once is exact and costs less than repeating it."""
        return self.shares_prefix and not is_short(prefix, suffixes)

    def batch(
        self, prefix: torch.Tensor, suffixes: Sequence[Suffix], outside: bool, conversation: bool
    ) -> PaddedBatch:
        """Lay out a micro-batch.

        Args:
            prefix: (P,) ids that all questions share.
            suffixes: The questions.
            outside: The prefix was computed before.
            conversation: The suffixes end with answer and end of turn, and every token is taught.
        """
        if conversation and outside:
            raise ValueError("whole conversations need their prefix in the row, got outside=True")
        once = not outside and not conversation and self.shares(prefix, suffixes)
        P = len(prefix)
        whole = [torch.cat([prefix, s.ids]) for s in suffixes]
        start = P if outside or once else 0
        rows = [ids[start:] for ids in whole]
        types = pad_sequence([(ids == self.image_token).int() for ids in whole], batch_first=True)
        pictures = features_of(suffixes)
        places, taught = _ends(rows), None
        if conversation:
            places, taught = self._conversation(rows)
        on = partial(to_device, device=self.device)
        return PaddedBatch(
            ids=on(pad_sequence(rows, batch_first=True, padding_value=self.pad_token)),
            types=on(types),
            positions=self._positions(whole, suffixes, start),
            features=join_features(pictures, self.device),
            listed=all(f.listed for f in pictures),
            rows=on(places[0]),
            places=on(places[1]),
            targets=on(torch.tensor([s.target for s in suffixes])),
            options=[s.options for s in suffixes],
            conversation=taught,
            prefix=on(prefix) if once else None,
        )

    def orders_batch(
        self, prefix: torch.Tensor, asked: Sequence[Sequence[Suffix]], outside: bool
    ) -> PaddedBatch:
        """Questions that are each asked several times: a row for each time."""
        return self.batch(prefix, [s for suffixes in asked for s in suffixes], outside, False)

    def padded(self, prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> dict[str, Any]:
        """Plain left-padded rows for `generate`."""
        found = pad(prefix, suffixes, self.image_token, self.pad_token, self.device)
        types, grid = found.pop("mm_token_type_ids"), found.pop("image_grid_thw", None)
        found |= dict.fromkeys(self.types, types)
        if "mm_encoder_outputs" in found:
            pictures = features_of(suffixes)
            joined = join_features(pictures, self.device)
            listed = all(f.listed for f in pictures)
            found["mm_encoder_outputs"] = {"image": _encoder_output(joined, listed)} if joined else None
        return found | ({"image_grid_thw": grid} if self.multimodal and grid is not None else {})

    def tensors(self, known: PrefixStates) -> list[torch.Tensor]:
        """The tensors of the prefix's states."""
        return list(known.tensors)

    def with_tensors(self, known: PrefixStates, tensors: Sequence[torch.Tensor]) -> PrefixStates:
        """The same states with other tensors."""
        return replace(known, tensors=tensors)

    def logits(
        self, batch: PaddedBatch, known: PrefixStates | None = None, recompute: Recompute = "nothing"
    ) -> torch.Tensor:
        """(N, V) at the places that are read.

        Args:
            batch: A micro-batch.
            known: The prefix's states, when it was computed before.
            recompute: What the backward computes again instead of keeping it.
        """
        if known is None and batch.prefix is not None:
            known = self.prefix_states(batch.prefix, recompute)
        inputs: dict[str, Any] = dict.fromkeys(self.types, batch.types)
        if known is not None:
            inputs |= {"past_key_values": reading_cache(self.model.config, known, len(batch.ids))}
        if batch.positions is not None:
            inputs |= {"position_ids": batch.positions}
        if batch.features is not None:
            inputs |= {"mm_encoder_outputs": {"image": _encoder_output(batch.features, batch.listed)}}
        mask = torch.ones_like(batch.types)
        return self._run(batch.ids, mask, batch.rows, batch.places, recompute, inputs)

    def prefix_states(self, prefix: torch.Tensor, recompute: Recompute = "nothing") -> PrefixStates:
        """States of the prefix (P,) in every layer."""
        prefix = prefix.to(self.device)
        ids = prefix[None]
        cache = empty_cache(self.model.config)
        inputs: dict[str, Any] = {name: torch.zeros_like(ids) for name in self.types}
        inputs |= {"past_key_values": cache}
        if self.multimodal:
            inputs |= {"position_ids": torch.arange(len(prefix), device=prefix.device).expand(3, 1, -1)}
        first = torch.zeros(1, dtype=torch.long, device=prefix.device)
        self._run(ids, torch.ones_like(ids), first, first, recompute, inputs)
        return written_states(cache, len(prefix))

    def _run(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        rows: torch.Tensor,
        places: torch.Tensor,
        recompute: Recompute,
        inputs: dict[str, Any],
    ) -> torch.Tensor:
        head = self.model.get_output_embeddings()
        cached = "past_key_values" in inputs
        with _recomputing(self.layers, recompute), _reading(head, rows, places):
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=cached, **inputs)
        return output.logits[0]  # type: ignore[no-any-return]

    def _positions(
        self, whole: Sequence[torch.Tensor], suffixes: Sequence[Suffix], start: int
    ) -> torch.Tensor | None:
        """(3, B, S) as the model itself counts them, row by row: a call for each keeps no state."""
        if self.multimodal is None:
            return None
        found = []
        for ids, suffix in zip(whole, suffixes, strict=True):
            grids = torch.tensor([f.grid_thw for f in suffix.features]) if suffix.features else None
            types = (ids == self.image_token).int()[None]
            positions, _ = self.multimodal(
                input_ids=ids[None],
                mm_token_type_ids=types,
                image_grid_thw=grids,
                attention_mask=torch.ones_like(types),
            )
            found.append(positions[:, 0, start:].t())
        return to_device(pad_sequence(found, batch_first=True).permute(2, 0, 1).contiguous(), self.device)

    def _conversation(
        self, rows: Sequence[torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], Conversation]:
        """Where a token follows that is taught, and those tokens: all but pads and pictures."""
        lengths = torch.tensor([len(ids) - 1 for ids in rows])
        row = torch.arange(len(rows)).repeat_interleave(lengths)
        place = torch.cat([torch.arange(n) for n in lengths.tolist()])
        labels = torch.cat([ids[1:] for ids in rows])
        kept = labels != self.image_token
        weights = torch.ones(int(kept.sum()))
        taught = Conversation(
            to_device(labels[kept], self.device), to_device(weights, self.device), len(weights)
        )
        return (row[kept], place[kept]), taught


def _ends(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(len(rows)), torch.tensor([len(ids) - 1 for ids in rows])


def _encoder_output(features: JoinedFeatures, listed: bool) -> Any:
    """Features as the model's own `get_image_features` would give them; all pictures count as one."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    made: Any = BaseModelOutputWithDeepstackFeatures
    pooled = (features.pooled,) if listed else features.pooled[None]
    return made(pooler_output=pooled, deepstack_features=[(tap,) for tap in features.deepstack])


@contextmanager
def _reading(head: torch.nn.Module, rows: torch.Tensor, places: torch.Tensor) -> Iterator[None]:
    """Have only some hidden states go into the vocabulary: `logits_to_keep` knows no place per row."""

    def chosen(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][rows, places][None], *inputs[1:])

    handle = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _recomputing(layers: Sequence[Any], recompute: Recompute) -> Iterator[None]:
    """Have a backward compute layers, or their MLPs, again. It calls what they are without this.

    transformers' own gradient checkpointing takes the cache away, and the prefix with it.
    """
    wrapped = [layer if recompute == "layer" else getattr(layer, "mlp", layer) for layer in layers]
    if recompute == "nothing" or not torch.is_grad_enabled():
        wrapped = []
    before = [vars(module).get("forward") for module in wrapped]
    for module in wrapped:
        module.forward = partial(_checkpointed, module.forward, next(module.parameters()).device)
    try:
        yield
    finally:
        for module, own in zip(wrapped, before, strict=True):
            del module.forward
            if own is not None:  # put there by others, as accelerate does
                module.forward = own


def _checkpointed(forward: Callable[..., Any], card: torch.device, *args: Any, **kwargs: Any) -> Any:
    """Call the forward, and again in the backward.

    What comes from an earlier card is moved first: dropout is drawn again on the cards of the arguments.
    """
    moved = [x.to(card) if isinstance(x, torch.Tensor) else x for x in args]
    return checkpoint(forward, *moved, use_reentrant=False, **kwargs)
