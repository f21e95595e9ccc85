"""A partition's images into shards: each is read and decoded once, and goes to the shards of training or of testing.

A partition is packed alone, so many can be at once and on many machines. Every full shard leaves a record, so that
a packer that was killed goes on behind it; a partition that is packed already is not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from tenfold.data.annotations import Row
from tenfold.data.decode import examine
from tenfold.data.manifest import Shard, all_there, shard_key, suffixes_of
from tenfold.data.parquet import as_parquet, from_parquet
from tenfold.data.plan import Plan, read_rows
from tenfold.data.shards import Sample, ShardWriter
from tenfold.data.sources import Source
from tenfold.data.splits import Side, side_of
from tenfold.errors import BadImageError, DataError, StorageError
from tenfold.storage import Store

#: Sides that have shards.
SIDES: tuple[Side, ...] = ("train", "test")
#: What is known of an image that was packed, or could not be (``reason``). ``number`` is its place in the partition,
#: ``shard`` the digest of its shard and ``row`` its place there.
COLUMNS = pa.schema([
    ("number", pa.int64()), ("path", pa.string()), ("size", pa.int64()), ("tag", pa.string()), ("label", pa.string()),
    ("split", pa.string()), ("listed", pa.bool_()), ("group", pa.string()), ("side", pa.string()),
    ("content", pa.string()), ("stored", pa.string()), ("key", pa.string()), ("shard", pa.string()),
    ("row", pa.int64()), ("width", pa.int32()), ("height", pa.int32()), ("look", pa.uint64()), ("reason", pa.string()),
])  # fmt: skip


#: What a thread takes at once, at most: images, and about so many bytes; and how many such handfuls are on the way.
_HANDFUL, _SMALL, _AHEAD = 16, 65_536, 16
#: Images of fewer bytes than this on average are read by one thread.
_ALONE = 8192


class Packed(NamedTuple):
    """What a packer leaves: the shards of each side in order, and the key of its table in the store."""

    shards: dict[Side, list[Shard]]
    table: str


@dataclass(frozen=True)
class Checked:
    """An image that was read: what is known of it (columns of :data:`COLUMNS`), and its sample if it can be used."""

    facts: dict[str, Any]
    sample: Sample | None


class Check(Protocol):
    """Reads the images of a partition.

    ``waits``: whether a read waits for a network, so that threads help however small images are.
    """

    waits: bool

    def __call__(self, number: int, row: Row) -> Checked:
        """Read one, which is ``number`` there."""

    def adopted(self) -> list[Shard]:
        """Return the shards that images were left in, once all were read."""


def pack(
    plan: Plan, number: int, check: Check, store: Store, threads: int = 2,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:  # fmt: skip
    """Pack partition ``number`` of ``plan`` into ``store``.

    Args:
        plan: what to pack and how.
        number: which partition.
        check: reads the images, for example :class:`Checking`.
        store: receives shards, records and the table.
        threads: that read and decode.
        advance: called with (images done, images in the partition).

    Raises:
        DataError: more than ``max_bad_fraction`` of all images are unreadable.
    """
    partition = plan.partitions[number]
    place = f"packs/{plan.packing}/{partition.rows}"
    key = f"{place}/packed.parquet"
    if store.exists(key) and (packed := _whole(store, key)):
        return packed
    sides = {side: _Side(store, plan, place, side) for side in SIDES}
    done = {n for side in sides.values() for n in side.resume()}
    rows = list(enumerate(read_rows(store, partition)))
    left = [item for item in rows if item[0] not in done]
    bad: list[dict[str, Any]] = []
    out: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        for side in sides.values():
            stack.enter_context(side.writer)
        mapped = stack.enter_context(_side_by_side(1 if not check.waits and _are_small(left) else threads))
        for count, found in enumerate(mapped(lambda item: check(*item), left), start=len(done) + 1):
            if found.sample is None and found.facts.get("reason") is None:
                out.append(found.facts)
            elif found.sample is None:
                bad.append(found.facts)
                if len(bad) > plan.max_bad_fraction * plan.images:
                    raise too_many(len(bad), plan.images, plan.max_bad_fraction, bad)
            else:
                sides[found.facts["side"]].add(found)
            advance(count, len(rows))
        tables = [part.replace_schema_metadata(None) for side in sides.values() for part in side.close()]
    table = pa.concat_tables([*tables, pa.Table.from_pylist([*bad, *out], COLUMNS)]).sort_by("number")
    shards = {side: made.shards for side, made in sides.items()}
    table = _with_shards(table, {**shards, "train": [*shards["train"], *check.adopted()]})
    store.write(key, as_parquet(table))
    for made in sides.values():
        made.forget()
    return Packed(_shards(table), key)


def _read_whole(source: Source, row: Row) -> bytes:
    """Read an image; an answer of another size than the listing's is asked for again."""
    for _ in range(3):
        data = source.read(row.path)
        if len(data) == row.size or not row.size:
            return data
    raise DataError(
        f"{source.uri}/{row.path} has {len(data)} bytes, and had {row.size} when it was listed: it was changed "
        "meanwhile or comes cut; run again"
    )


class Checking:
    """Reads the images of a source one by one."""

    def __init__(self, plan: Plan, source: Source) -> None:
        self._plan, self._source = plan, source
        self.waits = source.uri.startswith("s3:")

    def __call__(self, number: int, row: Row) -> Checked:
        """See :class:`Check`."""
        return examined(self._plan, number, row, _read_whole(self._source, row))

    def adopted(self) -> list[Shard]:
        """See :class:`Check`."""
        return []


def examined(plan: Plan, number: int, row: Row, data: bytes) -> Checked:
    """Check an image's bytes, and say which side it is of."""
    facts: dict[str, Any] = {"number": number, **row._asdict()}
    try:
        image = examine(data, plan.max_pixels, plan.shrink, plan.pixels)
    except BadImageError as error:
        return Checked({**facts, "reason": str(error)}, None)
    content = hashlib.sha256(data).hexdigest()
    side = side_of(row, content, plan.split, own_test=plan.own_test)
    key = sample_key(row.path, content)
    stored = content if image.encoded is data else hashlib.sha256(image.encoded).hexdigest()
    facts |= {"side": side, "content": content, "stored": stored, "key": key, "width": image.width,
              "height": image.height, "look": image.look}  # fmt: skip
    if side == "out":
        return Checked(facts, None)
    label = row.label if side == "test" else None
    return Checked(facts, Sample(key, image.extension, image.encoded, row.path, label))


class _Side:
    """The shards of one side as they fill up, each with a record of what is in it."""

    def __init__(self, store: Store, plan: Plan, place: str, side: Side) -> None:
        self._store, self._place, self._side = store, place, side
        self.writer = ShardWriter(store, plan.shard_images, plan.shard_bytes)
        self._facts: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []

    def _record(self, number: int) -> str:
        return f"{self._place}/{self._side}-{number:06d}.parquet"

    @property
    def shards(self) -> list[Shard]:
        return self.writer.shards

    def resume(self) -> list[int]:
        """Take over the shards that an earlier packer of this partition filled; returns their images' numbers."""
        found: list[int] = []
        while self._store.exists(key := self._record(len(self._tables))):
            try:
                table = from_parquet(self._store, key)
            except StorageError:  # another packer of this partition is done and cleared its records away
                break
            shards = _shards(table)[self._side]
            if not all(self._store.exists(f"shards/{shard.sha256}.tar") for shard in shards):
                break
            self._tables.append(table)
            self.writer.shards += shards
            found += table["number"].to_pylist()
        return found

    def add(self, found: Checked) -> None:
        """Append an image; a shard that is full with it is stored and recorded."""
        assert found.sample is not None
        before = len(self.shards)
        self.writer.add(found.sample)
        if len(self.shards) > before:
            self._keep()
        self._facts.append(found.facts)

    def _keep(self) -> None:
        shard = self.shards[-1]
        facts = [{**f, "shard": shard.sha256, "row": row} for row, f in enumerate(self._facts)]
        table = _with_shards(pa.Table.from_pylist(facts, COLUMNS), {self._side: [shard]})
        self._store.write(self._record(len(self._tables)), as_parquet(table))
        self._tables.append(table)
        self._facts = []

    def close(self) -> list[pa.Table]:
        """Store what is left; returns the tables of all shards."""
        if self._facts:
            self.writer.flush()
            self._keep()
        return self._tables

    def forget(self) -> None:
        """Remove the records, once the partition's table is there."""
        for number in range(len(self._tables)):
            self._store.delete(self._record(number))


def sample_key(path: str, content: str) -> str:
    """Return the stable name of a sample: a hash of its path and content."""
    return hashlib.sha256(f"{path}\0{content}".encode()).hexdigest()[:32]


@contextlib.contextmanager
def _side_by_side(threads: int) -> Iterator[Callable[..., Iterator[Checked]]]:
    """Give a ``map`` that works in threads; one thread would only wait for this one and the other way round."""
    if threads <= 1:
        yield map
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        yield partial(_bounded_map, pool)


def _bounded_map(
    pool: ThreadPoolExecutor, check: Callable[[tuple[int, Row]], Checked], items: list[tuple[int, Row]]
) -> Iterator[Checked]:
    """Like ``pool.map``, a few hundred images ahead at most; small images go in handfuls, not one by one."""
    waiting: deque[Future[list[Checked]]] = deque()
    for handful in _handfuls(items):
        waiting.append(pool.submit(lambda items: [check(item) for item in items], handful))
        if len(waiting) >= _AHEAD:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _are_small(items: list[tuple[int, Row]]) -> bool:
    """Tell whether images are so small that threads would mostly wait for Python's lock; a size of 0 is not known."""
    sizes = [row.size for _, row in items]
    return bool(sizes) and min(sizes) > 0 and sum(sizes) < _ALONE * len(sizes)


def _handfuls(items: list[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    """Divide images into lists of at most :data:`_HANDFUL` images and not many more bytes than :data:`_SMALL`."""
    held: list[tuple[int, Row]] = []
    size = 0
    for item in items:
        held.append(item)
        size += item[1].size or _SMALL  # not known: it may be large
        if len(held) == _HANDFUL or size >= _SMALL:
            yield held
            held, size = [], 0
    if held:
        yield held


def _with_shards(table: pa.Table, shards: Mapping[Side, list[Shard]]) -> pa.Table:
    text = json.dumps({side: [shard.model_dump() for shard in found] for side, found in shards.items()})
    return table.replace_schema_metadata({"shards": text})


def _shards(table: pa.Table) -> dict[Side, list[Shard]]:
    told = json.loads((table.schema.metadata or {}).get(b"shards", b"{}"))
    return {side: [Shard(**shard) for shard in told.get(side, [])] for side in SIDES}


def open_packed(store: Store, key: str) -> Packed:
    """Return what an earlier packer left."""
    return Packed(_shards(from_parquet(store, key, ["number"])), key)


def _whole(store: Store, key: str) -> Packed | None:
    """Return what was packed; None where some of its shards are gone."""
    packed = open_packed(store, key)
    shards = [shard for made in packed.shards.values() for shard in made]
    own = all(store.exists(shard_key(shard, suffix)) for shard in shards for suffix in suffixes_of(shard))
    return packed if own and all_there([shard for shard in shards if shard.uri]) else None


def too_many(bad: int, images: int, allowed: float, first: Iterable[Mapping[str, Any]]) -> DataError:
    """Return the error of a source with too many images that cannot be read."""
    shown = "\n".join(f"  {each['path']}: {each['reason']}" for each in islice(first, 10))
    return DataError(f"{bad} of {images} images cannot be read, more than data.max_bad_fraction={allowed}:\n{shown}")
