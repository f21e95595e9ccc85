"""The one image decoder: every image passes it once, when it is written into a shard.

What leaves it is 8-bit RGB. Images that all decoders read alike (8-bit RGB or grey JPEG and PNG with no
rotation tag) keep their bytes; the others are re-encoded as PNG, so that no later reader, DALI's among
them, meets a CMYK, 16-bit, palette or rotated image. Where ``data.pixels`` asks for other pixels,
:mod:`tenfold.data.channels` reads them.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from tenfold.config import PixelsConfig, ShrinkConfig
from tenfold.data.channels import Raw, brightness, is_whole_tiff, png_chunks, read_channels
from tenfold.errors import BadImageError

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of odd tags; what cannot be read is an error
Image.MAX_IMAGE_PIXELS = None  # decode() has a limit of its own, checked from the header

#: Told by content, whatever the file's name. Not all that Pillow knows: PostScript would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_EXIF_ORIENTATION = 0x0112
#: Level at which photographs are written as PNG: higher ones take far longer for hardly fewer bytes.
_FAST = 1
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N", "I"}


#: Pixels of an image that was found to be no larger than allowed when it was packed: any number.
CHECKED = 1 << 62


@dataclass(frozen=True)
class Decoded:
    """An image that was read whole.

    Attributes:
        pixels: height x width x 3, uint8, RGB.
        encoded: the bytes to keep.
        extension: ``jpg`` or ``png``, of ``encoded``.
    """

    pixels: NDArray[np.uint8]
    encoded: bytes
    extension: str


@dataclass(frozen=True)
class Examined:
    """What is known of an image that goes into a shard.

    Attributes:
        encoded: the bytes to keep.
        extension: ``jpg``, ``png``, ``tif`` or ``npy``, of ``encoded``.
        width: in pixels, of ``encoded``.
        height: the same.
        look: perceptual hash: whether each of 8 x 8 cells is brighter than its right neighbour (dHash), 64 bits.
    """

    encoded: bytes
    extension: str
    width: int
    height: int
    look: int


def decode(data: bytes, max_pixels: int = 64_000_000) -> Decoded:
    """Decode ``data`` to RGB.

    16-bit greys are scaled by 1/257 and rounded; transparent pixels are laid on white; the EXIF rotation is
    applied; of an animation the first frame is taken.

    Raises:
        BadImageError: empty, no image, truncated, damaged, or more than ``max_pixels`` by its header.
    """
    image = _opened(data, max_pixels)
    with _reading():
        image.load()
        plain = _is_plain(image, data)
        rgb = _to_rgb(image)
    pixels = np.asarray(rgb)
    if plain:
        return Decoded(pixels, data, _extension(image))
    return Decoded(pixels, encode_png(pixels, _FAST), "png")


def read_pixels(data: bytes, pixels: PixelsConfig | None, max_pixels: int = CHECKED) -> Raw:
    """Return an image as training sees it, contiguous (height, width, channels): RGB, or what ``pixels`` says.

    Values above its ``white`` are cut to it.

    Args:
        data: an encoded image, one of a shard unless ``max_pixels`` says how large it may be.
        pixels: what it must be.
        max_pixels: at most this many, by its header.

    Raises:
        BadImageError: it cannot be decoded.
    """
    if pixels is None:
        return np.ascontiguousarray(decode(data, max_pixels).pixels)
    values = read_channels(data, pixels, max_pixels)[0]
    return values if pixels.white is None else np.minimum(values, values.dtype.type(pixels.white))


def examine(
    data: bytes, max_pixels: int = 64_000_000, shrink: ShrinkConfig | None = None, pixels: PixelsConfig | None = None
) -> Examined:
    """Check that ``data`` is a whole image, and say what of it is kept.

    All of the compressed data is read. Of a plain JPEG the pixels are not computed in full: its coefficients are, which
    is where damage shows, and from those a picture of an eighth of the size.

    Args:
        data: as in :func:`decode`.
        max_pixels: as in :func:`decode`.
        shrink: make large images smaller.
        pixels: what they must be, if not what can be made RGB.

    Raises:
        BadImageError: as :func:`decode`, or :func:`tenfold.data.channels.read_channels`.
    """
    if pixels is not None:
        values, extension = read_channels(data, pixels, max_pixels)
        if extension == "tif" and not is_whole_tiff(data, pixels, values):
            raise BadImageError("a TIFF that lacks parts of its data")
        look = _look(Image.fromarray(brightness(values)))
        return Examined(data, extension, values.shape[1], values.shape[0], look)
    image = _opened(data, max_pixels)
    width, height = image.size
    large = shrink is not None and max(width, height) > shrink.longest
    if not large and image.format == "JPEG":
        with _reading():
            plain = _is_plain(image, data)
            if plain:
                image.draft("L", (9 * 8, 8 * 8))
                assert isinstance(image, ImageFile.ImageFile)
                image.decodermaxblock = len(data)  # at once: at each end of a block the decoder goes back a row
                image.load()
        if plain:
            return Examined(data, "jpg", width, height, _look(image))
    decoded = decode(data, max_pixels)
    rgb = Image.fromarray(decoded.pixels)
    if large:
        assert shrink is not None
        rgb.thumbnail((shrink.longest, shrink.longest), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        rgb.save(buffer, format="JPEG", quality=shrink.quality, subsampling=0 if shrink.quality > 90 else 2)
        return Examined(buffer.getvalue(), "jpg", *rgb.size, _look(rgb))
    return Examined(decoded.encoded, decoded.extension, *rgb.size, _look(rgb))


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadImageError("not an image" + _looks_like(data)) from None
    except Exception as error:  # whatever Pillow stumbles over, one image must not end the run
        raise BadImageError(f"damaged header: {_told(error)}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} pixels, more than max_pixels={max_pixels}")
    return image


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise BadImageError(f"truncated or damaged: {_told(error)}") from None


def _extension(image: Image.Image) -> str:
    return "jpg" if image.format == "JPEG" else "png"


def _look(image: Image.Image) -> int:
    small = image.resize((9, 8), Image.Resampling.BOX, reducing_gap=1.0 if max(image.size) > 256 else None)
    cells = np.frombuffer((small if small.mode == "L" else small.convert("L")).tobytes(), np.uint8).reshape(8, 9)
    return int.from_bytes(np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes(), "big")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__} {error}"


def encode_png(pixels: NDArray[np.uint8], level: int = 6) -> bytes:
    """Return ``pixels`` (height x width x 3, or height x width) as a PNG; a higher ``level`` is slower and smaller."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=level)
    return buffer.getvalue()


def _is_plain(image: Image.Image, data: bytes) -> bool:
    if image.format not in {"JPEG", "PNG"} or image.mode not in {"RGB", "L"} or "transparency" in image.info:
        return False
    if image.format == "PNG" and data[24] != 8:  # IHDR's bit depth: Pillow drops the low byte of 16-bit RGB
        return False
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        return False
    # Pillow forgives what other decoders refuse
    return png_chunks(data) is not None if image.format == "PNG" else _is_sound_jpeg(data)


#: A marker within entropy-coded data: 0xFF and neither a stuffed zero nor a restart.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _is_sound_jpeg(data: bytes) -> bool:
    """Tell whether segments follow each other without a stray byte, up to the end of the image."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xD9:
            return True
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == 0xDA:
            found = _MARKER.search(data, at)
            if found is None:
                return False
            at = found.start()
    return data[at : at + 2] == b"\xff\xd9"


def _to_rgb(image: Image.Image) -> Image.Image:
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if image.mode in _SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.float64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("grey values outside 16 bits")
        grey = np.rint(wide / 257).astype(np.uint8)
        converted = Image.fromarray(grey).convert("RGB")
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    elif image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        over = image.convert("RGBA")
        converted = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB")
    else:
        converted = image.convert("RGB")
    return converted.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else converted


def _looks_like(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return " but a web page (HTML)"
    return ""
