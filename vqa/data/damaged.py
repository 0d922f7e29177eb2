"""Pictures that every viewer shows and a strict decoder refuses: texts too long, no end marker.

What is not there is never made up: a JPEG that lacks pixels stays broken.
"""

from collections.abc import Callable, Iterator

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
JPEG, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # the last is a colour profile, which nothing here applies
# Two fillings that decode to different pixels wherever a decoder still asks for bits.
FILLINGS = (b"", bytes((i * 73) % 251 for i in range(1, 1025)))


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
