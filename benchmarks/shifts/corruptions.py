"""Five corruptions of pictures as weather, phones and messengers make them; deterministic, PIL only.

Each severity is the mildest round number at which an adapter trained on clean emoji loses clearly, so that
there is something to win back and the answer can still be seen: a corruption that hides it measures nothing.
The pictures have 64 x 64 pixels; radius and quality would be others for larger ones.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vqa.data.image import file_sha256
from vqa.question import Question

BRIGHTNESS = 0.5  # of the light: a photo taken indoors without flash
BLUR_RADIUS = 2.5  # pixels of 64: a hand that shook
ROTATION = 45.0  # degrees, anticlockwise: a phone held askew
JPEG_QUALITY = 4  # of 100: sent through a messenger several times


def brightness(picture: Image.Image) -> Image.Image:
    """The picture, darker."""
    return ImageEnhance.Brightness(picture).enhance(BRIGHTNESS)


def blur(picture: Image.Image) -> Image.Image:
    """The picture, out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))


def rotation(picture: Image.Image) -> Image.Image:
    """The picture, turned; the corners get the colour of its upper left pixel."""
    ground = picture.getpixel((0, 0))
    return picture.rotate(ROTATION, Image.Resampling.BICUBIC, fillcolor=ground)


def jpeg(picture: Image.Image) -> Image.Image:
    """The picture with blocks and false colours."""
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=JPEG_QUALITY)
    return Image.open(stored).convert("RGB")


def inversion(picture: Image.Image) -> Image.Image:
    """The negative: every colour is another, so a question for a colour cannot be answered by looking."""
    return ImageOps.invert(picture)


CORRUPTIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    made.__name__: made for made in (brightness, blur, rotation, jpeg, inversion)
}


def corrupted(questions: Sequence[Question], name: str, folder: Path) -> list[Question]:
    """The same questions over corrupted pictures, written to a folder once.

    Args:
        questions: With pictures.
        name: A key of `CORRUPTIONS`.
        folder: Where the pictures go, as PNG; made when missing.

    Raises:
        ValueError: A question has no picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_corrupted(question, name, folder) for question in questions]


def _corrupted(question: Question, name: str, folder: Path) -> Question:
    if question.image is None:
        raise ValueError(f"question {question.id!r} must have a picture to corrupt, got none")
    path = folder / f"{question.image_sha256[:20]}-{name}.png"
    if not path.exists():
        made = CORRUPTIONS[name](_flattened(question.image))
        unfinished = path.with_suffix(".unfinished")
        made.save(unfinished, "PNG")
        unfinished.replace(path)
    return replace(question, image=path, image_sha256=file_sha256(path))


def _flattened(path: Path) -> Image.Image:
    """The picture as RGB, on white where it is transparent."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    whole = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(whole, picture).convert("RGB")
