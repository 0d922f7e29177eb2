"""Pages for people: one HTML file each, with everything in it, that opens from disk without a network.

The error gallery is part of one: every labelled answer, the surest mistakes first, with pictures while they
fit.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa.config.korean import in_korean
from vqa.data.image import ImageError, load_image
from vqa.question import Question
from vqa.results.predictions import Prediction

if TYPE_CHECKING:
    from jinja2 import Environment

THUMBNAIL_PX = 288
THUMBNAIL_QUALITY = 72
_TEXT = re.compile(r"<text ([^>]*)>([^<]*)</text>")
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
# What matplotlib writes -> what follows the page's colours, light or dark.
_COLOURS = {
    "#ffffff": "var(--paper)",
    "white": "var(--paper)",
    "#000000": "currentColor",
    "#262626": "currentColor",
    "#e69f00": "var(--orange, #e69f00)",  # would hardly be seen in the dark
}


def render(template: str, **values: Any) -> str:
    """Fill in a page.

    Args:
        template: File name below `vqa/assets/page/`.
        values: What the template uses; texts are escaped.

    Returns:
        The whole page; it refers to nothing outside itself.
    """
    return _environment().get_template(template).render(**values) + "\n"


@cache
def _environment() -> "Environment":
    """What fills in pages; it keeps the templates that it has compiled."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("vqa", "assets/page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["t"] = in_both_languages
    environment.filters["told"] = lambda text: in_both_languages(text, in_korean(text))
    return environment


def in_both_languages(english: str, korean: str) -> Any:
    """One text in both languages; the page shows the reader's."""
    from markupsafe import Markup

    return Markup('<span lang="en">{}</span><span lang="ko">{}</span>').format(english, korean)


def inline_svg(path: Path, translations: Mapping[str, str]) -> str:
    """Make a drawn chart part of a page: it follows the page's colours, font and language.

    Args:
        path: The SVG; its name sets the chart's ids apart from those of the page's other charts.
        translations: The Korean of the English labels; other texts, such as numbers, stay alone.

    Returns:
        The `svg` element, hidden from screen readers: the page gives the chart's text beside it.
    """
    name = path.stem
    text = path.read_text(encoding="utf-8")
    text = _METADATA.sub("", text[text.index("<svg") :])  # the metadata hold the time of drawing
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text)
    for fixed, following in _COLOURS.items():
        text = re.sub(rf"(fill|stroke): {fixed}\b", rf"\1: {following}", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true"', text, count=1)

    def both(match: re.Match[str]) -> str:
        english = match[2]
        korean = translations.get(html.unescape(english))
        if korean is None:
            return match[0]
        korean = html.escape(korean, quote=False)
        return f'<text lang="en" {match[1]}>{english}</text><text lang="ko" {match[1]}>{korean}</text>'

    return _TEXT.sub(both, text)


def thumbnails(paths: Iterable[Path], budget_bytes: int) -> dict[Path, str]:
    """Small copies of pictures as data addresses, in the order given, until the budget is spent.

    Pictures that cannot be read are left out; the page says so in their place.

    Args:
        paths: The pictures, the most important ones first.
        budget_bytes: Most characters of all data addresses together.
    """
    found: dict[Path, str] = {}
    left = budget_bytes
    with ThreadPoolExecutor(4) as pool:
        unique = list(dict.fromkeys(paths))
        for start in range(0, len(unique), 64):  # in portions: the budget usually ends long before the list
            portion = unique[start : start + 64]
            for path, address in zip(portion, pool.map(thumbnail, portion), strict=True):
                if address is None:
                    continue
                if len(address) > left:
                    return found
                found[path] = address
                left -= len(address)
    return found


def thumbnail(path: Path) -> str | None:
    """A small copy of a picture as a data address; None when it cannot be read."""
    try:
        picture = load_image(path)
    except ImageError:
        return None
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=THUMBNAIL_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


PICTURE_BYTES = 8 * 2**20  # of a page that must open in seconds, also on a phone
DIGITS = 4


def gallery(
    parts: Mapping[str, Sequence[Prediction]],
    questions: Mapping[str, Mapping[str, Question]],
    base: Sequence[Prediction] = (),
) -> dict[str, Any]:
    """What the page's script shows.

    Args:
        parts: Predictions by part: "valid" (held out), "test", or "oof" (a trial's, out of fold).
        questions: By part and id; a prediction without its question is shown without text and picture.
        base: The base model's predictions of the held-out questions.

    Returns:
        `rows`, one list per prediction: part, id, kind, gold, answer, probabilities, flag, text,
        options, number of its picture or -1 (a list of numbers where it has several), the base model's
        answer; and `pictures` as data addresses.
    """
    entries = [
        (part, prediction, questions.get(part, {}).get(prediction.id))
        for part, predictions in parts.items()
        for prediction in predictions
    ]
    worth_a_look = sorted(entries, key=lambda entry: _rank(entry[1]))
    wanted = [p.path for _, _, question in worth_a_look if question for p in question.pictures]
    pictures = thumbnails(wanted, PICTURE_BYTES)
    number = {path: index for index, path in enumerate(pictures)}
    before = {p.id: p.answer or "none" for p in base}
    rows = [
        [*_row(part, p, question, number), before.get(p.id, "") if part == "valid" else ""]
        for part, p, question in entries
    ]
    return {"rows": rows, "pictures": list(pictures.values())}


def _rank(prediction: Prediction) -> tuple[int, float]:
    """Mistakes first, the surest on top; then the answers that were nearly a coin toss."""
    if prediction.gold is not None and prediction.answer != prediction.gold:
        return 0, -max(prediction.p)
    return 1, max(prediction.p)


def _row(part: str, p: Prediction, question: Question | None, number: Mapping[Path, int]) -> list[Any]:
    text, choices, picture = "", [""] * len(p.p), [-1]
    if question:
        text, choices = question.text, list(question.choices)
        picture = [number.get(one.path, -1) for one in question.pictures] or [-1]
    probabilities = [round(value, DIGITS) for value in p.p]
    row = [part, p.id, p.kind, p.gold or "", p.answer or "", probabilities, p.flag, text, choices]
    return [*row, picture[0] if len(picture) == 1 else picture]
