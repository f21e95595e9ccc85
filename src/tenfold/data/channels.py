"""Images that are no 8-bit RGB: any number of channels, 8 or 16 bits each, as PNG, TIFF or NumPy's NPY.

They are kept as the bytes they were, and read by imagecodecs (PNG), tifffile (TIFF, with imagecodecs for what is
compressed) and by NPY's header. Their channels stand as they are stored: nothing is blended, no rotation tag
is applied, and a PNG with a palette is refused.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.config import PixelsConfig
from tenfold.errors import BadImageError

Raw = NDArray[np.uint8] | NDArray[np.uint16]

_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PALETTE = 3
#: Channels of a PNG by its colour type.
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
#: Compressions of TIFF that are read. The others gain nothing here, and some of their decoders crash on damaged data.
_CODECS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"}
#: 0 is black, and RGB.
_PHOTOMETRIC = {1, 2}
_LARGEST_TILE = 1 << 22
_NPY_HEADER = {"descr": "'([^']*)'", "fortran_order": "(True|False)", "shape": r"\(([\d, ]*)\)"}
#: What libraries tell of damaged files is told by the error that they raise.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_channels(data: bytes, wanted: PixelsConfig, max_pixels: int = 64_000_000) -> tuple[Raw, str]:
    """Decode an image of ``wanted`` channels and bits.

    Args:
        data: an encoded image.
        wanted: what it must have.
        max_pixels: at most the bytes that so many pixels of 8-bit RGB would take, by its header.

    Returns:
        (height, width, channels), uint8 or uint16; and the extension of ``data``: ``png``, ``tif`` or ``npy``.

    Raises:
        BadImageError: empty, of another format, damaged, too large, or of other channels or bits.
    """
    if not data:
        raise BadImageError("empty file")
    read, extension = _reader(data)
    try:
        with np.errstate(all="ignore"):  # an odd header may make tifffile divide by 0
            values = read(data, wanted, max_pixels)
    except BadImageError:
        raise
    except Exception as error:  # whatever a library stumbles over, one image must not end the run
        # its own words are left out: some hold addresses in memory, and a reason is part of the manifest
        raise BadImageError(f"truncated or damaged {extension.upper()} ({type(error).__name__})") from None
    return np.ascontiguousarray(values), extension


def is_whole_tiff(data: bytes, wanted: PixelsConfig, values: Raw) -> bool:
    """Tell whether all ``values`` that :func:`read_channels` gave come from a TIFF's data.

    tifffile leaves what a damaged part does not yield as it finds it, which is another value here.
    """
    with contextlib.suppress(Exception):
        return np.array_equal(_read_tiff(data, wanted, values.size, fill=255), values)
    return False


def _reader(data: bytes) -> tuple[Any, str]:
    if data.startswith(_PNG):
        return _read_png, "png"
    if data.startswith(_TIFF):
        return _read_tiff, "tif"
    if data.startswith(_NPY):
        return _read_npy, "npy"
    raise BadImageError("no PNG, TIFF or NPY, which is what data.pixels is read from")


def png_chunks(data: bytes) -> list[bytes] | None:
    """Return the kinds of a PNG's chunks; None where one is not whole and right, or bytes follow the last."""
    at, kinds = 8, list[bytes]()
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + size
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        at = end + 4
        kinds.append(kind)
        if kind == b"IEND":
            return kinds if at == len(data) else None
    return None


def _read_png(data: bytes, wanted: PixelsConfig, max_pixels: int) -> NDArray[Any]:
    import imagecodecs

    width, height, bits, colours = struct.unpack_from(">IIBB", data, 16)
    kinds = png_chunks(data)
    if kinds is None:
        raise BadImageError("a PNG of which a chunk is damaged or missing, or bytes follow its end")
    if colours == _PALETTE or b"tRNS" in kinds:
        raise BadImageError("a PNG with a palette or a transparent colour; its channels are not told by its pixels")
    _require((height, width, _PNG_CHANNELS[colours]), f"uint{bits}", wanted, max_pixels)
    return np.asarray(imagecodecs.png_decode(data)).reshape(height, width, -1)


def _read_tiff(data: bytes, wanted: PixelsConfig, max_pixels: int, fill: int = 0) -> NDArray[Any]:
    import tifffile

    # without OME's XML, whose claims would be believed before they are looked at
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as file:
        series = file.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
        others = [axis for axis in series.axes if axis not in "YX" and sizes[axis] > 1]
        if len(others) > 1:
            raise BadImageError(f"an image of the axes {series.axes}, {series.shape}; one of channels is needed")
        channels = sizes[others[0]] if others else 1
        _require((sizes["Y"], sizes["X"], channels), str(series.dtype), wanted, max_pixels)
        for page in series.pages:
            _require_page(page if page is None else page.aspage(), wanted, len(data))
        values = series.asarray(maxworkers=1, out=np.full(series.shape, fill, series.dtype))
        order = [series.axes.index(axis) for axis in ("Y", "X", *others)]
        dropped = [place for place in range(values.ndim) if place not in order]
        return np.transpose(values, [*order, *dropped]).reshape(sizes["Y"], sizes["X"], channels)


def _require_page(page: Any, wanted: PixelsConfig, size: int) -> None:
    """Refuse a page that is not plain and whole: tifffile leaves memory as it was where a part is missing."""
    if page is None:
        raise BadImageError("a TIFF without one of its pages")
    if page.compression not in _CODECS:
        told = ", ".join(dict.fromkeys(_CODECS.values()))
        raise BadImageError(f"a TIFF compressed by {_named(page.compression)}; {told} are read")
    if page.photometric not in _PHOTOMETRIC or page.bitspersample != wanted.bits:
        raise BadImageError(
            f"a TIFF of {page.bitspersample} bits with the photometric interpretation {_named(page.photometric)}; "
            f"{wanted.bits} bits, and 0 for black, or red, green and blue, are read"
        )
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != math.prod(page.chunked) or len(counts) != len(offsets) or min(counts) < 1:
        raise BadImageError("a TIFF that lacks parts of its data")
    if any(offset + count > size for offset, count in zip(offsets, counts, strict=True)):
        raise BadImageError("a TIFF that ends early")
    if math.prod(page.chunks) > max(math.prod(page.shape), _LARGEST_TILE):
        raise BadImageError(f"a TIFF of tiles of {page.chunks}, which are larger than its image of {page.shape}")


def _named(code: Any) -> str:
    return str(getattr(code, "name", code))


def _read_npy(data: bytes, wanted: PixelsConfig, max_pixels: int) -> NDArray[Any]:
    """Read an array by its header's text: NumPy's reader parses it as Python, which now and then fails in threads."""
    start = 10 if data[6:7] == b"\x01" else 12  # version 1 has two bytes for the header's length, later ones four
    end = start + int.from_bytes(data[8:start], "little")
    header = data[start:end].decode("latin-1")
    fields = [re.search(rf"'{name}': *{value}", header) for name, value in _NPY_HEADER.items()]
    kind_told, order, sides = ("" if found is None else found[1] for found in fields)
    if not kind_told or not order or None in fields:
        raise BadImageError("an NPY file with a header that is not understood")
    kind = np.dtype(kind_told)
    if kind.hasobject:
        raise BadImageError("an array of Python objects, which is never unpickled")
    shape = tuple(int(side) for side in sides.split(",") if side.strip())
    shape = (*shape, 1) if len(shape) == 2 else shape
    _require(shape, kind.newbyteorder("=").name, wanted, max_pixels)
    values = np.frombuffer(data, kind, offset=end).reshape(shape, order="F" if order == "True" else "C")
    return values.astype(kind.newbyteorder("="), copy=False)


def _require(shape: tuple[int, ...], kind: str, wanted: PixelsConfig, max_pixels: int) -> None:
    """Refuse an image by its header, before anything of its size is made."""
    if len(shape) != 3 or min(shape) < 1:
        raise BadImageError(f"an array of the shape {shape}; height x width x channels is needed")
    height, width, channels = shape
    if width * height * channels * wanted.bits // 8 > 3 * max_pixels:
        raise BadImageError(
            f"{width} x {height} pixels with {channels} channels, more bytes than RGB of max_pixels={max_pixels}"
        )
    if channels != wanted.channels or kind != f"uint{wanted.bits}":
        raise BadImageError(
            f"{channels} channels of {kind}, where data.pixels says {wanted.channels} of uint{wanted.bits}"
        )


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
    return _scaled(values.mean(axis=2, dtype=np.float32))


def _scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
    scaled = values.astype(np.float32)
    scaled *= 255 / max(float(values.max()), 1e-9)
    return np.rint(scaled, out=scaled).astype(np.uint8)
