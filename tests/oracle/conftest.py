"""Weights and inputs that the oracle's numbers were made with: both follow from names alone."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

HERE = Path(__file__).parent
#: Where the files lie that are too big for the repository.
FAR = Path(os.environ.get("TENFOLD_ORACLE", HERE.parents[2] / "shared" / "oracle"))


@pytest.fixture
def arrays() -> Iterator[Callable[[str], Any]]:
    """Return a reader of ``NAME.npz`` in this folder."""
    opened = []

    def read(name: str) -> Any:
        opened.append(np.load(HERE / f"{name}.npz", allow_pickle=False))
        return opened[-1]

    yield read
    for file in opened:
        file.close()


@pytest.fixture
def far() -> Path:
    """Return the folder of the big files; skip where it is not there."""
    if not FAR.is_dir():
        pytest.skip(f"the oracle's checkpoints are not in {FAR}; TENFOLD_ORACLE says where they are")
    return FAR


@pytest.fixture
def official() -> Callable[[str, tuple[int, ...]], NDArray[np.float64]]:
    """Return the official network's weight of a TF1 name and shape."""

    def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
        leaf = name.rpartition("/")[2]
        if leaf == "kernel":
            scale = 2.0 ** np.round(np.log2(1 / (2 * np.sqrt(prod(shape[:-1])))))
            return np.asarray(rng.randint(-3, 4, size=shape) * scale)
        if leaf in {"gamma", "moving_variance"}:
            return np.asarray(0.5 + rng.randint(0, 9, size=shape) / 8)
        return np.asarray(rng.randint(-8, 9, size=shape) / 16)

    return weight


@pytest.fixture
def images() -> Callable[[str, bool], NDArray[np.float32]]:
    """Return the input of a tag, (N, H, W, channels) in [0, 1]."""
    large = {"a": (2, 64, 64, 3), "b": (2, 65, 65, 3), "c": (1, 224, 224, 3), "t": (4, 64, 64, 6)}
    small = {"a": (4, 32, 32, 3), "b": (2, 33, 33, 3), "t": (4, 32, 32, 6)}

    def make(tag: str, is_small: bool) -> NDArray[np.float32]:
        rng = np.random.RandomState(zlib.crc32(f"input/{tag}".encode()) & 0x7FFFFFFF)
        shape = (small if is_small else large)[tag]
        return (rng.randint(0, 256, size=shape) / 255).astype(np.float32)

    return make
