"""What `stage=doctor` says of memory before anything is loaded: the fastest way that fits on a card."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqa.config.messages import message
from vqa.config.settings import BudgetSettings, Settings
from vqa.data.source import data_source
from vqa.errors import UserError
from vqa.model.base import ASSET, model_source, read_model_config
from vqa.model.families.table import family_of
from vqa.model.memory import Rung
from vqa.model.prompt import as_written, render
from vqa.question import Question
from vqa.report.doctor_facts import sizes
from vqa.stages.footprint import GIB, HALF, Footprint, estimate

CARDS = (12, 16, 24, 40, 80)  # GB
USABLE = 0.95  # of a card: the driver and other programs hold the rest
SAMPLED = 64  # questions whose tokens are counted


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
