"""Which images two data sets share, by content: the first 64 bits of each image's sha256.

They are 8 bytes in memory for each; among a hundred million images one pair would be taken for the same with a chance
of 1 in 3,000.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tenfold.data.annotations import Row
from tenfold.data.build import read_record
from tenfold.data.changes import known_images
from tenfold.data.manifest import Dataset, SplitName
from tenfold.errors import DataError

_COLUMNS = [*Row._fields, "content", "shard", "row"]


def count_new(dataset: Dataset, known: Dataset) -> int:
    """Return how many different images are in ``dataset`` and not in ``known``, for training or for testing.

    Raises:
        DataError: nothing tells what one of them was made of.
        StorageError: what tells it is gone.
    """
    if dataset.digest == known.digest:
        return 0
    return int(np.setdiff1d(contents(dataset), contents(known), assume_unique=True).size)


def content_of(data: bytes) -> int:
    """Return an image's content, as the others here have it."""
    return int(hashlib.sha256(data).hexdigest()[:16], 16)


def contents(dataset: Dataset) -> NDArray[np.uint64]:
    """Return the different contents of a data set's images, in order.

    Raises:
        DataError: nothing tells what it was made of.
        StorageError: what tells it is gone.
    """
    content, shard = _COLUMNS.index("content"), _COLUMNS.index("shard")
    packed = (int(values[content][:16], 16) for values in _images(dataset) if values[shard] is not None)
    return np.unique(np.fromiter(packed, dtype=np.uint64))


class Numbered(NamedTuple):
    """Samples of a split: the number of each, and its content."""

    numbers: NDArray[np.int64]
    contents: NDArray[np.uint64]


def numbered(dataset: Dataset, split: SplitName) -> Numbered:
    """Return the samples of a split with their contents; no shard is fetched for it.

    Raises:
        DataError: nothing tells what the data set was made of.
        StorageError: what tells it is gone.
    """
    shards = dataset.manifest.splits[split].shards
    starts = np.cumsum([0, *(shard.kept for shard in shards)])
    places = {shard.sha256: place for place, shard in enumerate(shards)}
    dropped = [np.array(sorted(shard.dropped), dtype=np.int64) for shard in shards]
    content, shard, row = (_COLUMNS.index(name) for name in ("content", "shard", "row"))
    numbers, found = [], []
    for values in _images(dataset):
        place = places.get(values[shard])
        if place is None:
            continue
        before = int(np.searchsorted(dropped[place], values[row]))
        if before < len(dropped[place]) and dropped[place][before] == values[row]:
            continue
        numbers.append(int(starts[place]) + values[row] - before)
        found.append(int(values[content][:16], 16))
    return Numbered(np.array(numbers, dtype=np.int64), np.array(found, dtype=np.uint64))


def _images(dataset: Dataset) -> Iterator[tuple[Any, ...]]:
    """Yield the columns of what is recorded of each image."""
    record = read_record(dataset)
    if record is None:
        raise DataError(f"nothing beside the manifest of {dataset.uri} tells which images it was made of")
    return (image.values for image in known_images(record.history, dataset.store, _COLUMNS))
