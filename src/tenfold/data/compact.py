"""A data set that grew, packed as if from scratch: same images, same digest as a first sharding of them all."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from tenfold.data.annotations import Row
from tenfold.data.build import finish, read_record
from tenfold.data.changes import known_images
from tenfold.data.listing import Buckets, Listing
from tenfold.data.manifest import Dataset, Shard
from tenfold.data.pack import COLUMNS, Checked, open_packed, pack
from tenfold.data.plan import make_plan
from tenfold.data.shards import Sample, ShardIndex, parse_index
from tenfold.errors import DataError
from tenfold.storage import Span, Store


def compact(
    dataset: Dataset, threads: int = 2, advance: Callable[[int, int], None] = lambda done, total: None
) -> Dataset:
    """Pack a data set's images anew out of its own shards, and make the result what its source grows from.

    Nothing is read from the source, and nothing is decoded. What is known of every image is held in memory, some
    hundreds of bytes each.

    Raises:
        DataError: nothing is recorded of how the data set was made, or a shard is damaged.
    """
    store, record = dataset.store, read_record(dataset)
    if record is None:
        raise DataError(f"nothing is recorded beside {dataset.uri} of how it was made, so it cannot be compacted")
    columns = [*Row._fields, *(name for name in COLUMNS.names if name not in Row._fields)]
    found = known_images(record.history, store, columns)
    known = {each.path: {**dict(zip(columns, each.values, strict=True)), "table": each.table} for each in found}
    with tempfile.TemporaryDirectory() as folder:
        listing = Listing(complete=True, _rows=Buckets(Path(folder) / "l"))
        for each in known.values():
            listing.add(Row(*(each[name] for name in Row._fields)))
        plan = make_plan(listing, record.config, store, record.source, anew=True)
    if any(shard.uri for split in dataset.manifest.splits.values() for shard in split.shards):
        raise DataError(
            f"{dataset.uri} has adopted tars, which lie outside of the store; to compact it would copy them. Shard the "
            "source from scratch into another store instead"
        )
    shards = [s for tables in record.history.generations for key in tables for s in _all(store, key)]
    check = _Repacking(known, {shard.sha256: shard for shard in shards}, store)
    packed, done = [], 0
    for number, partition in enumerate(plan.partitions):
        before = done
        packed.append(
            pack(plan, number, check, store, threads, lambda n, _, before=before: advance(before + n, len(known)))  # type: ignore[misc]
        )
        done += partition.images
    return finish(plan, packed, record.config, store, record.source)


def _all(store: Store, table: str) -> list[Shard]:
    return [shard for shards in open_packed(store, table).shards.values() for shard in shards]


class _Repacking:
    """Takes images out of the shards that they are in; see :class:`tenfold.data.pack.Check`."""

    def __init__(self, known: dict[str, dict[str, object]], shards: dict[str, Shard], store: Store) -> None:
        self._known, self._shards, self._store = known, shards, store
        self.waits = not store.uri.startswith("file:")
        self._indexes: dict[str, ShardIndex] = {}

    def adopted(self) -> list[Shard]:
        return []

    def __call__(self, number: int, row: Row) -> Checked:
        facts = {**self._known[row.path], "number": number}
        name, place = facts["shard"], facts["row"]
        facts = {key: value for key, value in facts.items() if key in COLUMNS.names and key not in {"shard", "row"}}
        if name is None:
            return Checked(facts, None)
        assert isinstance(name, str)
        assert isinstance(place, int)
        if name not in self._indexes:
            text = self._store.read(f"shards/{name}.idx").decode()
            self._indexes[name] = parse_index(text, self._shards[name])
        index = self._indexes[name]
        start, size = index.images[place].tolist()
        data = self._store.read(f"shards/{name}.tar", Span(start, size))
        if hashlib.sha256(data).hexdigest() != facts["stored"]:
            raise DataError(
                f"{self._store.uri}/shards/{name}.tar is damaged: {row.path} has other bytes than were packed"
            )
        label = row.label if facts["side"] == "test" else None
        return Checked(facts, Sample(index.keys[place], index.extensions[place], data, row.path, label))
