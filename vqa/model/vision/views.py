"""Views of a picture: mild random crops, and corrections of its light and sharpness, each a short text.

The feature cache applies them before anything else. Never mirrored: that would change "left" and "right" and
any text in the picture, and teams of later rounds of the contest that this project began with report that
flips hurt. Corrections turn and cut nothing: an upright picture and one that lies on its side have the same
statistics. `adapt=repair` chooses from them.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace

from PIL import Image, ImageFilter, ImageOps

from vqa.question import Question

# Per cent of the darkest and of the lightest pixels that are let go, so that noise does not decide.
CUTOFF = 1


def levels(picture: Image.Image) -> Image.Image:
    """The picture with its darkest pixels black and its lightest white; colours keep their tone.

    Each colour channel stretched for itself turned orange into yellow: -9 points on clean emoji.
    """
    return ImageOps.autocontrast(picture, CUTOFF, preserve_tone=True)


def negative(picture: Image.Image) -> Image.Image:
    """The picture with every colour inverted."""
    return ImageOps.invert(picture)


def sharper(picture: Image.Image) -> Image.Image:
    """The picture with its edges raised; radius and strength are PIL's own."""
    return picture.filter(ImageFilter.UnsharpMask())


def smoother(picture: Image.Image) -> Image.Image:
    """The picture without single pixels that stand out."""
    return picture.filter(ImageFilter.MedianFilter())


TONES: dict[str, Callable[[Image.Image], Image.Image]] = {
    made.__name__: made for made in (levels, negative, sharper, smoother)
}

# Test-time prompt tuning crops to 8-100 % of the area, for pictures of one object. A question may be about
# anything in the picture, so most of it must stay in view, and shapes must stay what they are.
AREA = (0.6, 1.0)
RATIO = (0.9, 1 / 0.9)
Box = tuple[float, float, float, float]
_SPEC = re.compile(r"crop:" + ",".join([r"([01]\.\d{4})"] * 4))


def viewed(question: Question, n: int, seed: int) -> list[Question]:
    """The question with n views of its picture; the first one is the picture itself.

    Of several pictures each is cut to the same part, so that they can still be compared. The same for the
    same question, seed and place in the list, whatever n is and whatever was asked before.

    Args:
        question: What is asked.
        n: Views, at least 1.
        seed: Of the crops.

    Returns:
        n questions; all the same where there is no picture to look at differently.

    Raises:
        ValueError: n < 1.

    Source: random resized crops as in Szegedy et al. 2015 (arXiv 1409.4842), section 6.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    if question.image is None:
        return [question] * n
    specs = (_crop(random.Random(f"{seed} {index} {question.id}")) for index in range(1, n))
    return [question, *(replace(question, view=spec) for spec in specs)]


def look(picture: Image.Image, view: str) -> Image.Image:
    """What a view shows of a picture, at the picture's own size: all views have as many visual tokens.

    Args:
        picture: RGB, as loaded.
        view: "" for the picture itself, "crop:left,top,right,bottom" in shares of its width and height, or a
            correction of `vqa.model.vision.views`.

    Raises:
        ValueError: The view is none of these.
    """
    if not view:
        return picture
    if view in TONES:
        return TONES[view](picture)
    left, top, right, bottom = _box(view)
    pixels = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box=pixels)


def _box(view: str) -> Box:
    found = _SPEC.fullmatch(view)
    left, top, right, bottom = map(float, found.groups()) if found else (0.0, 0.0, 0.0, 0.0)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"view must be crop:left,top,right,bottom with four decimals and 0 <= left < right <= 1, "
            f"0 <= top < bottom <= 1, got {view!r}"
        )
    return left, top, right, bottom


def _crop(draw: random.Random) -> str:
    area, ratio = draw.uniform(*AREA), math.exp(draw.uniform(*map(math.log, RATIO)))
    width, height = min(math.sqrt(area * ratio), 1.0), min(math.sqrt(area / ratio), 1.0)
    left, top = draw.uniform(0, 1 - width), draw.uniform(0, 1 - height)
    return "crop:" + ",".join(f"{side:.4f}" for side in (left, top, left + width, top + height))
