"""torchvision's data sets by name, downloaded where they are not there yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tenfold.data.decode import encode_png
from tenfold.data.tables import Line, Split
from tenfold.errors import DataError, did_you_mean
from tenfold.storage import Entry

#: An address that begins so names a data set of torchvision.
SCHEME = "torchvision://"
_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}
#: Data sets with one class an image, and what torchvision calls their parts.
_SETS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    **dict.fromkeys(["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"], _BY_FLAG),
    **dict.fromkeys(["SVHN", "Food101", "GTSRB", "DTD", "Flowers102", "PCAM"], _BY_NAME),
    "STL10": {**_BY_NAME, "unlabelled": {"split": "unlabeled"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "FGVCAircraft": {"train": {"split": "trainval"}, "test": {"split": "test"}},
}


class TorchvisionSource:
    """A data set of torchvision; its images are handed on as PNG."""

    def __init__(self, uri: str, folder: Path) -> None:
        """Open ``torchvision://NAME``, whose files are or come to be below ``folder``.

        Raises:
            DataError: no such data set, or it is neither there nor to be had from here.
        """
        import torchvision

        name = uri.removeprefix(SCHEME).strip("/")
        if name not in _SETS:
            raise DataError(f"{uri}: no data set '{name}'{did_you_mean(name, list(_SETS))}; known: {', '.join(_SETS)}")
        self.uri = SCHEME + name
        self._parts: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for part, options in _SETS[name].items():
            make = getattr(torchvision.datasets, name)
            try:
                self._parts[part] = make(str(folder), download=True, **options)
            except Exception as error:  # whatever is wrong between here and there
                raise DataError(
                    f"{self.uri} is not whole in {folder} and cannot be downloaded: {error}; fetch it elsewhere and "
                    "put it there"
                ) from None

    def list(self) -> Iterator[Entry]:
        """See :class:`tenfold.data.sources.Source`."""
        for part, images in self._parts.items():
            yield from (Entry(f"{part}/{number:07d}.png", 0, self.uri) for number in range(len(images)))

    def lines(self) -> Iterator[Line]:
        """See :class:`tenfold.data.sources.Source`."""
        for part, images in self._parts.items():
            split: Split = "test" if part == "test" else "train"
            for number, label in enumerate(_labels(images)):
                named = None if part == "unlabelled" else label
                yield Line(f"{part}/{number:07d}.png", named, split, None, number)

    def read(self, path: str) -> bytes:
        """See :class:`tenfold.data.sources.Source`."""
        part, _, name = path.partition("/")
        image = self._parts[part][int(name.removesuffix(".png"))][0]
        assert isinstance(image, Image.Image)
        return encode_png(np.asarray(image if image.mode in {"L", "RGB"} else image.convert("RGB")))


def _labels(images: Any) -> Iterator[str]:
    numbers = next((getattr(images, name) for name in ("targets", "labels", "_labels") if hasattr(images, name)), None)
    if numbers is None:
        numbers = [images[number][1] for number in range(len(images))]
    names = getattr(images, "classes", None)
    for number in (int(each) for each in numbers):
        yield str(names[number]) if names and 0 <= number < len(names) else str(number)
