"""What a source holds now against what its last data set was made of: new, changed and removed images.

Both sides stand in the order of their paths' hashes, so they are compared as two files are merged, and neither is
held in memory.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from tenfold.data.annotations import Row
from tenfold.data.listing import Listing, place
from tenfold.data.parquet import from_parquet
from tenfold.fingerprint import canonical_json
from tenfold.storage import Store

_COLUMNS = [*Row._fields, "side", "content", "shard", "row"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Replaced(_Document):
    """Where a changed image was packed before, and what it was."""

    shard: str
    row: int
    content: str
    side: str
    label: str | None
    split: str | None
    listed: bool | None
    group: str | None


class History(_Document):
    """What a data set was made of.

    Attributes:
        dataset: its digest.
        generations: keys of the packers' tables: those of the first sharding, then those of what came later; each in
            the order of its partitions.
        gone: rows of shards that are no part of it any more.
        forgotten: paths of which a table no longer speaks, by table: quarantined images that went, and images of shards
            that were packed again.
        touched: size and tag of images that were written again with the same content.
    """

    dataset: str
    generations: list[list[str]]
    gone: dict[str, list[int]] = {}
    forgotten: dict[str, list[str]] = {}
    touched: dict[str, tuple[int, str]] = {}


class Changes(_Document):
    """What must be done to a data set of ``history``.

    Attributes:
        history: of the data set before, with what was removed since.
        replaced: images that changed, by path.
        removed: how many images are no longer there.
    """

    history: History
    replaced: dict[str, Replaced]
    removed: int


def compare(listing: Listing, history: History, store: Store, new: Callable[[Row], object]) -> Changes:
    """Compare a listing with what a data set was made of.

    Args:
        listing: what is there now.
        history: of the data set.
        store: has its tables.
        new: called with each image to pack, new or changed, in order.
    """
    gone = {shard: set(rows) for shard, rows in history.gone.items()}
    forgotten = {table: set(paths) for table, paths in history.forgotten.items()}
    replaced: dict[str, Replaced] = {}
    removed = 0
    for row, known in _side_by_side(listing.rows(), known_images(history, store, _COLUMNS)):
        if row is None:
            assert known is not None
            removed += 1
        elif known is not None and row == Row(*(known[name] for name in Row._fields)):
            continue
        else:
            new(row)
        if known is not None and known["shard"] is None:
            forgotten.setdefault(known["table"], set()).add(known["path"])
        elif known is not None and row is None:
            gone.setdefault(known["shard"], set()).add(known["row"])
        elif known is not None:
            replaced[known["path"]] = Replaced(**{name: known[name] for name in Replaced.model_fields})
    kept = {
        "gone": {shard: sorted(rows) for shard, rows in sorted(gone.items())},
        "forgotten": {table: sorted(paths) for table, paths in sorted(forgotten.items())},
    }
    return Changes(history=history.model_copy(update=kept), replaced=replaced, removed=removed)


def _side_by_side(
    rows: Iterator[Row], known: Iterator[dict[str, Any]]
) -> Iterator[tuple[Row | None, dict[str, Any] | None]]:
    """Yield what both sides have of each path."""
    row, other = next(rows, None), next(known, None)
    while row is not None or other is not None:
        here = (place(row.path), row.path) if row is not None else None
        there = (place(other["path"]), other["path"]) if other is not None else None
        if there is None or (here is not None and here < there):
            yield row, None
            row = next(rows, None)
        elif here is None or there < here:
            yield None, other
            other = next(known, None)
        else:
            yield row, other
            row, other = next(rows, None), next(known, None)


def known_images(history: History, store: Store, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what is known of a data set's images, in order, with one table in memory for each generation.

    Args:
        history: of the data set.
        store: has the tables.
        columns: of :data:`tenfold.data.pack.COLUMNS`; path, size, tag, shard and row among them.
    """
    gone = {(shard, row) for shard, rows in history.gone.items() for row in rows}
    forgotten = {(table, path) for table, paths in history.forgotten.items() for path in paths}

    def generation(tables: list[str]) -> Iterator[dict[str, Any]]:
        for key in tables:
            for each in from_parquet(store, key, columns).to_pylist():
                if (each["shard"], each["row"]) in gone or (key, each["path"]) in forgotten:
                    continue
                size, tag = history.touched.get(each["path"], (each["size"], each["tag"]))
                yield {**each, "size": size, "tag": tag, "table": key}

    def order(each: dict[str, Any]) -> tuple[int, str]:
        return place(each["path"]), each["path"]

    return heapq.merge(*(generation(tables) for tables in history.generations), key=order)


def read_history(store: Store, key: str) -> History | None:
    """Return what is recorded of a source's last data set; None where there is nothing."""
    return History.model_validate_json(store.read(key)) if store.exists(key) else None


def write_history(store: Store, key: str, history: History) -> None:
    """Record what a source's last data set was made of."""
    store.write(key, canonical_json(json.loads(history.model_dump_json())).encode())
