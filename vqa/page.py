"""Pages for people: one HTML file each, with everything in it, that opens from disk without a network."""

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqa.image import ImageError, load_image

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
}


def render(template: str, **values: Any) -> str:
    """Fill in a page.

    Args:
        template: File name below `vqa/assets/page/`.
        values: What the template uses; texts are escaped.

    Returns:
        The whole page; it refers to nothing outside itself.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("vqa", "assets/page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["t"] = in_both_languages
    return environment.get_template(template).render(**values) + "\n"


def in_both_languages(english: str, korean: str) -> Any:
    """One text in both languages; the page shows the reader's."""
    from markupsafe import Markup

    return Markup('<span lang="en">{}</span><span lang="ko">{}</span>').format(english, korean)


@contextmanager
def drawn_for_page() -> Iterator[None]:
    """Inside the block charts become SVG with texts that stay texts: they scale, and can be translated."""
    import matplotlib

    with matplotlib.rc_context({"savefig.format": "svg", "svg.fonttype": "none", "svg.hashsalt": "vqa"}):
        yield


def inline_svg(path: Path, translate: Callable[[str], str]) -> str:
    """Make a drawn chart part of a page: it follows the page's colours, font and language.

    Args:
        path: The SVG; its name sets the chart's ids apart from those of the page's other charts.
        translate: English label -> Korean; the same text back where there is nothing to translate.

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
        korean = translate(html.unescape(english))
        if korean == english:
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
