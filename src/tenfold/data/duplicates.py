"""Equal images, and images that look alike: among the training images, and between training and test.

Equal means the same bytes. Looking alike is told by a perceptual hash of 64 bits (dHash, see
:mod:`tenfold.data.decode`): two images whose hashes differ in at most ``NEAR`` bits are, with few exceptions, one
photograph in another size or compression. Small images hold too little for such a hash and are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

#: Bits in which the hashes of two pictures of one thing may differ.
NEAR = 3
#: The shorter side of an image must have at least this many pixels for its hash to mean something.
LEAST_SIDE = 32
_BANDS = NEAR + 1  # of two hashes that differ in NEAR bits, one band at least is equal
_CROWD = 64  # a band's value that more training images have says nothing (plain backgrounds)


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Attributes:
        equal: training images that are copies of another training image.
        equal_tests: the same of test images, each of which counts again in every accuracy.
        alike: (training path, test path, differing bits) of images that look alike on both sides.
    """

    equal: int
    equal_tests: int
    alike: list[tuple[str, str, int]]


def find_duplicates(train: pa.Table, test: pa.Table) -> Duplicates:
    """Compare packed images by the columns ``path``, ``content``, ``look``, ``width`` and ``height``."""
    equal, tests = (len(images) - int(pc.count_distinct(images["content"]).as_py()) for images in (train, test))
    (train, left), (test, right) = _told(train), _told(test)
    pairs = near(left, right)
    names, others = train["path"], test["path"]
    alike = [(names[int(i)].as_py(), others[int(j)].as_py(), int(bits)) for i, j, bits in pairs]
    return Duplicates(equal, tests, sorted(alike, key=lambda pair: (pair[2], pair)))


def _told(images: pa.Table) -> tuple[pa.Table, NDArray[np.uint64]]:
    """Return the images whose hash means something, and their hashes."""
    large = pc.and_(pc.greater_equal(images["width"], LEAST_SIDE), pc.greater_equal(images["height"], LEAST_SIDE))
    varied = pc.not_equal(images["look"], pa.scalar(0, pa.uint64()))  # one colour
    images = images.filter(pc.and_(large, varied))
    return images, images["look"].to_numpy().astype(np.uint64)


def near(train: NDArray[np.uint64], test: NDArray[np.uint64], bits: int = NEAR) -> list[tuple[int, int, int]]:
    """Return (number in ``train``, number in ``test``, differing bits) of all hashes at most ``bits`` apart.

    Hashes are cut into ``bits + 1`` bands. Two that are near have a band in common, so those alone are compared that
    do; a band that very many training images have is left out.
    """
    found: dict[tuple[int, int], int] = {}
    width = 64 // _BANDS
    for band in range(_BANDS):
        shift = np.uint64(band * width)
        mask = np.uint64((1 << width) - 1)
        mine, its = (train >> shift) & mask, (test >> shift) & mask
        order = np.argsort(mine, kind="stable")
        ranked = mine[order]
        low, high = np.searchsorted(ranked, its, "left"), np.searchsorted(ranked, its, "right")
        for number in np.flatnonzero((high > low) & (high - low <= _CROWD)):
            others = order[low[number] : high[number]]
            distance = np.bitwise_count(train[others] ^ test[number])
            for other, apart in zip(others[distance <= bits], distance[distance <= bits], strict=True):
                found[int(other), int(number)] = int(apart)
    return [(*pair, apart) for pair, apart in sorted(found.items())]
