"""The language model over a packed row: its own layers, run so that nothing is computed in vain.

transformers' modules own the weights; the loop over them is here because a packed row differs in three ways:
only the answers' rows go through the last MLP, the final norm and the vocabulary; the prefix may have been
computed before and come in as keys and values; layers can be computed again in the backward to save memory.

Notation: T tokens of the row, P prefix tokens, B questions, C hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from vqa.model.kernels.attention import LayerTree, attend
from vqa.model.kernels.delta_net import gate_attention, mix_by_delta_rule
from vqa.model.kernels.lora_linear import gated_mlp, norm_project, project_onto, read_projection, rotary
from vqa.model.kernels.short_conv import Level, row_levels
from vqa.model.kernels.tree import KeyValue, TreeLayout
from vqa.model.vision.features import JoinedFeatures

Recompute = Literal["nothing", "mlp", "layer"]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DELTA_NET = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
GATED = ("qwen3_5_text",)  # text types whose q_proj makes a gate beside each query


@dataclass(frozen=True)
class SoftTokens:
    """What is added to the embeddings of some tokens; gradients flow to it.

    Args:
        places: (K,) where in the row, each place once.
        shift: (K, C).
    """

    places: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Row:
    """What goes into the language model.

    Args:
        ids: (T,).
        positions: (3, T), temporal, height, width; (1, T) for models that only count on.
        layout: Where prefix and suffixes lie.
        visual: (N,) places of the visual tokens.
        features: What the vision tower made of the pictures, in their order; None without any.
        answers: (B,) place of each suffix's last token; None: only keys and values are wanted.
        soft: A soft prompt on some of the tokens; None: every token is its own embedding.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    layout: TreeLayout
    visual: torch.Tensor
    features: JoinedFeatures | None
    answers: torch.Tensor | None
    soft: SoftTokens | None = None


def answer_logits(
    model: Any, row: Row, prefix: list[KeyValue] | None = None, recompute: Recompute = "nothing"
) -> torch.Tensor:
    """Logits (B, V) at the answers of a row.

    Args:
        model: One whose text type is allowed in vqa/model/families, with or without adapters in its layers.
        row: What is asked.
        prefix: What the prefix left, one pair a layer, when it is not in the row.
        recompute: What the backward computes again instead of keeping it.
    """
    hidden, _ = _run(model, row, prefix, recompute)
    return model.lm_head(model.model.language_model.norm(hidden))  # type: ignore[no-any-return]


def answer_states(
    model: Any, row: Row, recompute: Recompute = "nothing"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, V) at the answers, and the hidden states (T, C) of all tokens that enter the last layer."""
    entering: list[torch.Tensor] = []
    hidden, _ = _run(model, row, None, recompute, entering)
    return model.lm_head(model.model.language_model.norm(hidden)), entering[0]


def prefix_key_values(model: Any, row: Row, recompute: Recompute = "nothing") -> list[KeyValue]:
    """What a row that is only the prefix leaves in every layer.

    Keys and values (P, H_kv, D); of Gated DeltaNet the convolution's last inputs (W - 1, features) and the
    recurrent state (value heads, key width, value width).
    """
    return _run(model, row, None, recompute)[1]


def early_states(
    model: Any, row: Row, layers: int, prefix: list[KeyValue] | None = None
) -> list[torch.Tensor]:
    """Hidden states (N, C) of the visual tokens after each of the first layers; no further layer is run."""
    hidden, taps, common = _embed(model.model.language_model, row, "nothing")
    states = []
    for i, module in enumerate(model.model.language_model.layers[:layers]):
        tree = LayerTree(row.layout, prefix[i] if prefix else None)
        hidden, _ = _layer(module, common, tree, None)(hidden)
        if i < len(taps):
            hidden = hidden.index_add(0, row.visual, taps[i].to(hidden.dtype))
        states.append(hidden[row.visual])
    return states


@dataclass(frozen=True)
class _Common:
    """What all layers of a row share.

    Args:
        cos: (T, D) of the rotary angles; sin alike.
        sin: (T, D).
        levels: The row's sequences, where a layer goes through them one token after the other; else [].
        recompute: What the backward computes again.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    levels: list[Level]
    recompute: Recompute


def _embed(
    text: Any, row: Row, recompute: Recompute
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], _Common]:
    """What enters the first layer (T, C), what DeepStack adds after the first ones, and what layers share."""
    with torch.no_grad():
        hidden = text.embed_tokens(row.ids)
        taps: tuple[torch.Tensor, ...] = ()
        if row.features is not None:
            hidden = hidden.index_copy(0, row.visual, row.features.pooled.to(hidden.dtype))
            taps = row.features.deepstack
        positions = row.positions[:, None] if len(row.positions) > 1 else row.positions
        cos, sin = (x[0] for x in text.rotary_emb(hidden[None], positions))
    if row.soft is not None:
        hidden = hidden.index_add(0, row.soft.places, row.soft.shift.to(hidden.dtype))
    recurrent = not all(hasattr(module, "self_attn") for module in text.layers)
    levels = row_levels(row.layout, row.ids.device) if recurrent else []
    return hidden, taps, _Common(cos, sin, levels, recompute)


def _run(
    model: Any,
    row: Row,
    prefix: list[KeyValue] | None,
    recompute: Recompute,
    entering: list[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, list[KeyValue]]:
    text = model.model.language_model
    hidden, taps, common = _embed(text, row, recompute)
    seen: list[KeyValue] | None = [] if row.answers is None else None
    last = len(text.layers) - 1
    for i, module in enumerate(text.layers):
        tree = LayerTree(row.layout, prefix[i] if prefix else None)
        answers = row.answers if i == last and i >= len(taps) else None
        layer = _layer(module, common, tree, answers, seen is not None)
        if i == last and entering is not None:
            entering.append(hidden)
        if i == last and seen is not None:
            seen.append(layer.states(hidden))
            break
        if recompute == "layer" and torch.is_grad_enabled():
            hidden, states = checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=layer.draws)
        else:
            hidden, states = layer(hidden)
        if seen is not None and states is not None:
            seen.append(states)
        if i < len(taps):
            hidden = hidden.index_add(0, row.visual, taps[i].to(hidden.dtype))
    if row.answers is not None and last < len(taps):
        hidden = hidden[row.answers]
    return hidden, seen or []


def _layer(
    module: Any, common: _Common, tree: LayerTree, answers: torch.Tensor | None, kept: bool = False
) -> "_Layer | _DeltaLayer":
    if hasattr(module, "self_attn"):
        return _Layer(module, common.cos, common.sin, tree, answers, common.recompute)
    return _DeltaLayer(module, tree.outside, common.levels, answers, common.recompute, kept)


@dataclass
class _Layer:
    """One decoder layer of the Qwen2 and Qwen3 kind, by our own arithmetic; whose weights are transformers'.

    Its attention is an argument, not a switch on the model: a backward may compute the layer again.
    """

    module: Any
    cos: torch.Tensor
    sin: torch.Tensor
    tree: LayerTree
    answers: torch.Tensor | None
    recompute: Recompute

    def __post_init__(self) -> None:
        attention, mlp = self.module.self_attn, self.module.mlp
        self.attention = [read_projection(getattr(attention, name)) for name in ATTENTION]
        self.mlp = [read_projection(getattr(mlp, name)) for name in MLP]
        self.gated = attention.config.model_type in GATED

    @property
    def draws(self) -> bool:
        """Whether computing it again needs the random numbers of the first time."""
        return any(p.draws for p in self.attention + self.mlp)

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, KeyValue | None]:
        """The layer's output (T, C), or only the answers' rows of it, and its keys and values."""
        query, key, value, gate = self.project(hidden)
        mixed = attend(query, key, value, self.module.self_attn.scaling, self.tree)
        if gate is not None:
            mixed = gate_attention(mixed, gate)
        hidden = project_onto(hidden, mixed.flatten(1), self.attention[3])
        if self.answers is not None:
            hidden = hidden[self.answers]
        norm = self.module.post_attention_layernorm
        return gated_mlp(hidden, norm, self.mlp, self.recompute == "mlp"), (key, value)

    def states(self, hidden: torch.Tensor) -> KeyValue:
        """Its keys and values alone."""
        return self.project(hidden)[1:3]

    def project(
        self, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Queries (T, H, D), keys and values (T, H_kv, D), and what gates the queries' result."""
        attention = self.module.self_attn
        query, key, value = (
            x.view(len(x), -1, attention.head_dim)
            for x in norm_project(hidden, self.module.input_layernorm, self.attention[:3])
        )
        gate = None
        if self.gated:
            query, gate = query.view(len(query), -1, 2, attention.head_dim).unbind(2)
        query = rotary(query, self.cos, self.sin, getattr(attention, "q_norm", None))
        key = rotary(key, self.cos, self.sin, getattr(attention, "k_norm", None))
        return query, key, value, gate


@dataclass
class _DeltaLayer:
    """One decoder layer with Gated DeltaNet (Qwen3.5), by our own arithmetic.

    Args:
        module: transformers' layer.
        before: What the prefix outside the row left: last inputs of the convolution, recurrent state.
        levels: The row's sequences.
        answers: Rows that go through the MLP; None: all.
        recompute: What the backward computes again.
        kept: Whether the states at the row's end are wanted.
    """

    module: Any
    before: KeyValue | None
    levels: list[Level]
    answers: torch.Tensor | None
    recompute: Recompute
    kept: bool

    def __post_init__(self) -> None:
        mixer, mlp = self.module.linear_attn, self.module.mlp
        self.mixer = [read_projection(getattr(mixer, name)) for name in DELTA_NET]
        self.mlp = [read_projection(getattr(mlp, name)) for name in MLP]

    @property
    def draws(self) -> bool:
        """Whether computing it again needs the random numbers of the first time."""
        return any(p.draws for p in self.mixer + self.mlp)

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, KeyValue | None]:
        """The layer's output (T, C), or only the answers' rows of it, and the states at the row's end."""
        mixed, states = self.mix(hidden)
        hidden = project_onto(hidden, mixed, self.mixer[4])
        if self.answers is not None:
            hidden = hidden[self.answers]
        norm = self.module.post_attention_layernorm
        return gated_mlp(hidden, norm, self.mlp, self.recompute == "mlp"), states

    def states(self, hidden: torch.Tensor) -> KeyValue:
        """The states at the row's end alone."""
        states = self.mix(hidden)[1]
        if states is None:
            raise ValueError("a layer whose states are wanted must be told so")
        return states

    def mix(self, hidden: torch.Tensor) -> tuple[torch.Tensor, KeyValue | None]:
        """What goes into out_proj (T, value heads x width)."""
        projected = norm_project(hidden, self.module.input_layernorm, self.mixer[:4])
        return mix_by_delta_rule(self.module.linear_attn, projected, self.levels, self.before, self.kept)
