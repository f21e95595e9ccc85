"""Where images come from: a folder, an S3 prefix, a list of addresses, or a data set of one file or package."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.typing import NDArray

from tenfold.data.decode import encode_png
from tenfold.data.named import SCHEME, TorchvisionSource
from tenfold.data.tables import Line, Split, parted, read_lines
from tenfold.data.tars import TarSource
from tenfold.environment import Environment
from tenfold.errors import DataError
from tenfold.storage import Entry, Store, open_store

#: A source whose address ends so is a table of images.
TABLES = (".csv", ".parquet")


class Source(Protocol):
    """A set of images."""

    uri: str

    def list(self) -> Iterator[Entry]:
        """Yield every file, in no promised order; a size of 0: not known."""

    def read(self, path: str) -> bytes:
        """Return one file's bytes."""

    def lines(self) -> Iterator[Line] | None:
        """Return what the source itself says of its images; None: their folders say it."""


class DigitsSource:
    """scikit-learn's ``load_digits``: 1,797 grey images of 8 x 8 pixels in 10 classes, as PNG files."""

    uri = "digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images = {
            f"{label}/{number:04d}.png": image
            for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True))
        }

    def list(self) -> Iterator[Entry]:
        """See :class:`Source`."""
        return (Entry(path, 0, "load_digits") for path in self._images)

    def read(self, path: str) -> bytes:
        """See :class:`Source`; 0..16 becomes 0..255."""
        return encode_png((self._images[path] * (255 / 16)).round().astype("uint8"))

    def lines(self) -> None:
        """See :class:`Source`."""
        return


class StoreSource:
    """Files below a folder or an S3 prefix."""

    def __init__(self, store: Store) -> None:
        self.store, self.uri = store, store.uri

    def list(self) -> Iterator[Entry]:
        """See :class:`Source`; hidden files are passed over, as folders do it and S3 does not."""
        return (entry for entry in self.store.list() if "/." not in f"/{entry.key}")

    def read(self, path: str) -> bytes:
        """See :class:`Source`."""
        return self.store.read(path)

    def lines(self) -> None:
        """See :class:`Source`."""
        return


class ListSource:
    """Images that a table names, wherever they are: ``s3://`` addresses, or paths relative to the table."""

    def __init__(self, uri: str, *, patient: bool = True) -> None:
        folder, self._name = parted(uri)
        self._base, self._patient = open_store(folder, patient=patient), patient
        self.uri = f"{self._base.uri}/{self._name}"
        self._stores: dict[str, Store] = {}

    def lines(self) -> Iterator[Line]:
        """See :class:`Source`."""
        return read_lines(self._base.read(self._name), self._name, self.uri)

    def list(self) -> Iterator[Entry]:
        """See :class:`Source`; nobody is asked for sizes and tags, so a changed image is not noticed."""
        return (Entry(line.path, 0, "") for line in self.lines())

    def read(self, path: str) -> bytes:
        """See :class:`Source`."""
        if "://" not in path and not path.startswith("/"):
            return self._base.read(path)
        folder, _, name = path.rpartition("/")
        if folder not in self._stores:
            self._stores[folder] = open_store(folder or "/", patient=self._patient)
        return self._stores[folder].read(name)


class IdxSource:
    """MNIST's format: ``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte`` and so on, each perhaps ``.gz``."""

    def __init__(self, folder: Path) -> None:
        self.uri = folder.as_uri()
        self._splits: dict[Split, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = (_idx(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
            if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
                raise DataError(f"{folder}: {len(images)} {prefix} images do not fit {len(labels)} labels")
            self._splits[cast(Split, split)] = images, labels

    @staticmethod
    def fits(folder: Path) -> bool:
        """Tell whether a folder holds such files."""
        return any((folder / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz"))

    def lines(self) -> Iterator[Line]:
        """See :class:`Source`."""
        for split, (_, labels) in self._splits.items():
            for number, label in enumerate(labels.tolist()):
                yield Line(f"{split}/{number:05d}.png", str(label), split, None, number)

    def list(self) -> Iterator[Entry]:
        """See :class:`Source`."""
        for split, (images, _) in self._splits.items():
            for number, image in enumerate(images):
                yield Entry(f"{split}/{number:05d}.png", 0, hashlib.sha256(image.tobytes()).hexdigest()[:16])

    def read(self, path: str) -> bytes:
        """See :class:`Source`."""
        split, _, name = path.partition("/")
        return encode_png(self._splits[cast(Split, split)][0][int(name.removesuffix(".png"))])


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, 8 for bytes, the number of dimensions, each as 4 bytes, the values."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder} has no {name} beside its other idx files")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
        if zero or kind != 8:
            raise ValueError("not of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path} is no whole IDX file of bytes: {error}") from None


def open_source(uri: str, *, patient: bool = True) -> Source:
    """Open ``digits``, a folder, an ``s3://`` prefix, a table of addresses, IDX files, or ``torchvision://NAME``."""
    if uri == "digits":
        return DigitsSource()
    if uri.startswith(SCHEME):
        return TorchvisionSource(uri, Environment.read().home / "datasets")
    if uri.endswith(TABLES):
        return ListSource(uri, patient=patient)
    folder = Path(unquote(urlparse(uri).path)) if uri.startswith("file:") else Path(uri)
    if "://" not in uri.removeprefix("file://") and IdxSource.fits(folder):
        return IdxSource(folder.absolute())
    store = open_store(uri, patient=patient)
    return TarSource(store) if TarSource.fits(store) else StoreSource(store)
