"""Samples of a split by number, and the order in which training meets them.

Shards are opened when they are first needed, verified against the manifest, mapped into memory, and read at random
through their index files. The order of training is a function of (seed, epoch, position) and of nothing else, so it is
the same for any number of ranks and after any restart.
"""

from __future__ import annotations

import mmap
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.data.cache import ShardCache
from tenfold.data.channels import as_rgb
from tenfold.data.decode import CHECKED, decode, read_pixels
from tenfold.data.manifest import Dataset, Shard, SplitName
from tenfold.data.shards import Sample, ShardIndex, parse_facts, parse_index
from tenfold.environment import Environment
from tenfold.errors import DataError

#: Shards among whose samples an epoch's order goes back and forth; a larger set is walked in such groups.
WINDOW = 64
#: Shards that a reader holds open. More than two windows, so that reading ahead closes none that is in use.
_OPEN = 3 * WINDOW
#: A split of at most this many bytes is verified whole when it is opened; a larger one shard by shard, when needed.
_AT_ONCE = 8_000_000_000
_FETCHES = 4


class _OpenShard:
    """A mapped tar with its index, and the rows of it that count."""

    def __init__(self, cache: ShardCache, dataset: Dataset, shard: Shard) -> None:
        path = cache.fetch(dataset.store, shard, "tar")
        with path.open("rb") as file:
            empty = path.stat().st_size == 0  # which cannot be mapped
            self.data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.index: ShardIndex = parse_index(cache.fetch(dataset.store, shard, "idx").read_text(), shard)
        self.rows = np.delete(np.arange(shard.count), shard.dropped)


class SplitReader:
    """Random access to the samples of one split."""

    def __init__(self, dataset: Dataset, split: SplitName, cache: Path | None = None) -> None:
        """Open ``split``.

        Args:
            dataset: its manifest and store.
            split: which one.
            cache: folder for shards that come from afar; default: one in the system's temporary folder,
                shared by the processes of this user, where files are named by content. It holds at most
                ``TENFOLD_CACHE_BYTES`` (default 100 GB).

        Raises:
            DataError: a shard is not what the manifest says.
            StorageError: it is not there.
        """
        self.classes, self.pixels = dataset.manifest.classes, dataset.manifest.pixels
        self.split = split
        self.shards = dataset.manifest.splits[split].shards
        folder = cache or Path(tempfile.gettempdir()) / f"tenfold-shards-{_user()}"
        self._cache = ShardCache(folder, Environment.read().cache_bytes)
        self._dataset = dataset
        self._starts = np.cumsum([0, *(shard.kept for shard in self.shards)])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()  # a backend's threads read at once
        self._fetching: ThreadPoolExecutor | None = None
        if sum(shard.size for shard in self.shards) <= _AT_ONCE and len(self.shards) <= _OPEN:
            with ThreadPoolExecutor(_FETCHES) as pool:
                opened = pool.map(lambda shard: _OpenShard(self._cache, dataset, shard), self.shards)
                self._open = OrderedDict(enumerate(opened))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _shard(self, place: int) -> _OpenShard:
        with self._lock:
            found = self._open.get(place)
            if found is None:
                found = self._open[place] = _OpenShard(self._cache, self._dataset, self.shards[place])
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(place)
        return found

    def _find(self, number: int) -> tuple[_OpenShard, int]:
        """Return the shard of a sample, and its row there.

        Raises:
            DataError: the shard is not what the manifest says.
            StorageError: it is not there.
        """
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        shard = self._shard(place)
        return shard, int(shard.rows[number - self._starts[place]])

    def _prefetch(self, places: Sequence[int]) -> None:
        """Fetch shards from afar that will be needed soon; what fails is told when it is needed."""
        places = [
            place for place in places if not (self.shards[place].uri or self._dataset.store.uri).startswith("file:")
        ]
        if not places:
            return
        if self._fetching is None:
            self._fetching = ThreadPoolExecutor(_FETCHES, thread_name_prefix="prefetch")
        for place in places:
            if place not in self._open:
                self._fetching.submit(self._cache.fetch, self._dataset.store, self.shards[place], "tar")

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the encoded bytes of sample ``number`` as an array that borrows the mapped file."""
        shard, row = self._find(number)
        offset, size = shard.index.images[row].tolist()
        return np.frombuffer(shard.data, dtype=np.uint8, count=size, offset=offset)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """Return sample ``number`` as people may look at it: (height, width, 3)."""
        data = self.image(number).tobytes()
        return decode(data, CHECKED).pixels if self.pixels is None else as_rgb(read_pixels(data, self.pixels))

    def _facts(self, number: int) -> tuple[str, str | None]:
        shard, row = self._find(number)
        if shard.index.paths is not None:
            return shard.index.paths[row], None
        offset, size = shard.index.facts[row].tolist()
        return parse_facts(shard.data[offset : offset + size])

    def key(self, number: int) -> str:
        """Return the stable name of sample ``number``."""
        shard, row = self._find(number)
        return shard.index.keys[row]

    @property
    def keys(self) -> list[str]:
        """The names of all samples in order."""
        return [self.key(number) for number in range(len(self))]

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
        shard, row = self._find(number)
        return Sample(
            shard.index.keys[row], shard.index.extensions[row], self.image(number).tobytes(), *self._facts(number)
        )

    def order(self, batch_size: int, seed: int, *, shuffle: bool = True) -> Order:
        """Return an order of training on this split."""
        sizes = [shard.kept for shard in self.shards]
        return Order(sizes, batch_size, seed, shuffle=shuffle, soon=self._prefetch)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        return "user"


class Order:
    """Which sample stands at each position of training.

    Epoch ``e`` is a permutation drawn from (seed, e): of all samples where there are at most ``WINDOW`` shards; else
    the shards are shuffled, and the samples within each group of ``WINDOW`` of them, so that a bounded number of shards
    is in use at a time. With at least one batch of samples an epoch is cut to whole batches, so that no batch holds an
    image twice; a smaller set is repeated without a cut, and so is one that is not shuffled.
    """

    def __init__(
        self, shards: int | Sequence[int], batch_size: int, seed: int, *, shuffle: bool = True, window: int = WINDOW,
        soon: Callable[[Sequence[int]], None] = lambda shards: None,
    ) -> None:  # fmt: skip
        """Order samples.

        Args:
            shards: how many samples each has; a number stands for one shard.
            batch_size: of all ranks together.
            seed: decides the order.
            shuffle: False gives the samples as they lie.
            window: shards among whose samples the order goes back and forth.
            soon: told the shards of a group when it begins, and of the one after it.
        """
        self._sizes = np.array([shards] if isinstance(shards, int) else list(shards), dtype=np.int64)
        self.count = count = int(self._sizes.sum())
        if count < 1:
            raise DataError("there is no image to train on")
        self.seed, self.shuffle, self._window, self._soon = seed, shuffle, window, soon
        self.epoch_length = count // batch_size * batch_size if shuffle and count >= batch_size else count
        self._firsts = np.cumsum([0, *self._sizes[:-1]])
        self._groups: list[NDArray[np.int64]] = []
        self._bounds = np.zeros(1, np.int64)
        self._epoch = self._group = -1
        self._numbers: NDArray[np.int64] = np.arange(count) if not shuffle else np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.epoch_length)
        if not self.shuffle:
            return int(self._numbers[offset])
        if epoch != self._epoch:
            self._begin(epoch)
        group = int(np.searchsorted(self._bounds, offset, side="right")) - 1
        if group != self._group:
            self._enter(group)
        return int(self._numbers[offset - self._bounds[group]])

    def _begin(self, epoch: int) -> None:
        shards = np.arange(len(self._sizes))
        if len(shards) > self._window:
            shards = np.random.default_rng([self.seed, epoch, len(shards)]).permutation(shards)
        self._groups = [np.sort(shards[at : at + self._window]) for at in range(0, len(shards), self._window)]
        self._bounds = np.cumsum([0, *(int(self._sizes[group].sum()) for group in self._groups)])
        self._epoch, self._group = epoch, -1

    def _enter(self, group: int) -> None:
        shards = self._groups[group]
        self._soon([int(shard) for each in self._groups[group : group + 2] for shard in each])
        numbers = np.concatenate([np.arange(self._firsts[s], self._firsts[s] + self._sizes[s]) for s in shards])
        own = [self.seed, self._epoch] if len(self._groups) == 1 else [self.seed, self._epoch, group]
        self._numbers = np.random.default_rng(own).permutation(numbers)
        self._group = group


@dataclass(frozen=True)
class RankOrder:
    """Which sample stands at each position of one rank: of every global batch the rank takes its part."""

    order: Order
    batch_size: int
    rank: int
    ranks: int

    def position(self, own: int) -> int:
        """Return where a rank's own position stands in the order of all ranks together."""
        batch, offset = divmod(own, self.batch_size)
        return (batch * self.ranks + self.rank) * self.batch_size + offset

    def __getitem__(self, own: int) -> int:
        return self.order[self.position(own)]
