"""Where images come from: scikit-learn's digits, a folder, or the same layout below an S3 prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tenfold.data.decode import encode_png
from tenfold.storage import Entry, Store, open_store


class Source(Protocol):
    """A set of images."""

    uri: str

    def list(self) -> Iterator[Entry]:
        """Yield every file, in no promised order; a size of 0: not known."""

    def read(self, path: str) -> bytes:
        """Return one file's bytes."""


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


def open_source(uri: str, *, patient: bool = True) -> Source:
    """Open ``digits``, a folder or an ``s3://`` prefix."""
    return DigitsSource() if uri == "digits" else StoreSource(open_store(uri, patient=patient))
