"""WebDataset shards with DALI index files, written so that the same samples always give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from tenfold.data.manifest import Shard
from tenfold.errors import DataError, StorageError
from tenfold.fingerprint import canonical_json, digest
from tenfold.storage import Store

_BLOCK = 512
_IMAGES = {"jpg", "png", "tif", "npy"}


@dataclass(frozen=True)
class Sample:
    """One image of a shard: its key, encoded bytes, path in the source, and class name (None: unlabelled)."""

    key: str
    extension: str
    image: bytes
    path: str
    label: str | None


_HEADER = tarfile.TarInfo().tobuf(format=tarfile.USTAR_FORMAT)


def _header(name: str, size: int) -> bytes:
    """Return a member's header: :mod:`tarfile`'s own, with name, size and checksum filled in, which is quicker."""
    header = bytearray(_HEADER)
    encoded = name.encode()
    header[: len(encoded)] = encoded
    header[124:135] = f"{size:011o}".encode()
    header[148:156] = b" " * 8  # the checksum counts itself as spaces
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


class ShardWriter:
    """Packs samples into tars of bounded size and stores each under its sha256.

    A tar grows in a temporary file, so memory holds one sample at a time; leaving the context removes what is left
    of it.
    """

    def __init__(self, store: Store, max_images: int, max_bytes: int) -> None:
        self._store, self._max_images, self._max_bytes = store, max_images, max_bytes
        self.shards: list[Shard] = []
        self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take is not needed any more
                self._file.close()

    def _begin(self) -> None:
        self._file: IO[bytes] | None = None
        self._sha256, self._size, self._lines = hashlib.sha256(), 0, list[str]()

    def add(self, sample: Sample) -> None:
        """Append a sample; a full shard is stored first."""
        if self._lines and (len(self._lines) >= self._max_images or self._size >= self._max_bytes):
            self.flush()
        facts = {"path": sample.path} if sample.label is None else {"path": sample.path, "label": sample.label}
        members = [(sample.extension, sample.image), ("json", canonical_json(facts).encode())]
        self._lines.append(" ".join(self._member(sample.key, ext, data) for ext, data in members))

    def _member(self, key: str, extension: str, data: bytes) -> str:
        name = f"{key}.{extension}"
        offset = self._size + _BLOCK
        self._append(_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))
        return f"{extension} {offset} {len(data)} {name}"

    def _append(self, data: bytes, *, last: bool = False) -> IO[bytes]:
        try:
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(prefix="tenfold-shard-", buffering=1 << 20)  # noqa: SIM115
            self._file.write(data)
            if last:
                self._file.flush()
        except OSError as error:
            raise StorageError(f"a shard cannot be written to a temporary file (TMPDIR): {error.strerror}") from None
        self._sha256.update(data)
        self._size += len(data)
        return self._file

    def flush(self) -> None:
        """Store what was added since the last shard as one."""
        count = len(self._lines)
        file = self._append(bytes(2 * _BLOCK), last=True)
        index = f"v1.2 {count}\n{''.join(line + chr(10) for line in self._lines)}".encode()
        name = self._sha256.hexdigest()
        try:
            with file:
                self._store.create(f"shards/{name}.tar", Path(file.name), sealed=True)
        except FileNotFoundError:
            raise StorageError(f"the temporary file {file.name} was removed while a shard was written to it") from None
        self._store.create(f"shards/{name}.idx", index)
        self.shards.append(Shard(sha256=name, size=self._size, count=count, index_sha256=digest(index)))
        self._begin()

    def close(self) -> list[Shard]:
        """Store what is left and return all shards; with no sample at all there is one empty shard."""
        if self._lines or not self.shards:
            self.flush()
        return self.shards


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of a shard lie in its tar.

    Attributes:
        keys: of the samples.
        extensions: of their images, ``jpg``, ``png``, ``tif`` or ``npy``.
        images: (count, 2) offset and size of each encoded image.
        facts: the same of each ``json`` member.
        paths: in the source, of an adopted tar's samples; they have no such member.
    """

    keys: list[str]
    extensions: list[str]
    images: NDArray[np.int64]
    facts: NDArray[np.int64]
    paths: list[str] | None = None


def parse_index(text: str, shard: Shard) -> ShardIndex:
    """Read a DALI index file.

    Raises:
        DataError: its count is not the manifest's, or it points outside the tar.
    """
    head, *lines = text.splitlines()
    if head != f"v1.2 {shard.count}" or len(lines) != shard.count:
        raise DataError(f"the index of shard {shard.sha256} does not hold the manifest's {shard.count} samples")
    keys, extensions, images, facts, paths = [], [], [], [], []
    for line in lines:
        fields = line.split(" ")
        if shard.uri:
            paths.append(unquote(fields.pop()))
            fields = [*fields[:4], "json", "0", "0", ""]
        parts = {ext: (int(offset), int(size)) for ext, offset, size, _ in zip(*[iter(fields)] * 4, strict=True)}
        kind = next((ext for ext in parts if ext in _IMAGES), None)
        if kind is None or "json" not in parts:
            raise DataError(f"the index of shard {shard.sha256} has a sample with no image or no json: {line[:80]}")
        if any(offset + size > shard.size for offset, size in parts.values()):
            raise DataError(f"the index of shard {shard.sha256} points outside the shard")
        keys.append(fields[3].partition(".")[0])
        extensions.append(kind)
        images.append(parts[kind])
        facts.append(parts["json"])
    spans = [np.array(each, np.int64).reshape(-1, 2) for each in (images, facts)]
    return ShardIndex(keys, extensions, spans[0], spans[1], paths if shard.uri else None)


def parse_facts(data: bytes) -> tuple[str, str | None]:
    """Return the source path and the class name that a sample's ``json`` member records."""
    facts = json.loads(data)
    return str(facts["path"]), facts.get("label")
