"""The questions of a run: read once per process, split the same way every time."""

import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from vqa.config.check import NEED_SOURCE
from vqa.config.library import build
from vqa.config.settings import Data, Settings
from vqa.data.split import Split, hold_out
from vqa.question import Question


def data_source(settings: Settings) -> Data:
    """The object that the `data` node describes."""
    source: Data = build("data", settings.data)
    return source


def split_questions(settings: Settings) -> tuple[Split, str]:
    """Held-out part and rest of the labelled questions, and the digest of all of them.

    Raises:
        UserError: The data cannot be read, or are too few to split.
    """
    # a worker runs many trials on the same files: they are read and checked once
    return _split(json.dumps(settings.data, sort_keys=True), settings.budget.holdout_share, settings.seed)


def test_questions(settings: Settings) -> list[Question] | None:
    """Questions to answer, or None; `budget.test_limit` keeps only the first ones."""
    questions = data_source(settings).test()
    return questions if questions is None else questions[: settings.budget.test_limit]


def source_questions(settings: Settings) -> list[Question]:
    """Training questions that test-time adaptation compares with; none for methods that do not.

    Raises:
        UserError: The data cannot be read, or are too few to split.
    """
    return split_questions(settings)[0].train if settings.adapt.method in NEED_SOURCE else []


@functools.lru_cache(maxsize=4)
def _split(data: str, share: float, seed: int) -> tuple[Split, str]:
    node: dict[str, Any] = json.loads(data)
    source: Data = build("data", node)
    questions = source.train()
    return hold_out(questions, share, seed), data_sha256(questions)


def data_sha256(questions: Iterable[Question]) -> str:
    """Return one digest over ids, image bytes, texts, choices and answers, in order.

    Paths are left out: the same data in another folder is the same data.
    """
    digest = hashlib.sha256()
    for q in questions:
        row = [q.id, q.pictures_sha256, q.text, *q.choices, q.answer]
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()
