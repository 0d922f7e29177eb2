"""What `stage=doctor` says of memory before anything is loaded: the fastest way that fits on a card."""

from typing import Any

import numpy as np

from vqa.config.messages import message
from vqa.config.settings import Settings
from vqa.data.source import data_source
from vqa.model.base import ASSET, model_source, read_model_config
from vqa.model.families.table import family_of
from vqa.model.footprint import GIB, HALF, Footprint, estimate
from vqa.model.prompt import as_written, render
from vqa.question import Question
from vqa.report.doctor_facts import sizes

CARDS = (12, 16, 24, 40, 80)  # GB
USABLE = 0.95  # of a card: the driver and other programs hold the rest
SAMPLED = 64  # questions whose tokens are counted


def memory_lines(settings: Settings) -> list[str]:
    """One line a card, and one on the features of pictures in the host's memory.

    Nothing is said of the embedded model, which fits anywhere, and nothing without questions or a tokenizer.

    Raises:
        UserError: The model's configuration or the data cannot be read.
    """
    if settings.model.path.startswith(ASSET):
        return []
    config = read_model_config(settings)
    family = family_of(config)
    source = data_source(settings)
    train = source.train()
    if not train:
        return []
    try:
        tokens = _tokens(settings, config, train[:SAMPLED]) if family.is_own(config) else (0, 0, 0)
    except (OSError, ValueError):  # no tokenizer beside the configuration; loading the model will say why
        return []
    footprint = estimate(settings, config, family)
    lines = []
    for card in CARDS:
        way = _way(settings, footprint, card * 1e9 / GIB * USABLE, tokens[0], tokens[1])
        lines.append(message(settings.lang, "memory", card=card, way=way))
    pictures = len({p.sha256 for q in [*train, *(source.test() or [])] for p in q.pictures})
    if tokens[2]:
        taps = len(getattr(config.vision_config, "deepstack_visual_indexes", None) or [])
        gib = pictures * tokens[2] * config.get_text_config().hidden_size * HALF * (1 + taps) / GIB
        lines.append(message(settings.lang, "features", pictures=pictures, gib=gib))
    return lines


def _way(settings: Settings, footprint: Footprint, gib: float, prefix: int, suffix: int) -> str:
    """The fastest way to make a step on a card."""
    lang, b = settings.lang, settings.budget
    if not footprint.layers:
        peak = (footprint.weights + footprint.adapter) / GIB
        return message(lang, "weights only", peak=peak) if peak <= gib else message(lang, "too large")
    most = min(b.micro_batch_size or b.batch_size, b.batch_size)
    fitting = footprint.fitting(gib, most, prefix, suffix)
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


def _tokens(settings: Settings, config: Any, questions: list[Question]) -> tuple[int, int, int]:
    """Tokens of the prefix, of a question with its pictures (95 % are shorter), and of one picture."""
    from transformers import AutoTokenizer

    folder, where = model_source(settings)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **where)
    prefix = render(tokenizer, settings.prompt, questions[0], as_written(questions[0])).prefix
    before = len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    found = sizes(settings, questions, config, tokenizer)
    none = [0] * 4
    visual = found.get("visual tokens", none)
    of_all = found.get("all visual tokens", visual)
    texts = found.get("text tokens", none)
    text, whole, single = (int(np.asarray(row)[2]) for row in (texts, of_all, visual))
    return before, text - before + whole, single
