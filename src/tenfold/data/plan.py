"""The plan of a data set: its images in partitions, which can be packed apart from each other.

A partition is a range of path hashes, so neither the order of a listing nor the number of packers decides what is in
it. The lists lie in the store; what goes from task to task is the plan's address and a partition's number.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from tenfold.config import DataConfig, PixelsConfig, ShrinkConfig, SplitConfig
from tenfold.data.annotations import Row
from tenfold.data.changes import Changes, History, compare, read_history
from tenfold.data.listing import Listing, place
from tenfold.data.manifest import is_whole, manifest_key, open_dataset
from tenfold.data.parquet import as_parquet, from_parquet
from tenfold.data.splits import Side, side_of
from tenfold.errors import DataError, first_fault
from tenfold.fingerprint import canonical_json, digest, folder_digest
from tenfold.storage import Store

_COLUMNS = pa.schema([
    ("path", pa.string()), ("size", pa.int64()), ("tag", pa.string()), ("label", pa.string()), ("split", pa.string()),
    ("listed", pa.bool_()), ("group", pa.string()),
])  # fmt: skip


class Partition(BaseModel):
    """Images to pack by one task: the digest of their list, and how many there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: str
    images: int


class Plan(BaseModel):
    """What to pack, and how.

    Attributes:
        code: digest of the code that reads and packs.
        shard_images: a shard ends at this many images,
        shard_bytes: or at this many bytes.
        max_pixels: larger images are quarantined.
        shrink: what images are re-encoded.
        pixels: what images must be, if not what can be made RGB.
        max_bad_fraction: of all images that may be.
        split: how test images are drawn.
        own_test: the source has a test split, so none is drawn.
        images: of the whole source, whatever of it is to be packed.
        partitions: at least one, empty if need be.
        source: key under which the history of the source's data sets is kept,
        listing: and that of the data set that this listing gives.
        changes: since the data set before; None: there is none, and all is packed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    code: str
    shard_images: int
    shard_bytes: int
    max_pixels: int
    shrink: ShrinkConfig | None = None
    pixels: PixelsConfig | None = None
    max_bad_fraction: float
    split: SplitConfig
    own_test: bool
    images: int
    partitions: list[Partition]
    source: str
    listing: str
    changes: Changes | None = None

    @property
    def packing(self) -> str:
        """The digest of all that decides a partition's shards beside its images."""
        kept = {"code", "shard_images", "shard_bytes", "max_pixels", "shrink", "pixels", "split", "own_test"}
        return digest(canonical_json(self.model_dump(include=kept)))


def make_plan(listing: Listing, config: DataConfig, store: Store, uri: str, *, anew: bool = False) -> Plan:
    """Divide what is to be packed into partitions whose lists are written to ``store``.

    Where an earlier data set of the same source stands in the store, that is what is new or changed since; a removed
    image takes no packing.

    Args:
        listing: all images.
        config: sizes, limits, and how test images are drawn.
        store: receives the lists.
        uri: of the source.
        anew: pack everything, whatever was packed before.
    """
    plan = Plan(
        code=folder_digest(Path(__file__).parent), shard_images=config.shard_images, shard_bytes=config.shard_bytes,
        max_pixels=config.max_pixels, shrink=config.shrink, pixels=config.pixels and config.pixels.stored,
        max_bad_fraction=config.max_bad_fraction, split=config.split, own_test=listing.own_test, images=listing.count,
        partitions=[], source="", listing=listing_key(listing, config),
    )  # fmt: skip
    history_key = f"sources/{digest(canonical_json([uri, plan.packing]))}.json"
    history = None if anew else read_history(store, history_key)

    def side(row: Row, content: str) -> Side:
        return side_of(row, content, config.split, own_test=listing.own_test)

    if history is not None and not _stands(store, history):
        history = None
    if history is None:
        parts = [_write_rows(store, part) for part in _ranges(listing.rows(), _bits(listing.count, config))]
        changes = None
    else:
        parts, changes = _changed(listing, history, config, store, side)
    found = {"partitions": parts or [_write_rows(store, [])], "source": history_key, "changes": changes}
    return plan.model_copy(update=found)


def _changed(
    listing: Listing, history: History, config: DataConfig, store: Store, side: Callable[[Row, str], Side]
) -> tuple[list[Partition], Changes]:
    """Partition what is new or changed since a data set was made."""
    count = 0
    with tempfile.TemporaryFile("w+") as spool:

        def keep(row: Row) -> None:
            nonlocal count
            count += 1
            spool.write(json.dumps(row) + "\n")

        changes = compare(listing, history, store, side, keep)
        spool.seek(0)
        rows = (Row(*json.loads(line)) for line in spool)
        return [_write_rows(store, part) for part in _ranges(rows, _bits(count, config))], changes


def listing_key(listing: Listing, config: DataConfig) -> str:
    """Return the key under which a data set is recorded: all that decides it, as far as known without reading it."""
    settings = config.model_dump(exclude={"annotations", "source"})
    settings["labels"].pop("file")
    code = folder_digest(Path(__file__).parent)
    return f"listings/{digest(canonical_json({'code': code, 'settings': settings, 'images': listing.digest}))}.json"


def _stands(store: Store, history: History) -> bool:
    """Tell whether a data set and what it was made of are still in the store; an adopted tar may go as an image may."""
    keys = [manifest_key(history.dataset), *(key for tables in history.generations for key in tables)]
    return all(map(store.exists, keys)) and is_whole(
        open_dataset(f"{store.uri}/datasets/{history.dataset}"), adopted=False
    )


def _bits(count: int, config: DataConfig) -> int:
    """Return the logarithm of the number of partitions: on average at most ``partition_images`` in each."""
    bits = 0
    while count > config.partition_images << bits and 2 << bits <= config.max_partitions:
        bits += 1
    return bits


def _ranges(rows: Iterable[Row], bits: int) -> Iterator[list[Row]]:
    for _, part in groupby(rows, lambda row: place(row.path) >> (64 - bits)):
        yield list(part)


def _write_rows(store: Store, rows: list[Row]) -> Partition:
    name = hashlib.sha256()
    for row in rows:
        name.update(json.dumps(row).encode() + b"\n")
    columns = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, _COLUMNS, strict=True)], schema=_COLUMNS)
    store.write(f"lists/{name.hexdigest()}.parquet", as_parquet(table))
    return Partition(rows=name.hexdigest(), images=len(rows))


def read_rows(store: Store, partition: Partition) -> list[Row]:
    """Return a partition's images in order.

    Raises:
        DataError: the list is damaged.
    """
    table = from_parquet(store, f"lists/{partition.rows}.parquet")
    rows = [Row(*values) for values in zip(*(column.to_pylist() for column in table.columns), strict=True)]
    if len(rows) != partition.images:
        raise DataError(f"{store.uri}/lists/{partition.rows}.parquet holds {len(rows)} rows, not {partition.images}")
    return rows


def publish_plan(store: Store, plan: Plan) -> str:
    """Write a plan under its digest, which is returned."""
    data = canonical_json(plan.model_dump()).encode()
    name = digest(data)
    store.create(f"plans/{name}.json", data)
    return name


def open_plan(store: Store, name: str) -> Plan:
    """Read a plan.

    Raises:
        DataError: it is damaged, or of another version.
    """
    data = store.read(f"plans/{name}.json")
    try:
        if digest(data) == name:
            return Plan.model_validate_json(data)
        problem = "its digest is another"
    except ValidationError as error:
        problem = first_fault(error.errors())
    raise DataError(f"{store.uri}/plans/{name}.json cannot be used: {problem}; run the shard stage again")
