"""What a picture's numbers mean: every mode of Pillow brought to the 8-bit RGB that a screen would show.

Pillow clips: 16-bit grey becomes white, and floats from 0 to 1 become black. A file seldom says how many of
its bits are in use, so the largest value decides: a camera's 12 bits are stored in 16, class numbers of a
label map in 32.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # more than 8 bits
READABLE_MODES = (
    *("1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "HSV", "LAB"),
    *GREY_MODES,
)
BITS = (8, 12, 16)  # depths in which grey values are stored; the smallest that holds the largest value counts


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
