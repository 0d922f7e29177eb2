"""A picture's numbers become what a screen would show, whatever their type and depth."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vqa.data.image import check_image, grey_bytes, load_image

RAMP = np.linspace(0, 1, 16).reshape(4, 4)  # from black to white


@pytest.mark.parametrize(
    "stored",
    [
        np.rint(RAMP * 255).astype(np.int32),  # 8 bits in 32: class numbers, label maps
        np.rint(RAMP * 4095).astype(np.int32),
        np.rint(RAMP * 65535).astype(np.int32),
        np.rint(RAMP * 4095).astype(np.uint16),  # a camera's 12 bits in 16
        np.rint(RAMP * 65535).astype(np.uint16),
        np.rint(RAMP * 65535).astype(">u2"),
        RAMP.astype(np.float32),
        (RAMP * 255).astype(np.float32),
        (RAMP * 1000 - 500).astype(np.float32),  # heights, temperatures
        (RAMP * 2**31 - 2**30).astype(np.int32),
    ],
    ids=["i32_8", "i32_12", "i32_16", "u16_12", "u16_16", "u16be", "f_0_1", "f_0_255", "f_any", "i32_any"],
)
def test_ramp_stays_a_ramp(tmp_path: Path, stored: NDArray[np.generic]) -> None:
    if stored.dtype == np.dtype(">u2"):
        Image.frombytes("I;16B", (4, 4), stored.tobytes()).save(tmp_path / "x.tif")
    else:
        Image.fromarray(stored).save(tmp_path / "x.tif")
    shown = np.asarray(load_image(tmp_path / "x.tif"))[..., 0]
    np.testing.assert_allclose(shown, RAMP * 255, atol=1)
    assert check_image(tmp_path / "x.tif")


def test_every_16_bit_value_is_shifted() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(grey_bytes(values), values // 256)


def test_what_is_no_number_counts_as_black() -> None:
    values = np.array([[np.nan, np.inf], [0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(grey_bytes(values), [[0, 0], [128, 255]])


def test_one_value_everywhere_is_no_division_by_zero() -> None:
    np.testing.assert_array_equal(grey_bytes(np.full((2, 2), -3.0)), np.zeros((2, 2)))
