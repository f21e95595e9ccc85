"""What in a store nothing refers to any more."""

from __future__ import annotations

import json

from tenfold.data.changes import History
from tenfold.data.manifest import open_dataset, shard_key, suffixes_of
from tenfold.storage import Entry, Store

#: What packers write before a manifest names it; a sharding that is at work now must not lose it.
_KINDS = ("shards/", "packs/", "lists/", "plans/")


def find_garbage(store: Store) -> list[Entry]:
    """Return the objects that no data set, and no history of a source, leads to.

    Every manifest in the store counts, also those that were replaced by newer ones: a model may have been trained on
    them. Lists and plans serve a sharding while it works, and are garbage after it: run this when none is at work.
    """
    kept: set[str] = set()
    for entry in store.list("datasets/"):
        name = entry.key.rpartition("/")[2]
        if name == "manifest.json":
            manifest = open_dataset(f"{store.uri}/{entry.key.removesuffix('/manifest.json')}").manifest
            shards = [shard for split in manifest.splits.values() for shard in split.shards]
            kept |= {shard_key(shard, suffix) for shard in shards for suffix in suffixes_of(shard)}
        elif name.startswith("source-"):
            kept |= _tables(History.model_validate(json.loads(store.read(entry.key))["history"]))
    for entry in store.list("sources/"):
        kept |= _tables(History.model_validate_json(store.read(entry.key)))
    return sorted(entry for kind in _KINDS for entry in store.list(kind) if entry.key not in kept)


def _tables(history: History) -> set[str]:
    return {key for tables in history.generations for key in tables}
