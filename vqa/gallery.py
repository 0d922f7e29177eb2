"""The error gallery: every labelled answer, the surest mistakes first, with pictures while they fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqa.page import thumbnails
from vqa.predictions import Prediction
from vqa.question import Question

PICTURE_BYTES = 8 * 2**20  # of a page that must open in seconds, also on a phone
DIGITS = 4


def gallery(
    parts: Mapping[str, Sequence[Prediction]], questions: Mapping[str, Mapping[str, Question]]
) -> dict[str, Any]:
    """What the page's script shows.

    Args:
        parts: Predictions by part: "valid" (held out), "test", or "oof" (a trial's, out of fold).
        questions: By part and id; a prediction without its question is shown without text and picture.

    Returns:
        `rows`, one list per prediction: part, id, kind, gold, answer, four probabilities, flag, text,
        options, number of its picture or -1; and `pictures` as data addresses.
    """
    entries = [
        (part, prediction, questions.get(part, {}).get(prediction.id))
        for part, predictions in parts.items()
        for prediction in predictions
    ]
    worth_a_look = sorted(entries, key=lambda entry: _rank(entry[1]))
    wanted = [question.image for _, _, question in worth_a_look if question and question.image]
    pictures = thumbnails(wanted, PICTURE_BYTES)
    number = {path: index for index, path in enumerate(pictures)}
    rows = [_row(part, p, question, number) for part, p, question in entries]
    return {"rows": rows, "pictures": list(pictures.values())}


def _rank(prediction: Prediction) -> tuple[int, float]:
    """Mistakes first, the surest on top; then the answers that were nearly a coin toss."""
    if prediction.gold is not None and prediction.answer != prediction.gold:
        return 0, -max(prediction.p)
    return 1, max(prediction.p)


def _row(part: str, p: Prediction, question: Question | None, number: Mapping[Path, int]) -> list[Any]:
    text, choices, picture = "", ["", "", "", ""], -1
    if question:
        text, choices = question.text, list(question.choices)
        picture = number.get(question.image, -1) if question.image else -1
    probabilities = [round(value, DIGITS) for value in p.p]
    return [part, p.id, p.kind, p.gold or "", p.answer or "", probabilities, p.flag, text, choices, picture]
