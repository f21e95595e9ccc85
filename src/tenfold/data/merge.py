"""From packed partitions to a data set: which images are labelled, what must not be on both sides, the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from tenfold.config import DataConfig
from tenfold.data.annotations import Row
from tenfold.data.changes import History
from tenfold.data.listing import place
from tenfold.data.manifest import Manifest, Quarantined, Shard, SplitShards, locate, shard_key
from tenfold.data.pack import SIDES, Packed, open_packed, too_many
from tenfold.data.parquet import from_parquet
from tenfold.data.plan import Plan
from tenfold.data.shards import Sample, ShardIndex, ShardWriter, parse_index
from tenfold.data.splits import Candidate, Side, divide
from tenfold.errors import DataError
from tenfold.storage import Span, Store

_AT_ONCE = 16
_COLUMNS = [*Row._fields, "side", "content", "stored", "shard", "row", "reason"]
#: An image that was written again and has these as before is the same.
_SAME = ("content", "side", "label", "split", "listed", "group")


def merge(plan: Plan, packed: Sequence[Packed], config: DataConfig, store: Store) -> tuple[Manifest, History]:
    """Make the manifest of what was packed now and before.

    Args:
        plan: of the packers.
        packed: what they left, in the order of their partitions.
        config: labels and limits.
        store: has the shards; receives those of the labelled images.

    Returns:
        The manifest, and what it was made of (with no data set's name yet).

    Raises:
        DataError: fewer than two classes, no test image, a test class without a labelled image, a leak, or more than
            ``max_bad_fraction`` unreadable.
    """
    before = plan.changes.history if plan.changes else History(dataset="", generations=[])
    fresh = [each.table for each in packed]
    images = {key: from_parquet(store, key, _COLUMNS) for tables in [*before.generations, fresh] for key in tables}
    made_of = {key: open_packed(store, key).shards for key in images}
    adopted = {shard.sha256 for made in made_of.values() for shard in made["train"] if shard.uri}
    _refuse_twins([made_of[key]["train"] for key in fresh])
    anew = _rows([images[key] for key in fresh]) if before.generations else {}
    before = _superseded(before, images, set(fresh), anew)
    history = _replace(before, plan, {key: images[key] for key in fresh}, anew, adopted)
    full = [key for key in fresh if len(images[key])]
    history = history.model_copy(update={"generations": [*before.generations, *([full] if full else [])]})
    left = pa.concat_tables([_as_told(_left(table, key, history), history) for key, table in images.items()])
    bad = left.filter(pc.is_valid(left["reason"]))
    if len(bad) > config.max_bad_fraction * plan.images:
        raise too_many(len(bad), plan.images, config.max_bad_fraction, bad.slice(0, 10).to_pylist())
    division = divide(left.filter(pc.is_null(left["reason"])), config)
    by_name: dict[Side, dict[str, Shard]] = {side: {} for side in SIDES}
    for found_in in made_of.values():
        for side, found in found_in.items():
            by_name[side] |= {shard.sha256: shard for shard in found}
    shards = {side: list(found.values()) for side, found in by_name.items()}
    used = _rows([left.filter(pc.equal(left["side"], "train"))]) if adopted else {}
    trains = [_only(s, used) if s.uri else _without(s, history.gone) for s in shards["train"]]
    trains = [shard for shard in trains if shard.kept]
    tests = (_without(_without(s, history.gone), division.dropped) for s in shards["test"])
    made = _pack_labelled(division.labelled, {shard.sha256: shard for shard in trains}, config, store)
    counted = pc.value_counts(division.test["label"].combine_chunks().sort())
    counts = Counter(candidate.label for candidate in division.labelled)
    manifest = Manifest(
        classes=division.classes,
        splits={
            "unlabelled": SplitShards(count=len(division.train), class_counts={}, shards=trains),
            "labelled": SplitShards(
                count=len(division.labelled), class_counts=dict(sorted(counts.items())), shards=made
            ),
            "test": SplitShards(
                count=len(division.test),
                class_counts={each["values"]: each["counts"] for each in counted.to_pylist()},
                shards=[shard for shard in tests if shard.kept],
            ),
        },
        quarantined=sorted(
            (Quarantined(path=each["path"], reason=each["reason"]) for each in bad.to_pylist()), key=lambda q: q.path
        ),
        leaks=division.leaks,
        pixels=plan.pixels,
    )  # fmt: skip
    return manifest, history


def _rows(tables: Sequence[pa.Table]) -> dict[str, set[int]]:
    """Return the rows that tables tell of, by shard."""
    found: dict[str, set[int]] = {}
    for table in tables:
        for shard, row in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True):
            if shard is not None:
                found.setdefault(shard, set()).add(row)
    return found


def _superseded(
    before: History, images: Mapping[str, pa.Table], fresh: set[str], anew: Mapping[str, set[int]]
) -> History:
    """Return the history without what the ``fresh`` tables tell anew.

    Shards are named by content: an image that went and came back, or was touched, may be packed into the very row
    that it was in. The fresh table then speaks for that row, and the earlier ones no longer do.
    """
    forgotten = {table: paths for table, paths in before.forgotten.items() if table not in fresh}
    value_set = pa.array(sorted(anew), pa.string())
    for key in (key for tables in before.generations for key in tables if key not in fresh):
        shared = images[key].filter(pc.is_in(images[key]["shard"], value_set=value_set))
        columns = (shared[name].to_pylist() for name in ("shard", "row", "path"))
        again = [path for shard, row, path in zip(*columns, strict=True) if row in anew[shard]]
        if again:
            forgotten[key] = sorted({*forgotten.get(key, []), *again})
    generations = [[key for key in tables if key not in fresh] for tables in before.generations]
    gone = {shard: sorted(set(rows) - anew.get(shard, set())) for shard, rows in before.gone.items()}
    gone = {shard: rows for shard, rows in gone.items() if rows}
    return before.model_copy(update={"generations": generations, "gone": gone, "forgotten": forgotten})


def _refuse_twins(fresh: Sequence[Sequence[Shard]]) -> None:
    """Refuse two adopted tars of the same bytes: a shard is named by them."""
    places: dict[str, str | None] = {}
    for shard in (shard for made in fresh for shard in made):
        other = places.setdefault(shard.sha256, shard.uri)
        if other != shard.uri:
            raise DataError(f"{other} and {shard.uri} hold the same bytes; remove one of them")


def _replace(
    before: History, plan: Plan, fresh: Mapping[str, pa.Table], anew: Mapping[str, set[int]], adopted: set[str]
) -> History:
    """Return the history with one row of each changed image dropped: the new one if its time alone changed.

    Of a tar that was ``adopted`` and changed the old bytes are no longer there, so it is the old row.
    """
    told = dict(before.told)
    replaced = plan.changes.replaced if plan.changes else {}
    replaced = {path: old for path, old in replaced.items() if old.row not in anew.get(old.shard, set())}
    gone = {shard: set(rows) for shard, rows in before.gone.items()}
    touched = dict(before.touched)
    for former in replaced.values():
        gone.setdefault(former.shard, set()).add(former.row)
    for table in fresh.values() if replaced or touched or told else ():
        for new in table.to_pylist():
            touched.pop(new["path"], None)
            old = replaced.get(new["path"])
            if (
                old
                and old.shard not in adopted
                and new["shard"]
                and all(new[name] == getattr(old, name) for name in _SAME)
            ):
                gone[old.shard].discard(old.row)
                gone.setdefault(new["shard"], set()).add(new["row"])
                touched[new["path"]] = (new["size"], new["tag"])
            else:
                told.pop(new["path"], None)  # the fresh table says it itself
    kept = {shard: sorted(rows) for shard, rows in sorted(gone.items()) if rows}
    return before.model_copy(update={"gone": kept, "touched": touched, "told": told})


def _as_told(table: pa.Table, history: History) -> pa.Table:
    """Return a table with what is said of its images now."""
    paths = table["path"].to_pylist() if history.told else []
    changed = [(row, history.told[path]) for row, path in enumerate(paths) if path in history.told]
    if not changed:
        return table
    for number, name in enumerate(Row._fields[3:]):
        values = table[name].to_pylist()
        for row, now in changed:
            values[row] = now[number]
        kind = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), kind, pa.array(values, kind.type))
    return table


def _left(table: pa.Table, key: str, history: History) -> pa.Table:
    """Return the images of a table that are still part of the data set."""
    shards = {each: set(history.gone[each]) for each in pc.unique(table["shard"]).to_pylist() if each in history.gone}
    forgotten = set(history.forgotten.get(key, []))
    if not shards and not forgotten:
        return table
    columns = (table[name].to_pylist() for name in ("shard", "row", "path"))
    return table.filter(
        pa.array([
            path not in forgotten and row not in shards.get(shard, ())
            for shard, row, path in zip(*columns, strict=True)
        ])
    )  # fmt: skip


def _without(shard: Shard, gone: Mapping[str, list[int]]) -> Shard:
    rows = gone.get(shard.sha256)
    return shard.model_copy(update={"dropped": sorted({*shard.dropped, *rows})}) if rows else shard


def _only(shard: Shard, used: Mapping[str, set[int]]) -> Shard:
    """Return an adopted shard with all rows dropped that are not used."""
    return shard.model_copy(update={"dropped": sorted(set(range(shard.count)) - used.get(shard.sha256, set()))})


def _pack_labelled(
    labelled: list[Candidate], shards: dict[str, Shard], config: DataConfig, store: Store
) -> list[Shard]:
    """Copy the labelled images out of the training shards into shards of their own, in the data set's order."""
    labelled = sorted(labelled, key=lambda candidate: (place(candidate.path), candidate.path))
    indexes: dict[str, ShardIndex] = {}
    for name in {candidate.shard for candidate in labelled}:
        text = store.read(shard_key(shards[name], "idx")).decode()
        indexes[name] = parse_index(text, shards[name])

    def read(candidate: Candidate) -> Sample:
        index, row = indexes[candidate.shard], candidate.row
        start, size = index.images[row].tolist()
        place, name = locate(store, shards[candidate.shard], "tar")
        data = place.read(name, Span(start, size))
        if hashlib.sha256(data).hexdigest() != candidate.stored:
            raise DataError(
                f"{place.uri}/{name} is damaged: {candidate.path} has other bytes than were packed; delete it and run "
                "the shard stage again"
            )
        return Sample(index.keys[row], index.extensions[row], data, candidate.path, candidate.label)

    with ShardWriter(store, config.shard_images, config.shard_bytes) as writer, ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(labelled), 512):
            for sample in pool.map(read, labelled[start : start + 512]):
                writer.add(sample)
        return writer.close()
