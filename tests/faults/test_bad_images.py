"""F9 and F11: images that cannot be used are refused with the reason, and nothing but BadImageError comes."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tenfold.data.decode import decode, examine
from tenfold.errors import BadImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format=kind, **options)
    return buffer.getvalue()


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return exif


Check = Callable[..., object]


@pytest.fixture(params=[decode, examine], ids=["decode", "examine"])
def check(request: pytest.FixtureRequest) -> Check:
    """What computes an image's pixels, and what looks at it as it goes into a shard."""
    return request.param  # type: ignore[no-any-return]


def bomb(width: int, height: int) -> bytes:
    """A PNG header with no pixels behind it: who decodes it finds it truncated, who reads the header does not."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))
    return header + struct.pack(">I", 1_000_000) + b"IDAT"


def test_an_empty_file_is_refused(check: Check) -> None:
    with pytest.raises(BadImageError, match="empty file"):
        check(b"")


@pytest.mark.parametrize("start", [b"<!DOCTYPE html><html>", b"\n  <HTML><body>", b"<?xml version='1.0'?>"])
def test_a_web_page_named_as_an_image_is_called_one(check: Check, start: bytes) -> None:
    with pytest.raises(BadImageError, match=r"not an image but a web page \(HTML\)"):
        check(start + b"404 Not Found")


def test_text_is_no_image(check: Check) -> None:
    with pytest.raises(BadImageError, match=r"^not an image$"):
        check(b"hello")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_truncated_image_is_refused(check: Check, kind: str, share: float) -> None:
    data = saved(kind)
    with pytest.raises(BadImageError):
        check(data[: int(len(data) * share)])


def test_a_png_with_damaged_pixels_is_refused(check: Check) -> None:
    data = bytearray(saved("PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImageError, match="truncated or damaged"):
        check(bytes(data))


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (8001, 8000), (2**31 - 1, 1)])
def test_a_bomb_is_refused_from_its_header(check: Check, width: int, height: int) -> None:
    with pytest.raises(BadImageError, match=rf"{width} x {height} pixels, more than max_pixels=64000000"):
        check(bomb(width, height))


@pytest.mark.filterwarnings("error")
def test_a_bomb_between_pillows_limits_is_refused_without_a_warning(check: Check) -> None:
    """Pillow only warns between 89 and 179 million pixels."""
    with pytest.raises(BadImageError, match="more than max_pixels"):
        check(bomb(10_000, 10_000))


def test_a_compressed_text_bomb_in_a_png_is_refused(check: Check) -> None:
    data = saved("PNG")
    text = b"zTXtname\0\0" + zlib.compress(b"x" * 80_000_000, 9)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    with pytest.raises(BadImageError):
        check(data[:33] + chunk + data[33:])


def test_postscript_is_never_handed_to_its_interpreter(check: Check) -> None:
    """Pillow would start Ghostscript on whatever a file named .jpg holds."""
    with pytest.raises(BadImageError, match="not an image"):
        check(saved("EPS"))


def test_floating_point_pixels_are_refused(check: Check) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(buffer, format="TIFF")
    with pytest.raises(BadImageError, match="no agreed range"):
        check(buffer.getvalue())


def test_an_image_whose_exif_is_garbage_is_refused_or_read() -> None:
    """Pillow raises struct.error where it writes tags again that it could not read."""
    data = saved("JPEG", exif=rotated())
    start = data.index(b"Exif")
    assert decode(data).pixels.shape == (20, 24, 3)
    outcomes = set()
    for position in range(start, start + 60):
        for value in (0, 2, 5, 7, 10, 12, 255):
            broken = bytearray(data)
            broken[position] = value
            outcomes.add(outcome(bytes(broken)))
    assert outcomes <= {"read", "refused"}
    assert "read" in outcomes


def outcome(data: bytes) -> str:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            decode(data, 1_000_000)
        except BadImageError:
            return "refused"
    return "read"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM", "TIFF", "DDS"])
def test_random_damage_gives_pixels_or_a_reason_and_nothing_else(kind: str) -> None:
    dice = random.Random(kind)
    data = saved(kind, **({"exif": rotated()} if kind in {"JPEG", "PNG", "WEBP", "TIFF"} else {}))
    for _ in range(150):
        broken = bytearray(data[: dice.randrange(len(data))] if dice.random() < 0.3 else data)
        for _ in range(dice.choice([1, 2, 5])):
            if broken:
                broken[dice.randrange(min(len(broken), dice.choice([40, 200, len(data)])))] = dice.randrange(256)
        outcome(bytes(broken))
