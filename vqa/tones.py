"""Corrections of a whole picture's light and sharpness, by name: what `adapt=repair` chooses from.

Nothing is turned or cut: an upright picture and one that lies on its side have the same statistics.
"""

from collections.abc import Callable

from PIL import Image, ImageFilter, ImageOps

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
