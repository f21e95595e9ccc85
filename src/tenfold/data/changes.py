"""What a source holds now against what its last data set was made of: new, changed and removed images.

Both sides stand in the order of their paths' hashes, so they are compared as two files are merged, and neither is
held in memory.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from tenfold.data.annotations import Row
from tenfold.data.listing import Listing, place
from tenfold.data.parquet import from_parquet
from tenfold.data.splits import Side
from tenfold.data.tables import Split
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


#: Of an image: label, split, whether a list names it, and group; the last fields of :class:`Row`.
Told = tuple[str | None, Split | None, bool | None, str | None]


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
        told: label, split, listed and group of training images of which the source or a list says something else than
            when they were packed; their bytes and their shards are as they were.
    """

    dataset: str
    generations: list[list[str]]
    gone: dict[str, list[int]] = {}
    forgotten: dict[str, list[str]] = {}
    touched: dict[str, tuple[int, str]] = {}
    told: dict[str, Told] = {}


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


def compare(
    listing: Listing, history: History, store: Store, side: Callable[[Row, str], Side], new: Callable[[Row], object]
) -> Changes:
    """Compare a listing with what a data set was made of.

    Args:
        listing: what is there now.
        history: of the data set.
        store: has its tables.
        side: tells which side an image of some content is of.
        new: called with each image to pack, new or changed, in order.
    """
    gone = {shard: set(rows) for shard, rows in history.gone.items()}
    forgotten = {table: set(paths) for table, paths in history.forgotten.items()}
    replaced: dict[str, Replaced] = {}
    told, removed, fields = dict(history.told), 0, len(Row._fields)
    for row, known in _side_by_side(listing.rows(), known_images(history, store, _COLUMNS)):
        if row is None:
            removed += 1
            told.pop(known.path if known else "", None)
        elif known is not None and row == known.values[:fields]:
            continue
        elif known is not None and _trains_as_before(row, known, side):
            told[row.path] = row[3:]
            continue
        else:
            new(row)
        if known is None:
            continue
        facts = dict(zip(_COLUMNS, known.values, strict=True))
        if facts["shard"] is None:
            forgotten.setdefault(known.table, set()).add(known.path)
        elif row is None:
            gone.setdefault(facts["shard"], set()).add(facts["row"])
        else:
            replaced[known.path] = Replaced(**{name: facts[name] for name in Replaced.model_fields})
    kept = {
        "gone": {shard: sorted(rows) for shard, rows in sorted(gone.items())},
        "forgotten": {table: sorted(paths) for table, paths in sorted(forgotten.items())},
        "told": dict(sorted(told.items())),
    }
    return Changes(history=history.model_copy(update=kept), replaced=replaced, removed=removed)


def _trains_as_before(row: Row, known: Known, side: Callable[[Row, str], Side]) -> bool:
    """Tell whether an image has the bytes that it had and trains as it did, so that only what is said of it differs."""
    facts = dict(zip(_COLUMNS, known.values, strict=True))
    same = facts["shard"] is not None and facts["side"] == "train" and row[:3] == known.values[:3]
    return same and side(row, facts["content"]) == "train"


class Known(NamedTuple):
    """An image of a data set: its place in the order, path, what is known of it, and the table that says so."""

    place: int
    path: str
    values: tuple[Any, ...]
    table: str


def _side_by_side(rows: Iterator[Row], known: Iterator[Known]) -> Iterator[tuple[Row | None, Known | None]]:
    """Yield what both sides have of each path."""
    row, other = next(rows, None), next(known, None)
    while row is not None or other is not None:
        if row is not None and other is not None and row.path == other.path:
            yield row, other
            row, other = next(rows, None), next(known, None)
        elif other is None or (row is not None and (place(row.path), row.path) < other[:2]):
            yield row, None
            row = next(rows, None)
        else:
            yield None, other
            other = next(known, None)


def known_images(history: History, store: Store, columns: list[str]) -> Iterator[Known]:
    """Yield what is known of a data set's images, in order, with one table in memory for each generation.

    Args:
        history: of the data set.
        store: has the tables.
        columns: of :data:`tenfold.data.pack.COLUMNS`: those of :class:`Row` first, shard and row among the others.
    """
    gone = {(shard, row) for shard, rows in history.gone.items() for row in rows}
    size, tag, shard, row = (columns.index(name) for name in ("size", "tag", "shard", "row"))

    def generation(tables: list[str]) -> Iterator[Known]:
        for key in tables:
            table, forgotten = from_parquet(store, key, columns), set(history.forgotten.get(key, []))
            for values in zip(*(table[name].to_pylist() for name in columns), strict=True):
                path = values[0]
                if (gone and (values[shard], values[row]) in gone) or path in forgotten:
                    continue
                if path in history.touched or path in history.told:
                    changed = list(values)
                    changed[size], changed[tag] = history.touched.get(path, (values[size], values[tag]))
                    changed[3 : len(Row._fields)] = history.told.get(path, values[3 : len(Row._fields)])
                    values = tuple(changed)
                yield Known(place(path), path, values, key)

    generations = [generation(tables) for tables in history.generations]
    return generations[0] if len(generations) == 1 else heapq.merge(*generations, key=lambda known: known[:2])


def read_history(store: Store, key: str) -> History | None:
    """Return what is recorded of a source's last data set; None where there is nothing."""
    return History.model_validate_json(store.read(key)) if store.exists(key) else None


def write_history(store: Store, key: str, history: History) -> None:
    """Record what a source's last data set was made of."""
    store.write(key, canonical_json(json.loads(history.model_dump_json())).encode())
