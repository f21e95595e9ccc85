"""Samples of a split by number, and the order in which training meets them.

Shards are verified against the manifest once, mapped into memory, and read at random through their index
files. The order of training is a function of (seed, epoch, position) and of nothing else, so it is the
same for any number of ranks and after any restart.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.data.manifest import Dataset, Shard, SplitName
from tenfold.data.shards import Member, Sample, parse_facts, parse_index
from tenfold.errors import DataError
from tenfold.storage import Store


class SplitReader:
    """Random access to the samples of one split."""

    def __init__(self, dataset: Dataset, split: SplitName, cache: Path | None = None) -> None:
        """Open and verify all shards of ``split``.

        Args:
            dataset: its manifest and store.
            split: which one.
            cache: folder for shards that come from afar; default: one in the system's temporary folder,
                shared by the processes of this user, where files are named by content.

        Raises:
            DataError: a shard is not what the manifest says, or not there.
        """
        self.classes = dataset.manifest.classes
        self.split = split
        self._cache = cache or Path(tempfile.gettempdir()) / f"tenfold-shards-{_user()}"
        self._maps: list[mmap.mmap | bytes] = []
        self._members: list[tuple[int, Member]] = []
        self.shards = dataset.manifest.splits[split].shards
        for number, shard in enumerate(self.shards):
            dropped = set(shard.dropped)
            members = enumerate(self._open(dataset, shard))
            self._members += [(number, member) for row, member in members if row not in dropped]
        self.keys = [member.key for _, member in self._members]

    def _open(self, dataset: Dataset, shard: Shard) -> list[Member]:
        name = f"shards/{shard.sha256}"
        view = self._map(dataset.store, f"{name}.tar", shard.sha256)
        index = bytes(self._map(dataset.store, f"{name}.idx", shard.index_sha256))
        self._maps.append(view)
        return parse_index(index.decode(), shard)

    def _map(self, store: Store, name: str, sha256: str) -> mmap.mmap | bytes:
        """Return the verified bytes of ``name``; a copy that was damaged in the cache is fetched again once."""
        for _ in range(2):
            path = store.fetch(name, self._cache)
            with path.open("rb") as file:
                empty = path.stat().st_size == 0  # which cannot be mapped
                view = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            found = hashlib.sha256(view).hexdigest()
            if found == sha256:
                return view
            if path.parent != self._cache:
                break
            path.unlink(missing_ok=True)
        raise DataError(
            f"{store.uri}/{name} is damaged: {len(view)} bytes with sha256 {found}, the manifest says {sha256}; "
            "delete it and run the shard stage again"
        )

    def __len__(self) -> int:
        return len(self._members)

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the encoded bytes of sample ``number`` as an array that borrows the mapped file."""
        shard, member = self._members[number]
        offset, size = member.image
        return np.frombuffer(self._maps[shard], dtype=np.uint8, count=size, offset=offset)

    def _part(self, number: int, extension: str) -> bytes | None:
        shard, member = self._members[number]
        span = member.parts.get(extension)
        return None if span is None else self._maps[shard][span[0] : span[0] + span[1]]

    def _facts(self, number: int) -> tuple[str, str | None]:
        data = self._part(number, "json")
        assert data is not None
        return parse_facts(data)

    def label(self, number: int) -> int:
        """Return the class index of sample ``number``; -1 where the split carries no labels."""
        name = self._facts(number)[1]
        return -1 if name is None else self.classes.index(name)

    def labels(self) -> NDArray[np.int64]:
        """Return the class index of every sample."""
        return np.array([self.label(number) for number in range(len(self))], dtype=np.int64)

    def path(self, number: int) -> str:
        """Return the path that sample ``number`` had in its source."""
        return self._facts(number)[0]

    def sample(self, number: int) -> Sample:
        """Return everything about sample ``number``."""
        _, member = self._members[number]
        return Sample(member.key, member.extension, self.image(number).tobytes(), *self._facts(number))


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        return "user"


class Order:
    """Which sample stands at each position of training.

    Epoch ``e`` is a permutation drawn from (seed, e). With at least one batch of samples an epoch is cut to
    whole batches, so that no batch holds an image twice; a smaller set is repeated without a cut, and so is
    one that is not shuffled.
    """

    def __init__(self, count: int, batch_size: int, seed: int, *, shuffle: bool = True) -> None:
        if count < 1:
            raise DataError("there is no image to train on")
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self.epoch_length = count // batch_size * batch_size if shuffle and count >= batch_size else count
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.arange(count)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.epoch_length)
        if self.shuffle and epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._epoch = epoch
        return int(self._permutation[offset])
