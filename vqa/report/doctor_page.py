"""`doctor.html`: what stage=doctor found in a contest file, on one page with a contact sheet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqa.config.library import build
from vqa.config.settings import Settings
from vqa.data.contest_csv import ContestCsv
from vqa.data.csv_rows import Part
from vqa.machine.files import replace_text
from vqa.model.base import model_source, read_model_config, read_processor
from vqa.model.families.table import family_of
from vqa.question import Question, guessing, letters_of
from vqa.report import doctor_facts as facts
from vqa.report.page import render, thumbnails

PAGE = "doctor.html"
ON_SHEET = 60
SHEET_BYTES = 3 * 2**20


def write_doctor_page(settings: Settings, problems: Sequence[str]) -> Path | None:
    """Write the page of a contest file; None for other data, which need no doctor.

    Rows that cannot be used are left out of the numbers; the problems tell of them.

    Returns:
        The page, in the study's folder.
    """
    source = build("data", settings.data)
    if not isinstance(source, ContestCsv):
        return None
    parts = _readable(source)
    everything = [q for questions in parts.values() for q in questions]
    labelled = [q for q in parts.get("train", []) if q.answer]
    numbers = facts.option_numbers(everything)
    pictures = list(dict.fromkeys(p.path for q in everything for p in q.pictures))
    sheet = pictures[:: max(1, len(pictures) // ON_SHEET)][:ON_SHEET]
    page = render(
        "doctor.html",
        language=settings.lang,
        title="doctor",
        study=settings.study,
        problems=problems,
        parts=[(name, _part(source, name, questions)) for name, questions in parts.items()],
        options=numbers,
        letters=letters_of(max(numbers, default=0)),
        chance=guessing(len(q.choices) for q in labelled or everything).accuracy if everything else None,
        exact=facts.exact_twins(parts),
        near=facts.near_twins(parts),
        equal_options=facts.equal_options(everything),
        contradictions=facts.contradictions(everything),
        hinted=facts.hinted(everything),
        longest=facts.longest_is_right(labelled),
        floor=facts.text_floor(labelled, settings.seed),
        sizes={} if any(p.startswith("model:") for p in problems) else _sizes(settings, everything),
        sheet=list(thumbnails(sheet, SHEET_BYTES).values()),
    )
    folder = Path(settings.env.output_root) / settings.study
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / PAGE, page)
    return folder / PAGE


def _readable(source: ContestCsv) -> dict[str, list[Question]]:
    """Every row that can be read, whatever is wrong with the others."""
    parts: tuple[Part, ...] = "train", "test"
    found = {part: source.readable(part) for part in parts}
    return {part: questions for part, questions in found.items() if questions}


def _part(source: ContestCsv, name: str, questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "file": source.train_csv if name == "train" else source.test_csv,
        "questions": len(questions),
        "pictures": len({p.sha256 for q in questions for p in q.pictures}),
        "without": sum(q.image is None for q in questions),
        "letters": facts.letter_balance(questions) if any(q.answer for q in questions) else {},
    }


def _sizes(settings: Settings, questions: Sequence[Question]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    if not questions:
        return {}
    folder, where = model_source(settings)
    try:
        config = read_model_config(settings)
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    except (OSError, ValueError):  # no tokenizer beside the configuration; loading the model will say why
        return {}
    family = family_of(config, settings.env.device_map)
    if family.is_own(config):
        return facts.sizes(settings, questions, config, tokenizer)
    return facts.sizes_by_processor(settings, questions, read_processor(settings, config), family)
