"""TensorFlow's checkpoint files, read without TensorFlow.

A checkpoint is ``PREFIX.index``, a LevelDB table from tensor name to where its bytes lie, and
``PREFIX.data-0000i-of-0000n`` with the bytes. Tables of checkpoints are not compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tenfold.errors import DataError

_MAGIC, _FOOTER, _TRAILER = 0xDB4775248B80FB57, 48, 5
#: TensorFlow's numbers of the types that weights have.
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: data file ``shard``, ``size`` bytes from ``offset``, with a masked CRC-32C."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class TFCheckpoint:
    """The tensors of a checkpoint by name; both formats, of TF1's Saver and of TF2's ``tf.train.Checkpoint``."""

    def __init__(self, prefix: Path) -> None:
        """Read the index.

        Args:
            prefix: path without ``.index``, or a folder that holds one checkpoint.

        Raises:
            DataError: it is no checkpoint, or a file is missing, cut or damaged.
        """
        self.prefix = prefix = _prefix(prefix)
        index = prefix.with_name(prefix.name + ".index")
        try:
            table = dict(_table(index.read_bytes()))
            header = dict(_fields(table.pop(b"")))
            self._shards = int(header.get(1, 1))
            self.entries = {name.decode(): _entry(value) for name, value in table.items()}
        except (IndexError, KeyError, ValueError, struct.error) as error:
            raise DataError(f"{index} is no index of a TensorFlow checkpoint, or it is damaged: {error}") from None
        for shard in range(self._shards):
            path = self._path(shard)
            end = max((e.offset + e.size for e in self.entries.values() if e.shard == shard), default=0)
            if not path.is_file():
                raise DataError(f"the checkpoint {prefix} is incomplete: {path.name} is missing")
            if path.stat().st_size < end:
                raise DataError(f"{path} is cut: {path.stat().st_size:,} bytes where the index needs {end:,}")

    def _path(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self._shards:05d}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.entries[name].shape

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor.

        Raises:
            DataError: its bytes do not match their checksum, or its type is none of numbers.
        """
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise DataError(f"{self.prefix}: the tensor {name} is of TensorFlow's type {entry.dtype}, not of numbers")
        dtype = np.dtype(_DTYPES[entry.dtype])
        if prod(entry.shape) * dtype.itemsize != entry.size:
            raise DataError(f"{self.prefix}: the tensor {name} has {entry.size} bytes, not what {entry.shape} needs")
        with self._path(entry.shard).open("rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        if _mask(google_crc32c.value(data)) != entry.crc:
            raise DataError(f"{self._path(entry.shard)}: the tensor {name} does not match its checksum; fetch it again")
        return np.frombuffer(data, dtype).reshape(entry.shape).astype(np.float32)


def _prefix(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            raise DataError(f"{path} holds {len(found)} files *.index; name the checkpoint, e.g. {path}/model.ckpt-123")
        path = found[0]
    if path.suffix == ".index":
        path = path.with_suffix("")
    if not path.with_name(path.name + ".index").is_file():
        raise DataError(
            f"there is no TensorFlow checkpoint {path}: {path.name}.index is missing (weights of a timm model need "
            "--timm, a transformer of MAE or Semi-ViT --vit)"
        )
    return path


def _mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, lowest first, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of a LevelDB table; the index block names the data blocks."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("the end is not that of a table")
    at = len(data) - _FOOTER
    for _ in range(2):  # of the meta block
        _, at = _varint(data, at)
    offset, at = _varint(data, at)
    size, _ = _varint(data, at)
    for _, handle in _block(data, offset, size):
        start, at = _varint(handle, 0)
        length, _ = _varint(handle, at)
        yield from _block(data, start, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield a block's pairs; each key shares a prefix with the one before."""
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + _TRAILER]
    if len(trailer) < _TRAILER or trailer[0] != 0:
        raise ValueError("a block is cut or compressed")
    if _mask(google_crc32c.value(block + trailer[:1])) != struct.unpack("<I", trailer[1:])[0]:
        raise ValueError("a block does not match its checksum")
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field number and value of a protocol-buffer message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif kind == 5:
            value, at = struct.unpack("<I", message[at : at + 4])[0], at + 4
        elif kind == 1:
            value, at = struct.unpack("<Q", message[at : at + 8])[0], at + 8
        else:
            raise ValueError(f"a message has a field of the unknown kind {kind}")
        yield number, value


def _entry(message: bytes) -> Entry:
    """Read a BundleEntryProto."""
    found: dict[int, int] = {}
    shape: list[int] = []
    for number, value in _fields(message):
        if isinstance(value, int):
            found[number] = value
        elif number == 2:  # TensorShapeProto: repeated dimensions, each with its size
            for part, dimension in _fields(value):
                if part == 2 and isinstance(dimension, bytes):
                    size = dict(_fields(dimension)).get(1, 0)
                    shape.append(int(size))
    return Entry(found.get(1, 0), tuple(shape), found.get(3, 0), found.get(4, 0), found.get(5, 0), found.get(6, 0))
