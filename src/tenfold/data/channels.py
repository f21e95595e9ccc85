"""Images that are no 8-bit RGB: any number of channels, 8 or 16 bits each, as PNG, TIFF or NumPy's NPY.

They are kept as the bytes they were, and read by imagecodecs (PNG), tifffile (TIFF, with imagecodecs for what is
compressed) and NumPy's own header reader. Their channels stand as they are stored: no palette, no blending, no rotation
tag is applied.
"""

from __future__ import annotations

import io
import logging
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.config import PixelsConfig
from tenfold.errors import BadImageError

Raw = NDArray[np.uint8] | NDArray[np.uint16]

_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: What libraries tell of damaged files is told by the error that they raise.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_channels(data: bytes, wanted: PixelsConfig, max_pixels: int = 64_000_000) -> tuple[Raw, str]:
    """Decode an image of ``wanted`` channels and bits.

    Args:
        data: an encoded image.
        wanted: what it must have.
        max_pixels: at most this many, by its header.

    Returns:
        (height, width, channels), uint8 or uint16; and the extension of ``data``: ``png``, ``tif`` or ``npy``.

    Raises:
        BadImageError: empty, of another format, damaged, too large, or of other channels or bits.
    """
    if not data:
        raise BadImageError("empty file")
    read, extension = _reader(data)
    try:
        values = read(data, max_pixels)
    except BadImageError:
        raise
    except Exception as error:  # whatever a library stumbles over, one image must not end the run
        raise BadImageError(f"truncated or damaged: {type(error).__name__} {error}") from None
    values = values[:, :, None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise BadImageError(f"an array of the shape {values.shape}; height x width x channels is needed")
    found = f"{values.shape[2]} channels of {values.dtype}"
    if values.shape[2] != wanted.channels or values.dtype != np.dtype(f"uint{wanted.bits}"):
        raise BadImageError(f"{found}, where data.pixels says {wanted.channels} of uint{wanted.bits}")
    return np.ascontiguousarray(values), extension


def _reader(data: bytes) -> tuple[Any, str]:
    if data.startswith(_PNG):
        return _read_png, "png"
    if data.startswith(_TIFF):
        return _read_tiff, "tif"
    if data.startswith(_NPY):
        return _read_npy, "npy"
    raise BadImageError("no PNG, TIFF or NPY, which is what data.pixels is read from")


def _read_png(data: bytes, max_pixels: int) -> NDArray[Any]:
    import imagecodecs

    width, height = struct.unpack_from(">II", data, 16)
    _bounded(width, height, max_pixels)
    if not data.endswith(b"IEND\xaeB`\x82"):
        raise ValueError("it ends early")
    return np.asarray(imagecodecs.png_decode(data))


def _read_tiff(data: bytes, max_pixels: int) -> NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
        _bounded(sizes["X"], sizes["Y"], max_pixels)
        others = [axis for axis in series.axes if axis not in "YX" and sizes[axis] > 1]
        if len(others) > 1:
            raise BadImageError(f"an image of the axes {series.axes}, {series.shape}; one of channels is needed")
        channels = sizes[others[0]] if others else 1
        _bounded(sizes["X"] * channels, sizes["Y"], max_pixels * 64)
        for page in series.pages:
            if page is None or any(
                offset + count > len(data) for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            ):
                raise ValueError("it ends early")
        values = series.asarray(maxworkers=1)
        order = [series.axes.index(axis) for axis in ("Y", "X", *others)]
        dropped = [place for place in range(values.ndim) if place not in order]
        return np.transpose(values, [*order, *dropped]).reshape(sizes["Y"], sizes["X"], channels)


def _read_npy(data: bytes, max_pixels: int) -> NDArray[Any]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, by_column, kind = readers[version](file)
    if kind.hasobject:
        raise BadImageError("an array of Python objects, which is never unpickled")
    _bounded(shape[1] if len(shape) > 1 else 0, shape[0] if shape else 0, max_pixels)
    values = np.frombuffer(data, kind, offset=file.tell()).reshape(shape, order="F" if by_column else "C")
    return values.astype(kind.newbyteorder("="), copy=False)


def _bounded(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} pixels, more than max_pixels={max_pixels}")


def encode_npy(values: Raw) -> bytes:
    """Return an image (height, width, channels) as NPY."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def as_rgb(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a picture for people: the first three channels, or the first as grey; the largest value is 255."""
    shown = values[:, :, :3] if values.shape[2] >= 3 else values[:, :, [0, 0, 0]]
    return _scaled(shown)


def brightness(values: Raw) -> NDArray[np.uint8]:
    """Return the mean over the channels (H, W), scaled so that the brightest pixel is 255."""
    return _scaled(values.mean(axis=2))


def _scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(values * (255 / max(float(values.max()), 1e-9))).astype(np.uint8))
