import hashlib
import io
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import vqa.data.image
from vqa.config.korean import in_korean
from vqa.data.image import ImageError, check_image, file_sha256, fit_image, load_image, picture_size

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def photo(file_format: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """Noise, so that the file is long and its last rows are far from its header."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


# EXIF 2.32, tag 0x0112: where the red corner of a stored picture is, once it stands upright.
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (1, (6, 4), (0, 0)),
        (2, (6, 4), (5, 0)),
        (3, (6, 4), (5, 3)),
        (4, (6, 4), (0, 3)),
        (5, (4, 6), (0, 0)),
        (6, (4, 6), (3, 0)),
        (7, (4, 6), (3, 5)),
        (8, (4, 6), (0, 5)),
    ],
)
def test_exif_orientation_sets_the_picture_upright(
    tmp_path: Path, orientation: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = Image.new("RGB", (6, 4), BLUE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)

    upright = load_image(tmp_path / "turned.png")

    assert upright.size == size
    assert upright.getpixel(corner) == RED


def test_damaged_exif_block_does_not_spoil_a_good_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0  # horizontal resolution, a fraction (type 5)
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), BLUE).save(buffer, "JPEG", exif=exif)
    whole = bytes.fromhex("011a0005")
    assert whole in buffer.getvalue()
    # as raw bytes (type 7), ImageOps.exif_transpose of Pillow 13 raises TypeError
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue().replace(whole, bytes.fromhex("011a0007")))
    assert load_image(tmp_path / "x.jpg").size == (4, 6)
    assert check_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_parts_become_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    if mode == "P":
        paletted = image.convert("RGB").convert("P")
        paletted.save(tmp_path / "x.png", transparency=paletted.getpixel((0, 0)))
    else:
        image.convert(mode).save(tmp_path / "x.tif" if mode == "PA" else tmp_path / "x.png")
    path = next(tmp_path.iterdir())
    assert load_image(path).mode == "RGB"
    assert load_image(path).getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16", "I", "F"])
def test_every_mode_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 4))
    image.save(tmp_path / "x.tif")
    loaded = load_image(tmp_path / "x.tif")
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == (WHITE if mode == "CMYK" else (0, 0, 0))  # no ink is white


def test_16_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").getpixel((0, 0)) == (128, 128, 128)  # 32768 / 256


@pytest.mark.hostile
@pytest.mark.parametrize("read", [load_image, check_image])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_truncated_picture_is_broken(
    tmp_path: Path, read: Callable[[Path], object], file_format: str, kept: float
) -> None:
    data = photo(file_format)
    (tmp_path / "x").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=r"the image .*x is broken: ") as caught:
        read(tmp_path / "x")
    assert caught.value.reason == "broken"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is broken: the file is empty"),
        (b"<html>404</html>", "is broken: its bytes are no known image format"),
        (None, "is missing: there is no such file"),
    ],
)
def test_unusable_file_is_named_with_its_reason(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        load_image(path)


def test_folder_in_place_of_a_picture_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is missing: this is a folder"):
        load_image(tmp_path)


def test_picture_below_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(photo("JPEG"))
    with pytest.raises(ImageError, match="is missing"):
        load_image(tmp_path / "x.jpg" / "y.jpg")


@pytest.mark.hostile
def test_name_longer_than_a_file_system_allows_is_broken(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"is broken: .*too long"):
        load_image(tmp_path / ("x" * 5000))


@pytest.mark.hostile
# 11000 x 11000: just above our limit; 20000 x 20000: where Pillow itself refuses.
@pytest.mark.parametrize("side", [11000, 20000])
@pytest.mark.parametrize("read", [load_image, check_image])
def test_decompression_bomb_is_refused_from_its_header(
    tmp_path: Path, read: Callable[[Path], object], side: int
) -> None:
    data = bytearray(photo("BMP"))
    data[18:26] = side.to_bytes(4, "little") + side.to_bytes(4, "little")  # width and height in the header
    (tmp_path / "x.bmp").write_bytes(data)
    with pytest.raises(ImageError, match="is too large: ") as caught:
        read(tmp_path / "x.bmp")
    assert caught.value.reason == "too large"


def test_limit_is_the_last_size_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(photo("PNG", (10, 10)))
    monkeypatch.setattr(vqa.data.image, "MAX_PIXELS", 100)
    assert load_image(tmp_path / "x.png").size == (10, 10)
    monkeypatch.setattr(vqa.data.image, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="10 x 10 pixels, the limit is 99"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 48)])
def test_checking_gives_the_hash_of_the_bytes(tmp_path: Path, size: tuple[int, int]) -> None:
    data = photo("JPEG", size)
    (tmp_path / "x.jpg").write_bytes(data)
    assert check_image(tmp_path / "x.jpg") == hashlib.sha256(data).hexdigest()
    assert file_sha256(tmp_path / "x.jpg") == hashlib.sha256(data).hexdigest()


@pytest.mark.hostile
def test_link_that_runs_in_circles_is_broken_not_endless(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ImageError, match="is broken"):
        load_image(tmp_path / "a")


# What Pillow would hand to another program or to a reader that no photograph needs.
NO_PICTURES = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
    "dos_eps": b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "pdf": b"%PDF-1.7\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "jpeg xl": b"\0\0\0\x0cJXL \r\n\x87\n",
    "bare_jpeg xl": b"\xff\x0a" + bytes(20),
    "tiff": b"MM\0*" + bytes(20),
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when anybody starts Ghostscript."""
    programs, started = tmp_path / "programs", tmp_path / "started"
    programs.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return started


@pytest.mark.hostile
@pytest.mark.parametrize("kind", NO_PICTURES)
@pytest.mark.parametrize("read", [load_image, check_image, picture_size])
def test_file_of_another_kind_starts_no_program_and_is_named(
    tmp_path: Path, canary: Path, kind: str, read: Callable[[Path], object]
) -> None:
    (tmp_path / "x.png").write_bytes(NO_PICTURES[kind])
    with pytest.raises(ImageError, match=r"x\.png is broken: it is ") as caught:
        read(tmp_path / "x.png")
    assert kind.removeprefix("dos_").removeprefix("bare_").upper() in str(caught.value).upper()
    assert not canary.exists()


def test_what_a_file_of_another_kind_is_has_korean_words() -> None:
    texts = {text for _, _, text in vqa.data.image._OTHERS}
    assert [text for text in texts if in_korean(text) == text] == []


def test_no_picture_is_opened_without_the_list_of_formats() -> None:
    package = Path(vqa.data.image.__file__).parents[1]
    calls = [
        line
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if "Image.open(" in line
    ]
    assert calls
    assert all("formats=FORMATS" in line for line in calls), calls


@pytest.mark.hostile
def test_pipe_socket_and_device_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/zero")
    for name in ("pipe", "null"):
        for read in (load_image, check_image, picture_size, file_sha256):
            with pytest.raises((ImageError, OSError), match="pipe, socket or device"):
                read(tmp_path / name)


@pytest.mark.hostile
def test_name_cannot_forge_a_line_of_a_log(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "a\nvqa: all good\x1b[2J.png")
    assert str(caught.value).isprintable()


@pytest.mark.hostile
def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**31)  # a hole: takes no disk
    with pytest.raises(ImageError, match=r"is broken: 2\.0 GiB, the limit is 1\.0"):
        load_image(tmp_path / "x.png")


def test_png_with_a_text_that_unpacks_to_megabytes_is_read(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("history", "x" * 3_000_000, zip=True)
    Image.new("RGB", (6, 4), BLUE).save(tmp_path / "x.png", pnginfo=texts)
    assert load_image(tmp_path / "x.png").getpixel((0, 0)) == BLUE
    assert check_image(tmp_path / "x.png") == file_sha256(tmp_path / "x.png")
    assert picture_size(tmp_path / "x.png") == (6, 4)


def with_chunk(tmp_path: Path, name: bytes, content: bytes) -> Path:
    """A blue PNG with one more chunk behind its header."""
    Image.new("RGB", (6, 4), BLUE).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    crc = zlib.crc32(name + content).to_bytes(4, "big")
    chunk = len(content).to_bytes(4, "big") + name + content + crc
    (tmp_path / "x.png").write_bytes(data[:33] + chunk + data[33:])  # signature 8, IHDR 25
    return tmp_path / "x.png"


def test_png_with_a_profile_that_unpacks_to_megabytes_is_read(tmp_path: Path) -> None:
    path = with_chunk(tmp_path, b"iCCP", b"x\0\0" + zlib.compress(b"x" * 3_000_000))
    assert load_image(path).getpixel((0, 0)) == BLUE
    assert check_image(path) == file_sha256(path)
    assert picture_size(path) == (6, 4)


def test_png_whose_exif_block_is_none_is_read(tmp_path: Path) -> None:
    path = with_chunk(tmp_path, b"eXIf", b"x" * 100)
    assert check_image(path)
    assert load_image(path).getpixel((0, 0)) == BLUE


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tail", [b"", b"\0" * 100])
def test_jpeg_without_its_end_marker_is_read_with_all_its_pixels(
    tmp_path: Path, progressive: bool, tail: bytes
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg", progressive=progressive)
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(data[:-2] + tail)
    assert load_image(tmp_path / "x.jpg").tobytes() == load_image(tmp_path / "whole.jpg").tobytes()
    assert check_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("lost", [8, 40, 400, 2000])
def test_jpeg_that_lacks_pixels_stays_broken(tmp_path: Path, lost: int) -> None:
    (tmp_path / "x.jpg").write_bytes(photo("JPEG")[:-lost])
    for read in (load_image, check_image):
        with pytest.raises(ImageError, match=r"(?i)truncated"):
            read(tmp_path / "x.jpg")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_phone_photo_of_108_megapixels_is_read_at_half_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    # the same way with smaller numbers: a picture of 108 megapixels takes seconds
    assert vqa.data.image.MAX_PIXELS >= 12_032 * 9_024
    monkeypatch.setattr(vqa.data.image, "WHOLE_PIXELS", 60 * 40)
    (tmp_path / "x").write_bytes(photo(file_format, (120, 80)))
    assert load_image(tmp_path / "x").size == (60, 40)
    assert picture_size(tmp_path / "x") == (120, 80)
    assert not vqa.data.image._one_large.locked()


def test_large_photo_brings_no_warning(tmp_path: Path) -> None:
    data = bytearray(photo("BMP"))
    data[18:26] = (10_500).to_bytes(4, "little") * 2  # 110 megapixels: above Pillow's own warning
    (tmp_path / "x.bmp").write_bytes(data)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ImageError, match="is broken"):
        check_image(tmp_path / "x.bmp")
    assert caught == []


@pytest.mark.parametrize("size", [(4020, 20), (2000, 1), (1, 2000)])
def test_line_gets_borders_so_that_a_processor_takes_it(size: tuple[int, int]) -> None:
    seen = fit_image(Image.new("RGB", size, BLUE), "native", None)
    assert max(seen.size) == max(size)
    assert max(seen.size) <= 200 * min(seen.size)
    colours = {colour for _, colour in seen.getcolors() or []}
    assert colours == {BLUE, vqa.data.image.PAD_COLOUR}


def test_native_leaves_the_picture_alone() -> None:
    image = Image.new("RGB", (30, 20))
    assert fit_image(image, "native", None) is image


def test_resize_gives_exactly_the_square() -> None:
    assert fit_image(Image.new("RGB", (30, 20)), "resize", 448).size == (448, 448)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1024, 512), (0, 128, 512, 384)),  # halved to 512 x 256, so 128 rows of grey above and below
        ((100, 200), (128, 0, 384, 512)),  # smaller pictures grow
        ((512, 512), (0, 0, 512, 512)),
    ],
)
def test_pad_keeps_the_aspect_ratio_and_centres(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    padded = np.asarray(fit_image(Image.new("RGB", size, BLUE), "pad", 512))
    expected = np.full((512, 512, 3), 128, dtype=np.uint8)
    expected[box[1] : box[3], box[0] : box[2]] = BLUE
    np.testing.assert_array_equal(padded, expected)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_pad_survives_a_line(size: tuple[int, int]) -> None:
    assert fit_image(Image.new("RGB", size), "pad", 512).size == (512, 512)


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("resize", None, "image.size must be >= 1 with image.mode=resize, got None"),
        ("pad", 0, "image.size must be >= 1 with image.mode=pad, got 0"),
        ("crop", 448, "image.mode must be native, resize or pad, got crop"),
    ],
)
def test_impossible_size_or_mode_is_refused(mode: str, size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_image(Image.new("RGB", (4, 4)), mode, size)
