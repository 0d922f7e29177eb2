"""Pictures from disk: opened safely, turned upright, brought to RGB and to the size a run asks for."""

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Literal

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

ImageReason = Literal["missing", "broken", "too large"]

# 50 megapixels: above any phone photo the contest saw, 150 MB as RGB. Pillow's own limit (179 megapixels
# before it refuses) would let eight decoding threads take 4 GiB.
MAX_PIXELS = 50_000_000

# Mid grey, because image processors subtract a mean near 0.5: the border becomes nearly zero and pulls the
# patches beside it less than black would.
PAD_COLOUR = (128, 128, 128)
UNLIMITED_TOKENS = 1 << 20

# What Pillow's decoders raise on damaged files, beside OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    struct.error,
    zlib.error,
)


# EXIF orientation -> the turn that sets the picture upright. `ImageOps.exif_transpose` would do, but it also
# rewrites the EXIF block and so fails on photos whose pixels are fine and whose EXIF is not.
# Source: EXIF 2.32, tag 0x0112.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A picture that cannot be used.

    Args:
        path: The picture's file.
        reason: "missing", "broken" (not decodable to its last row) or "too large" (over `MAX_PIXELS`).
        detail: What exactly was found, in words.
    """

    def __init__(self, path: Path, reason: ImageReason, detail: str) -> None:
        super().__init__(f"the image {path} is {reason}: {detail}")
        self.path = path
        self.reason: ImageReason = reason
        self.detail = detail


def load_image(path: Path) -> Image.Image:
    """Open a picture as a person would see it: upright (EXIF) and RGB, transparent parts laid on white.

    Of an animation the first frame counts.

    Raises:
        ImageError: The file is missing or broken, or its header promises more than `MAX_PIXELS` pixels.
    """
    return _to_rgb(_decode(path, _read(path), shrink=1))


def check_image(path: Path) -> str:
    """Decode a picture to its last row and give its identity, without making an RGB copy.

    Pillow's `verify()` reads headers only and passes a truncated JPEG, so the pixels are decoded; those of a
    JPEG at an eighth of its size, which still walks through all of its bytes. A 512 x 512 JPEG of 116 kB
    costs 2.1 ms of one 2.5 GHz core this way, 3.5 ms at full size, 4.9 ms by `load_image`.

    Returns:
        The hex SHA-256 of the file's bytes, equal to `file_sha256(path)`.

    Raises:
        ImageError: As for `load_image`.
    """
    data = _read(path)
    _decode(path, data, shrink=8)
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """The hex SHA-256 of a file's bytes; pictures with equal digests are twins.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_inside(root: Path, relative: str) -> Path:
    """Join a path from a data file to its root; refuse one that leads out of the root.

    Symbolic links are followed before the check: a link inside the root that points out of it is refused,
    a root that is itself a link is fine.

    Raises:
        ValueError: The path is absolute, holds a null character, or leaves the root.
    """
    if "\0" in relative:
        raise ValueError(f"the path must not hold a null character, got {relative!r}")
    if Path(relative).is_absolute():
        raise ValueError(f"the path must be relative to the image root, got {relative!r}")
    top = Path(os.path.realpath(root))
    path = Path(os.path.realpath(top / relative))
    if not path.is_relative_to(top):
        raise ValueError(f"the path must stay inside the image root {root}, got {relative!r}")
    return path


def fit_image(image: Image.Image, mode: str, size: int | None) -> Image.Image:
    """Brings an RGB picture to the size that the `image` config group asks for.

    Args:
        image: RGB picture.
        mode: "native" leaves it as it is; "resize" makes it exactly size x size, bicubic, the aspect ratio
            lost; "pad" keeps the aspect ratio, makes the longer side `size` (smaller pictures grow, so that
            all have the same number of visual tokens) and centres it on a grey square.
        size: Side in pixels; None with "native".

    Raises:
        ValueError: An unknown mode, or no size for a mode that needs one.
    """
    if mode == "native":
        return image
    if size is None or size < 1:
        raise ValueError(f"image.size must be >= 1 with image.mode={mode}, got {size}")
    if mode not in ("resize", "pad"):
        raise ValueError(f"image.mode must be native, resize or pad, got {mode}")
    if image.size == (size, size):
        return image
    if mode == "resize":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=PAD_COLOUR)


def tower_size(width: int, height: int, side: int, least: int, most: int | None) -> tuple[int, int]:
    """Width and height with which a picture goes through the tower: whole visual tokens, within the budget.

    Source: transformers' Qwen2-VL processor.

    Args:
        width: Of the picture, pixels; height alike.
        side: Of a visual token, pixels.
        least: Visual tokens it gets at least: smaller pictures are enlarged.
        most: Visual tokens it gets at most; None: as many as it has.

    Raises:
        ValueError: One side is more than 200 times the other.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    limits = {"min_pixels": least * side**2, "max_pixels": (most or UNLIMITED_TOKENS) * side**2}
    tall, wide = smart_resize(height, width, factor=side, **limits)
    return wide, tall


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(path, "missing", "there is no such file") from error
    except IsADirectoryError as error:
        raise ImageError(path, "missing", "this is a folder") from error
    except OSError as error:
        raise ImageError(path, "broken", str(error)) from error


def _decode(path: Path, data: bytes, shrink: int) -> Image.Image:
    """The upright picture; `shrink` lets a JPEG (and only a JPEG) decode that many times smaller."""
    if not data:
        raise ImageError(path, "broken", "the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            pixels = f"{image.width} x {image.height} pixels"
            raise ImageError(path, "too large", f"{pixels}, the limit is {MAX_PIXELS:,}")
        if shrink > 1:
            image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
        image.load()
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return image if turn is None else image.transpose(turn)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(path, "too large", str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(path, "broken", "its bytes are no known image format") from error
    except _DECODE_ERRORS as error:
        raise ImageError(path, "broken", str(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to 255, which turns nearly every such picture white.
        image = image.point(lambda value: value / 256, "L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
