"""Pictures from disk: opened safely, turned upright, brought to RGB and to the size a run asks for.

Every picture of the project is opened here, and only in `FORMATS`: Pillow's own list holds formats that start
other programs (EPS starts Ghostscript) or that no photograph has. Files that every viewer shows and a strict
decoder refuses are mended (`without_texts`, `closed_jpeg`); what is not there is never made up. Values of any
depth become the 8-bit RGB that a screen would show (`to_rgb`).
"""

import hashlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vqa.machine.files import open_regular, read_regular

ImageReason = Literal["missing", "broken", "too large"]

# Pillow tells them by their first bytes, whatever the name of the file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")

# 120 megapixels: above a phone's 108. Twelve bytes of a forged header may promise more than any memory holds.
MAX_PIXELS = 120_000_000
# Larger pictures are halved while they are read, one at a time: 50 megapixels are 200 MB in Pillow's memory,
# and eight threads read. A tower sees 13 megapixels at most (16,384 visual tokens of 28 x 28).
WHOLE_PIXELS = 50_000_000
MAX_BYTES = 2**30  # of a file; 120 megapixels of 8 bytes each

# Longer than this by their width, processors refuse pictures. Source: transformers' Qwen2-VL `smart_resize`.
MAX_RATIO = 200

# Mid grey, because image processors subtract a mean near 0.5: the border becomes nearly zero and pulls the
# patches beside it less than black would.
PAD_COLOUR = (128, 128, 128)
UNLIMITED_TOKENS = 1 << 20

_one_large = threading.Lock()
# Pillow warns of pictures above this and raises above twice as many; `_open` refuses them in its own words.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# What people call a picture and none of `FORMATS` is: its first bytes, and what to do.
_OTHERS = (
    (b"%!PS", 0, "it is PostScript (EPS), a program that draws: save it as PNG"),
    (b"\xc5\xd0\xd3\xc6", 0, "it is PostScript (EPS), a program that draws: save it as PNG"),
    (b"%PDF", 0, "it is a PDF: save the page as PNG"),
    (b"ftyphei", 4, "it is HEIC, which Pillow cannot read: save it as JPEG"),
    (b"ftyphev", 4, "it is HEIC, which Pillow cannot read: save it as JPEG"),
    (b"ftypmif1", 4, "it is HEIC, which Pillow cannot read: save it as JPEG"),
    (b"\xff\x0a", 0, "it is JPEG XL, which Pillow cannot read: save it as JPEG"),
    (b"JXL ", 4, "it is JPEG XL, which Pillow cannot read: save it as JPEG"),
    (b"II*\0", 0, "it is a TIFF or raw photo of a kind that Pillow cannot read: save it as PNG"),
    (b"MM\0*", 0, "it is a TIFF or raw photo of a kind that Pillow cannot read: save it as PNG"),
    (b"version https://git-lfs", 0, "it is a pointer of Git LFS and not the picture: git lfs pull"),
    (b"<svg", 0, "it is SVG, a drawing: save it as PNG"),
    (b"<?xml", 0, "it is XML or SVG, a drawing: save it as PNG"),
)

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
PNG = b"\x89PNG\r\n\x1a\n"
JPEG, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # the last is a colour profile, which nothing here applies
# Two fillings that decode to different pixels wherever a decoder still asks for bits.
FILLINGS = (b"", bytes((i * 73) % 251 for i in range(1, 1025)))
# Pillow clips: 16-bit grey becomes white, and floats from 0 to 1 become black. A file seldom says how many of
# its bits are in use, so the largest value decides: a camera's 12 bits are stored in 16, class numbers of a
# label map in 32.
GREY_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # more than 8 bits
READABLE_MODES = (
    *("1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "HSV", "LAB"),
    *GREY_MODES,
)
BITS = (8, 12, 16)  # depths in which grey values are stored; the smallest that holds the largest value counts


class ImageError(ValueError):
    """A picture that cannot be used.

    Args:
        path: The picture's file.
        reason: "missing", "broken" (not decodable to its last row) or "too large" (over `MAX_PIXELS`).
        detail: What exactly was found, in words.
    """

    def __init__(self, path: Path, reason: ImageReason, detail: str) -> None:
        # a name with line ends or terminal escapes must not forge lines of a log
        shown = str(path) if str(path).isprintable() else repr(str(path))
        super().__init__(f"the image {shown} is {reason}: {detail}")
        self.path = path
        self.reason: ImageReason = reason
        self.detail = detail


def load_image(path: Path) -> Image.Image:
    """Open a picture as a person would see it: upright (EXIF) and RGB, transparent parts laid on white.

    Of an animation the first frame counts. Pictures of more than `WHOLE_PIXELS` come at half their size.

    Raises:
        ImageError: The file is missing or broken, or its header promises more than `MAX_PIXELS` pixels.
    """
    return _decode(path, _read(path), whole=True)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as stored; reads the header only.

    Raises:
        ImageError: As for `load_image`.
    """
    with _refused(path), open_regular(path) as file:
        try:
            return _open(path, file).size
        except ImageError as error:
            file.seek(0)
            mended = without_texts(file.read(MAX_BYTES)) if error.reason == "broken" else None
            if mended is None:
                raise
            return _open(path, io.BytesIO(mended)).size


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
    _decode(path, data, whole=False)
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """The hex SHA-256 of a file's bytes; pictures with equal digests are twins.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fit_image(image: Image.Image, mode: str, size: int | None) -> Image.Image:
    """Brings an RGB picture to the size that the `image` config group asks for.

    Args:
        image: RGB picture.
        mode: "native" leaves it as it is (a line gets borders, see `seen_size`); "resize" makes it exactly
            size x size, bicubic, the aspect ratio lost; "pad" keeps the aspect ratio, makes the longer side
            `size` (smaller pictures grow, so that all have the same number of visual tokens) and centres it
            on a grey square.
        size: Side in pixels; None with "native".

    Raises:
        ValueError: An unknown mode, or no size for a mode that needs one.
    """
    if mode == "native":
        seen = seen_size(*image.size)
        if seen == image.size:
            return image
        return ImageOps.expand(image, _borders(image.size, seen), PAD_COLOUR)
    if size is None or size < 1:
        raise ValueError(f"image.size must be >= 1 with image.mode={mode}, got {size}")
    if mode not in ("resize", "pad"):
        raise ValueError(f"image.mode must be native, resize or pad, got {mode}")
    if image.size == (size, size):
        return image
    if mode == "resize":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=PAD_COLOUR)


def seen_size(width: int, height: int) -> tuple[int, int]:
    """Width and height with which a picture meets a processor: a line gets grey borders.

    A picture more than 200 times as long as wide is refused by processors; strips are in people's files.

    >>> seen_size(4020, 20), seen_size(2000, 1), seen_size(640, 480)
    ((4020, 21), (2000, 10), (640, 480))
    """
    least = -(-max(width, height) // MAX_RATIO)
    return max(width, least), max(height, least)


def _borders(size: tuple[int, int], seen: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixels that make one size the other."""
    left, top = (seen[0] - size[0]) // 2, (seen[1] - size[1]) // 2
    return left, top, seen[0] - size[0] - left, seen[1] - size[1] - top


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


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn what the file system refuses inside the block into an `ImageError`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(path, "missing", "there is no such file") from error
    except IsADirectoryError as error:
        raise ImageError(path, "missing", "this is a folder") from error
    except OSError as error:
        raise ImageError(path, "broken", str(error.strerror or error)) from error


def _read(path: Path) -> bytes:
    with _refused(path):
        return read_regular(path, MAX_BYTES)


def _open(path: Path, file: IO[bytes]) -> Image.Image:
    """The picture with its header read, in one of our formats and within the limit of pixels."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(path, "too large", str(error)) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        raise ImageError(path, "broken", _named(file.read(64))) from error
    except _DECODE_ERRORS as error:
        raise ImageError(path, "broken", str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        pixels = f"{image.width} x {image.height} pixels"
        raise ImageError(path, "too large", f"{pixels}, the limit is {MAX_PIXELS:,}")
    return image


def _named(start: bytes) -> str:
    """What a file is that begins as none of our formats does."""
    if not start:
        return "the file is empty"
    for first, offset, text in _OTHERS:
        if start.lstrip()[offset : offset + len(first)] == first:
            return text
    return f"its bytes are no known image format ({', '.join(FORMATS)})"


def _decode(path: Path, data: bytes, whole: bool) -> Image.Image:
    """The upright RGB picture; or, to see that it decodes, its pixels as small as its format allows."""
    shrink = 1 if whole else 8
    try:
        return _pixels(path, data, shrink)
    except ImageError as error:
        if error.reason != "broken":
            raise
        mended = without_texts(data) or closed_jpeg(data, lambda other: _pixels(path, other, 8))
        if mended is None:
            raise
        return _pixels(path, mended, shrink)


def _pixels(path: Path, data: bytes, shrink: int) -> Image.Image:
    image = _open(path, io.BytesIO(data))
    large = image.width * image.height > WHOLE_PIXELS
    with _one_large if large else nullcontext():
        try:
            if shrink > 1 or large:
                factor = max(shrink, 2)  # only a JPEG decodes smaller than it is
                image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
            image.load()
            if image.mode not in READABLE_MODES:
                raise ImageError(path, "broken", f"its colours ({image.mode}) cannot be turned into RGB")
            if shrink > 1:
                return image
            if image.width * image.height > WHOLE_PIXELS:
                image = to_rgb(image).reduce(2)
            turn = _turn(image)
            return to_rgb(image if turn is None else image.transpose(turn))
        except ImageError:
            raise
        except _DECODE_ERRORS as error:
            raise ImageError(path, "broken", str(error)) from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets a picture upright; None where it is, or where nothing of its EXIF block can be read."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DECODE_ERRORS:
        return None


def without_texts(data: bytes) -> bytes | None:
    """A PNG without texts (comments, XMP, a drawing program's history) and profile; None where it has none.

    Pillow refuses a picture in which one of them unpacks to more than 1 MiB.

    Source: PNG, third edition, 11.3.3: tEXt, zTXt and iTXt change no pixel.
    """
    if not data.startswith(PNG):
        return None
    texts = [(start, end) for name, start, end in _chunks(data) if name in TEXTS]
    kept, at = [], 0
    for start, end in texts:
        kept.append(data[at:start])
        at = end
    return b"".join([*kept, data[at:]]) if texts else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and end of each chunk of a PNG; a last one that is cut off is left out."""
    at = len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield data[at + 4 : at + 8], at, end
        at = end


def closed_jpeg(data: bytes, decode: Callable[[bytes], Image.Image]) -> bytes | None:
    """A JPEG that lacks nothing but its end marker, closed; None for a file that lacks pixels.

    Closing alone would not tell the two apart: libjpeg fills what is missing with grey. So two different
    fillings go before the marker. Where all pixels are there, the decoder skips either; where some are not,
    it reads the filling, and the two pictures differ.

    Args:
        data: The file's bytes.
        decode: Decodes bytes, with any error of its own.
    """
    if not data.startswith(JPEG) or data.rstrip(b"\0").endswith(END_OF_IMAGE):
        return None
    closed = [data + filling + END_OF_IMAGE for filling in FILLINGS]
    try:
        first, second = (decode(one) for one in closed)
    except ValueError:
        return None
    return closed[0] if first.tobytes() == second.tobytes() else None


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB; transparent parts are laid on white."""
    if image.mode in GREY_MODES:
        image = Image.fromarray(grey_bytes(np.asarray(image)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def grey_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values of any depth as bytes, 0 black and 255 white.

    Whole numbers that fit 8, 12 or 16 bits are shifted, floats from 0 to 1 are multiplied by 255, and floats
    from 0 to 255 are kept. Any other range is stretched from its least to its largest value, as viewers of
    measured pictures do.

    Args:
        values: (H, W), whole or floating; what is no number counts as 0.

    Returns:
        (H, W) bytes.
    """
    floating = np.issubdtype(values.dtype, np.floating)
    found = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    least, most = float(found.min()), float(found.max())
    if least >= 0 and most <= 1 and floating:
        return np.rint(found * 255).astype(np.uint8)
    depth = next((bits for bits in BITS if most < 2**bits), None)
    if least < 0 or depth is None or (floating and depth != BITS[0]):
        return np.rint((found - least) * (255 / max(most - least, 1e-12))).astype(np.uint8)
    return (found.astype(np.int64) >> (depth - 8)).astype(np.uint8)
