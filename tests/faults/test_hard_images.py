"""F10: images that decoders read differently, from the source through the shards to what a network sees.

The golden pixels are computed from what each format means; both backends must show them.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pictures import picture
from PIL import Image

from tenfold.augment.spec import ViewSpec
from tenfold.augment.stream import one_pass
from tenfold.config import DataConfig, EvalViewConfig, ViewConfig
from tenfold.data.build import build_dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.predictor import evaluation_views
from tenfold.storage import FileStore

#: Side of the images, and by how many grey levels a JPEG of the best quality may differ from what was written.
SIDE, JPEG = 16, 5
Pixels = NDArray[np.uint8]


def scene() -> Pixels:
    """A smooth picture with another corner in each place, so that a rotation or a swapped channel shows."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    return np.stack([40 + 200 * rows, 30 + 160 * columns, 220 - 180 * rows * columns], -1).round().astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png16(samples: NDArray[np.uint16]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2 if samples.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def hard() -> dict[str, tuple[bytes, Pixels, int]]:
    """Return each image's bytes, its golden pixels, and by how many grey levels it may differ."""
    rgb, picture_ = scene(), Image.fromarray(scene())
    grey = rgb[..., 0]
    alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
    alpha[:8] = 51
    over = np.rint((rgb * (alpha / 255)) + 255 * (1 - alpha / 255)).astype(np.uint8)
    ink = 255 - rgb
    wide = grey.astype(np.uint16) * 257 + 100  # Pillow's own conversion would make all of it white
    palette = np.array([[250, 10, 20], [10, 240, 30], [20, 30, 230], [200, 200, 10]], np.uint8)
    indices = (np.indices((SIDE, SIDE)).sum(0) % 4).astype(np.uint8)
    indexed = Image.fromarray(indices).convert("L")
    indexed = Image.frombytes("P", (SIDE, SIDE), indices.tobytes())
    indexed.putpalette(palette.flatten().tolist())
    shown = palette[indices].copy()
    shown[indices == 1] = 255
    as_rgb = np.repeat(grey[..., None], 3, 2)
    clockwise = saved(Image.fromarray(np.rot90(rgb).copy()), "PNG", exif=turned(6))
    return {
        "cmyk.jpg": (saved(Image.fromarray(np.dstack([ink, ink[..., 0] * 0]), "CMYK"), "JPEG", quality=100), rgb, JPEG),
        "palette.png": (saved(indexed, "PNG", transparency=bytes([255, 0, 255, 255])), shown, 1),
        "grey.jpg": (saved(Image.fromarray(grey), "JPEG", quality=100), as_rgb, JPEG),
        "grey-alpha.png": (
            saved(Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG"),
            np.repeat(np.rint(grey * (alpha[..., 0] / 255) + 255 * (1 - alpha[..., 0] / 255))[..., None], 3, 2), 1,
        ),
        "rotated.png": (clockwise, rgb, 1),
        "mirrored.jpg": (saved(Image.fromarray(rgb[:, ::-1].copy()), "JPEG", quality=100, subsampling=0,
                               exif=turned(2)), rgb, JPEG),
        "wide-grey.png": (png16(wide), np.rint(np.repeat(wide[..., None], 3, 2) / 257), 1),
        "wide-rgb.png": (png16(rgb.astype(np.uint16) * 256 + 7), rgb, 1),
        "alpha.webp": (saved(Image.fromarray(np.dstack([rgb, alpha])), "WEBP", lossless=True, exact=True), over, 1),
        "progressive.jpg": (saved(picture_, "JPEG", quality=100, subsampling=0, progressive=True), rgb, JPEG),
        "bilevel.png": (saved(Image.fromarray(grey > 120), "PNG"), as_rgb * 0 + (as_rgb > 120) * 255, 1),
        "animated.gif": (
            saved(Image.new("RGB", (SIDE, SIDE), "#ff0000"), "GIF", save_all=True,
                  append_images=[Image.new("RGB", (SIDE, SIDE), "#00ff00")]),
            np.full((SIDE, SIDE, 3), (255, 0, 0)), 1,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    folder = tmp_path_factory.mktemp("hard")
    for name, (data, _, _) in hard().items():
        path = folder / "images" / "train" / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for split, first in (("train", 0), ("test", 10)):
        for number in range(first, first + 4):
            path = folder / "images" / split / ("odd" if number % 2 else "even") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    source = str(folder / "images")
    config = DataConfig.model_validate({"source": source, "labels": {"per_class": 1}})
    dataset, _ = build_dataset(open_source(source), config, FileStore(folder / "store"))
    assert not dataset.manifest.quarantined
    return SplitReader(dataset, "unlabelled")


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
@pytest.mark.parametrize("evaluated", [True, False])
def test_both_backends_show_the_golden_pixels(reader: SplitReader, backend: Any, evaluated: bool) -> None:
    view, plain = EvalViewConfig(crop_proportion=1.0), ViewConfig(crop=None, flip=0)
    spec = ViewSpec(
        backend=backend, image_size=SIDE, view=None if evaluated else plain, evaluation=view if evaluated else None
    )
    seen: dict[str, NDArray[Any]] = {}
    for batch in one_pass(reader, [spec], 5, 0, torch.device("cpu"), 1):
        for number, image in zip(batch.numbers.tolist(), batch.views[0], strict=True):
            seen[reader.path(number).rpartition("/")[2]] = 255 * image.permute(1, 2, 0).numpy()
    for name, (_, golden, tolerance) in hard().items():
        assert np.abs(seen[name] - golden).max() <= tolerance, name


def test_serving_shows_the_golden_pixels_of_the_files_themselves() -> None:
    found = evaluation_views([data for data, _, _ in hard().values()], EvalViewConfig(crop_proportion=1.0), SIDE)
    for image, (name, (_, golden, tolerance)) in zip(found, hard().items(), strict=True):
        assert np.abs(255 * image.permute(1, 2, 0).numpy() - golden).max() <= tolerance, name
