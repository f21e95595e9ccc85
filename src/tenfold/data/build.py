"""From a source to a published data set: list, plan, pack, merge."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenfold.config import DataConfig
from tenfold.data.adopt import check_of
from tenfold.data.changes import History, write_history
from tenfold.data.listing import list_images
from tenfold.data.manifest import Dataset, is_whole, manifest_key, open_dataset, publish
from tenfold.data.merge import merge
from tenfold.data.pack import Packed, pack
from tenfold.data.plan import Plan, listing_key, make_plan
from tenfold.data.sources import Source
from tenfold.fingerprint import canonical_json, digest
from tenfold.storage import Store


def build_dataset(
    source: Source, config: DataConfig, store: Store,
    advance: Callable[[int, int], None] = lambda done, total: None, threads: int = 2,
) -> tuple[Dataset, bool]:  # fmt: skip
    """Shard ``source`` into ``store``, one partition after another.

    Where the listing and configuration are those of an earlier call, and its shards are still there, nothing
    is read and that data set is returned.

    Args:
        source: the images.
        config: labels, splits, shard size and limits.
        store: receives shards and manifest.
        advance: called with (images checked, images in all).
        threads: that read and decode.

    Returns:
        The data set, and whether it was built anew.

    Raises:
        DataError: no images, unusable lists or splits, or more than ``max_bad_fraction`` unreadable.
    """
    with tempfile.TemporaryDirectory() as folder:
        listing = list_images(source, config, Path(folder) / "listing")
        known = recorded(store, listing_key(listing, config))
        if known is not None:
            return known, False
        plan = make_plan(listing, config, store, source.uri)
    check = check_of(plan, source, store)
    total = sum(partition.images for partition in plan.partitions)
    done = 0
    packed = []
    for number, partition in enumerate(plan.partitions):
        before = done
        packed.append(
            pack(plan, number, check, store, threads, lambda n, _, before=before: advance(before + n, total))  # type: ignore[misc]
        )
        done += partition.images
    return finish(plan, packed, config, store, source.uri), True


def finish(plan: Plan, packed: Sequence[Packed], config: DataConfig, store: Store, source: str) -> Dataset:
    """Merge what was packed, publish it, and record what it was made of."""
    manifest, history = merge(plan, packed, config, store)
    dataset = publish(store, manifest)
    before = plan.changes.history.dataset if plan.changes else None
    history = history.model_copy(update={"dataset": dataset.digest})
    beside = canonical_json(
        {"source": source, "parent": before if before != dataset.digest else None, "config": config.model_dump(),
         "history": history.model_dump()}
    ).encode()  # fmt: skip
    store.create(f"datasets/{dataset.digest}/source-{digest(beside)[:16]}.json", beside)
    write_history(store, plan.source, history)
    store.write(plan.listing, canonical_json({"dataset": dataset.digest}).encode())
    return dataset


def recorded(store: Store, key: str) -> Dataset | None:
    """Return the data set that an earlier call made of the same listing; None where it is not there, or not whole."""
    if not store.exists(key):
        return None
    name = json.loads(store.read(key))["dataset"]
    if not store.exists(manifest_key(name)):
        return None
    dataset = open_dataset(f"{store.uri}/datasets/{name}")
    return dataset if is_whole(dataset) else None


@dataclass(frozen=True)
class Record:
    """How a data set came about: its source, how it was sharded, and what it was made of."""

    source: str
    config: DataConfig
    history: History


def read_record(dataset: Dataset) -> Record | None:
    """Return how a data set came about; None where nothing is recorded beside its manifest."""
    keys = sorted(entry.key for entry in dataset.store.list(f"datasets/{dataset.digest}/source-"))
    if not keys:
        return None
    told = json.loads(dataset.store.read(keys[0]))
    return Record(told["source"], DataConfig.model_validate(told["config"]), History.model_validate(told["history"]))
