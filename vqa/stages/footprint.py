"""How much GPU memory a training step takes, and the fastest way that fits on a card; no weight is loaded.

For Qwen-VL's decoder, whose kept tensors are known (`kernels/lora_linear.py`, `kernels/attention.py`); for
models on the generic path only weights and adapter are counted. tests/stages/test_footprint.py holds the
estimates to peaks that were measured on a GPU, within a tenth.

Notation: T tokens of a packed row, C hidden size, F width of the MLP, Q and K widths of all query and of all
key heads, r rank.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vqa.config.messages import message
from vqa.config.settings import BudgetSettings, Settings
from vqa.data.source import data_source
from vqa.errors import UserError
from vqa.model.adapter import TARGETS
from vqa.model.base import ASSET, model_source, read_model_config
from vqa.model.families.family import Family
from vqa.model.families.structure import (
    Structure,
    empty_model,
    lora_targets,
    stored_quantization,
    structure_of,
)
from vqa.model.families.table import family_of
from vqa.model.memory import Rung, rungs
from vqa.model.prompt import as_written, render
from vqa.question import Question
from vqa.report.doctor_facts import sizes

GIB = 2**30
HALF = 2  # bytes of a value in 16 bits
QUANTISED = {  # bytes of one weight: values, and the scales of their blocks
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int8": 1.0,
}
STATE_BYTES = {"AdamW": 8, "AdamW8bit": 2, "PagedAdamW8bit": 0, "PagedAdamW": 0}  # optimiser, a parameter
CONTEXT_GIB = 0.3  # buffers of kernels and pieces that the allocator cannot join
CARDS = (12, 16, 24, 40, 80)  # GB
USABLE = 0.95  # of a card: the driver and other programs hold the rest
SAMPLED = 64  # questions whose tokens are counted


@dataclass(frozen=True)
class Widths:
    """Sizes of a decoder.

    Args:
        C: Hidden size.
        F: Width of the MLP.
        Q: Width of all query heads.
        K: Width of all key heads.
        layers: Number of layers.
    """

    C: int
    F: int
    Q: int
    K: int
    layers: int

    @property
    def gated(self) -> int:
        """Weights of one layer's first two matrices of the MLP."""
        return 2 * self.C * self.F

    @property
    def linear(self) -> int:
        """Weights of one layer's linear layers."""
        return self.C * (2 * self.Q + 2 * self.K) + 3 * self.C * self.F


def widths_of(config: Any) -> Widths:
    """The sizes in a model's configuration."""
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Widths(
        C=text.hidden_size,
        F=text.intermediate_size,
        Q=text.num_attention_heads * width,
        K=text.num_key_value_heads * width,
        layers=text.num_hidden_layers,
    )


@dataclass(frozen=True)
class Footprint:
    """What stays in memory, and what every token adds.

    Args:
        weights: Bytes of the frozen model.
        tower: Those of them that wait in host memory once memory was short.
        adapter: Bytes of an adapter with gradients and optimiser.
        kept: Bytes that a token leaves in one layer when nothing is computed again.
        gated: Those of them that computing the MLP again saves.
        hidden: Bytes of a token's hidden state.
        widest: Bytes of a token in the widest temporary tensors of one layer's backward.
        copied: Bytes that a key leaves in one layer for each question that it is copied for; see `peak_gib`.
        copying: The same of temporary tensors.
        layers: Number of layers; 0: what tokens add is not known.
    """

    weights: float
    tower: float
    adapter: float
    kept: float
    gated: float
    hidden: float
    widest: float
    copied: float
    copying: float
    layers: int

    def peak_gib(self, tokens: int, recompute: str, parked: bool, copies: int = 0) -> float:
        """Largest memory of a training step, GiB.

        Args:
            tokens: T of a micro-batch.
            recompute: nothing, mlp or layer.
            parked: The vision tower waits in host memory.
            copies: Keys times questions that they are copied for, where there is no FlashAttention: each
                question of a micro-batch gets a copy of the prefix's keys, and each query head its own.
        """
        weights = self.weights - (self.tower if parked else 0)
        in_layer = self.kept - (self.gated if recompute == "mlp" else 0)
        layers = self.hidden * self.layers + self.kept if recompute == "layer" else in_layer * self.layers
        copied = self.copied * (1 if recompute == "layer" else self.layers) + self.copying
        steps = tokens * (layers + self.widest) + copies * copied
        return (weights + self.adapter + steps) / GIB + CONTEXT_GIB

    def fitting(
        self, gib: float, batch_size: int, prefix: int, suffix: int, flash: bool = True
    ) -> tuple[Rung, float] | None:
        """The fastest way to make a step within that memory, and its peak in GiB; None: it does not fit.

        Args:
            gib: Memory of the card, GiB.
            batch_size: Questions of an optimiser step.
            prefix: Tokens of the shared prefix.
            suffix: Tokens of a question with its picture.
            flash: Whether the card has FlashAttention.
        """
        for i, rung in enumerate(rungs(batch_size)):
            B = rung.micro_batch_size
            tokens, copies = prefix + B * suffix, 0 if flash else B * (prefix + suffix)
            peak = self.peak_gib(tokens, rung.recompute, False, copies)
            if peak > gib and i > 0:  # one step down, and the tower is parked where room is short
                peak = self.peak_gib(tokens, rung.recompute, True, copies)
            if peak <= gib:
                return rung, peak
        return None


def estimate(settings: Settings, config: Any, family: Family) -> Footprint:
    """The footprint of a run.

    Args:
        settings: The run: quantisation, LoRA, optimiser.
        config: The model's configuration.
        family: What is known of its kind.
    """
    model = empty_model(config)
    structure = structure_of(model)
    parameters = _adapter_parameters(model, settings, family, structure)
    optimizer = str(settings.optimizer["_target_"]).rpartition(".")[2]
    # float32 weights and gradients, the optimiser's state, the copy in 16 bits that a step multiplies with
    adapter = parameters * (4 + 4 + STATE_BYTES.get(optimizer, 8) + HALF)
    weights = _weight_bytes(model, config, settings, structure)
    tower = sum(p.numel() for n, p in model.named_parameters() if n.startswith(structure.pictures)) * HALF
    if not family.is_own(config):
        return Footprint(weights, tower, adapter, 0, 0, 0, 0, 0, 0, 0)
    widths = widths_of(config)
    Q, K, C, F, r = widths.Q, widths.K, widths.C, widths.F, settings.lora["r"]
    normed = Q + K if hasattr(model.model.language_model.layers[0].self_attn, "q_norm") else 0
    # two residual streams; queries, keys, values after rotary embedding; the attention's result; gate and up
    values, gated = 2 * C + normed + Q + 2 * K + Q + 2 * F + 7 * r, 2 * F
    if settings.lora.get("use_dora") and settings.lora.get("lora_dropout"):  # every projection's scaled part
        values, gated = values + 2 * C + Q + 2 * K + 2 * F, 4 * F
    elif settings.lora.get("use_dora"):  # its own results too, where something else of them is kept
        values += 2 * C + (0 if normed else Q + K)
    return Footprint(
        weights=weights,
        tower=tower,
        adapter=adapter,
        kept=values * HALF,
        gated=gated * HALF,
        hidden=C * HALF,
        widest=4 * F * HALF,
        copied=2 * Q * HALF,
        copying=(2 * Q + 4 * K) * HALF,  # their gradients, and the copies before they are one a query head
        layers=widths.layers,
    )


def _weight_bytes(model: Any, config: Any, settings: Settings, structure: Structure) -> float:
    kind = stored_quantization(config) or settings.quantization.name
    total = sum(p.numel() for p in model.parameters()) * HALF
    if kind not in QUANTISED:
        return float(total)
    packed = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(structure.unquantised)
    )
    return float(total - packed * (HALF - QUANTISED[kind]))


def _adapter_parameters(model: Any, settings: Settings, family: Family, structure: Structure) -> int:
    targets = settings.lora["target_modules"]
    if targets in TARGETS:
        targets = lora_targets(family, structure, targets)
    pattern = targets if isinstance(targets, str) else rf".*\.({'|'.join(map(re.escape, targets))})"
    return sum(
        settings.lora["r"] * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(pattern, name)
    )


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prefix, of a question with its pictures, and of one picture.

    Of the latter two the median, and what 95 % of the questions do not exceed; all 0 where nobody counted.
    """

    prefix: int = 0
    suffix_median: int = 0
    suffix: int = 0
    visual_median: int = 0
    visual: int = 0


@dataclass(frozen=True)
class Foreseen:
    """What is known of a run before anything is loaded.

    Args:
        config: The model's configuration.
        footprint: Of its training.
        lengths: Of its questions.
        train: All labelled questions.
        test: Those to answer.
        pictures: Pictures of both.
    """

    config: Any
    footprint: Footprint
    lengths: Lengths
    train: Sequence[Question]
    test: Sequence[Question]
    pictures: int


def foreseen(settings: Settings) -> Foreseen | None:
    """Model and data of a run; None for the embedded model, which fits anywhere and is quick, and without
    questions or a tokenizer.

    Raises:
        UserError: The model's configuration or the data cannot be read.
    """
    if settings.model.path.startswith(ASSET):
        return None
    config = read_model_config(settings)
    family = family_of(config, settings.env.device_map)
    source = data_source(settings)
    train, test = source.train(), source.test() or []
    if not train:
        return None
    try:
        lengths = _lengths(settings, config, train[:SAMPLED]) if family.is_own(config) else Lengths()
    except (OSError, ValueError, UserError):  # no tokenizer or no template there; loading the model says it
        return None
    pictures = len({picture.sha256 for q in [*train, *test] for picture in q.pictures})
    return Foreseen(config, estimate(settings, config, family), lengths, train, test, pictures)


def memory_lines(settings: Settings, known: Foreseen) -> list[str]:
    """One line a card, and one on the features of pictures in the host's memory."""
    lines = []
    for card in CARDS:
        way = way_on(settings, known, card * 1e9 / GIB * USABLE)
        lines.append(message(settings.lang, "memory", card=card, way=way))
    if visual := known.lengths.visual:
        taps = len(getattr(known.config.vision_config, "deepstack_visual_indexes", None) or [])
        gib = known.pictures * visual * known.config.get_text_config().hidden_size * HALF * (1 + taps) / GIB
        lines.append(message(settings.lang, "features", pictures=known.pictures, gib=gib))
    return lines


def way_on(settings: Settings, known: Foreseen, gib: float, flash: bool = True) -> str:
    """The fastest way to make a step on a card, in words.

    Args:
        settings: The run.
        known: Its model and data.
        gib: Memory of the card, GiB.
        flash: Whether it has FlashAttention.
    """
    lang, b, footprint = settings.lang, settings.budget, known.footprint
    if not footprint.layers:
        peak = (footprint.weights + footprint.adapter) / GIB
        return message(lang, "weights only", peak=peak) if peak <= gib else message(lang, "too large")
    fitting = fitting_step(b, known, gib, flash)
    if fitting is None:
        return message(lang, "too large")
    rung, peak = fitting
    return message(
        lang,
        "fits",
        batch=b.batch_size,
        micro=rung.micro_batch_size,
        recompute=message(lang, f"recompute-{rung.recompute}"),
        peak=peak,
    )


def fitting_step(
    budget: BudgetSettings, known: Foreseen, gib: float, flash: bool
) -> tuple[Rung, float] | None:
    """As `Footprint.fitting`, for the batches of a budget."""
    most = min(budget.micro_batch_size or budget.batch_size, budget.batch_size)
    return known.footprint.fitting(gib, most, known.lengths.prefix, known.lengths.suffix, flash)


def _lengths(settings: Settings, config: Any, questions: Sequence[Question]) -> Lengths:
    from transformers import AutoTokenizer

    folder, where = model_source(settings)
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    prefix = render(tokenizer, settings.prompt, questions[0], as_written(questions[0])).prefix
    before = len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    found = sizes(settings, questions, config, tokenizer)
    none = [0] * 4
    text, visual = (found.get(name, none) for name in ("text tokens", "visual tokens"))
    of_all = found.get("all visual tokens", visual)
    median, most = (int(text[place]) - before + int(of_all[place]) for place in (1, 2))
    return Lengths(before, median, most, int(visual[1]), int(visual[2]))
