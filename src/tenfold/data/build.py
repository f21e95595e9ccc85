"""From a source to a published data set: list, check every image once, split, pack, write the manifest."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tenfold.config import DataConfig
from tenfold.data.decode import decode
from tenfold.data.manifest import (
    SPLITS,
    Dataset,
    Manifest,
    Quarantined,
    SplitShards,
    manifest_key,
    open_dataset,
    publish,
)
from tenfold.data.shards import Sample, ShardWriter
from tenfold.data.sources import Annotated, Annotations, Source, annotate
from tenfold.data.splits import Record, Splits, make_splits
from tenfold.errors import BadImageError, DataError
from tenfold.fingerprint import canonical_json, digest, folder_digest
from tenfold.storage import Store


@dataclass(frozen=True)
class _Checked:
    record: Record
    extension: str
    image: bytes


def build_dataset(
    source: Source,
    config: DataConfig,
    store: Store,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Dataset, bool]:
    """Shard ``source`` into ``store``.

    Where the listing and configuration are those of an earlier call, and its shards are still there, nothing
    is read and that data set is returned.

    Args:
        source: the images.
        config: labels, splits, shard size and limits.
        store: receives shards and manifest.
        advance: called with (images checked, images in all).

    Returns:
        The data set, and whether it was built anew.

    Raises:
        DataError: no images, unusable lists or splits, or more than ``max_bad_fraction`` unreadable.
    """
    annotations = annotate(source, config)
    listing = listing_digest(annotations, config)
    known = f"listings/{listing}.json"
    if store.exists(known):
        name = json.loads(store.read(known))["dataset"]
        if store.exists(manifest_key(name)):
            dataset = open_dataset(f"{store.uri}/datasets/{name}")
            if _is_whole(dataset):
                return dataset, False
    with tempfile.TemporaryFile() as spool:
        records, spans, quarantined = _check(source, annotations.images, config, spool, advance)
        bad = len(quarantined) / len(annotations.images)
        if bad > config.max_bad_fraction:
            shown = "\n".join(f"  {q.path}: {q.reason}" for q in quarantined[:10])
            raise DataError(
                f"{len(quarantined)} of {len(annotations.images)} images cannot be read, more than "
                f"data.max_bad_fraction={config.max_bad_fraction}:\n{shown}"
            )
        splits = make_splits(records, annotations.listed, config.split, config.labels, allow_leaks=config.allow_leaks)
        manifest = _pack(splits, spans, quarantined, config, store, spool)
    dataset = publish(store, manifest)
    entries = [[a.entry.key, a.entry.size, a.entry.tag] for a in annotations.images]
    beside = canonical_json({"source": source.uri, "images": entries}).encode()
    store.create(f"datasets/{dataset.digest}/source-{digest(beside)[:16]}.json", beside)
    store.write(known, canonical_json({"dataset": dataset.digest}).encode())
    return dataset, True


def listing_digest(annotations: Annotations, config: DataConfig) -> str:
    """Return the digest of all that decides a data set, as far as it can be told without reading images."""
    settings = config.model_dump(exclude={"annotations"})
    settings["labels"].pop("file")
    images = [[a.entry.key, a.entry.size, a.entry.tag, a.label, a.split] for a in annotations.images]
    listed = None if annotations.listed is None else sorted(annotations.listed)
    return digest(
        canonical_json(
            {"code": folder_digest(Path(__file__).parent), "settings": settings, "images": images, "listed": listed}
        )
    )


def _is_whole(dataset: Dataset) -> bool:
    """Tell whether all shards are still in the store."""
    held = {entry.key for entry in dataset.store.list("shards/")}
    shards = [shard.sha256 for split in dataset.manifest.splits.values() for shard in split.shards]
    return all(f"shards/{name}.{suffix}" in held for name in shards for suffix in ("tar", "idx"))


Span = tuple[int, int, str]


def _check(
    source: Source,
    images: list[Annotated],
    config: DataConfig,
    spool: IO[bytes],
    advance: Callable[[int, int], None],
) -> tuple[list[Record], dict[str, Span], list[Quarantined]]:
    """Decode every image once; keep the bytes to pack in ``spool``, so that the source is read only once."""

    def check(image: Annotated) -> _Checked | Quarantined:
        data = source.read(image.entry.key)
        try:
            decoded = decode(data, config.max_pixels)
        except BadImageError as error:
            return Quarantined(path=image.entry.key, reason=str(error))
        content = hashlib.sha256(data).hexdigest()
        return _Checked(Record(image.entry.key, content, image.label, image.split), decoded.extension, decoded.encoded)

    records, spans, quarantined = [], {}, []
    with ThreadPoolExecutor(8, thread_name_prefix="decode") as pool:
        for done, result in enumerate(_bounded_map(pool, check, images), start=1):
            if isinstance(result, Quarantined):
                quarantined.append(result)
            else:
                spans[result.record.path] = (spool.tell(), len(result.image), result.extension)
                spool.write(result.image)
                records.append(result.record)
            advance(done, len(images))
    return records, spans, quarantined


def _bounded_map(
    pool: ThreadPoolExecutor, check: Callable[[Annotated], _Checked | Quarantined], images: list[Annotated]
) -> Iterable[_Checked | Quarantined]:
    """Like ``pool.map``, holding at most a few hundred results in memory."""
    for start in range(0, len(images), 256):
        yield from pool.map(check, images[start : start + 256])


def _pack(
    splits: Splits, spans: dict[str, Span], quarantined: list[Quarantined], config: DataConfig, store: Store,
    spool: IO[bytes],
) -> Manifest:  # fmt: skip
    index = {name: number for number, name in enumerate(splits.classes)}
    packed = {}
    for name in SPLITS:
        writer = ShardWriter(store, config.shard_images, config.shard_bytes)
        members: list[Record] = getattr(splits, name)
        for record in members:
            offset, size, extension = spans[record.path]
            spool.seek(offset)
            label = index[record.label] if name != "unlabelled" and record.label is not None else None
            writer.add(Sample(record.key, extension, spool.read(size), record.path, label))
        counts = Counter(r.label for r in members if name != "unlabelled" and r.label)
        packed[name] = SplitShards(count=len(members), class_counts=dict(sorted(counts.items())), shards=writer.close())
    return Manifest(
        classes=splits.classes, splits=packed, quarantined=sorted(quarantined, key=lambda q: q.path), leaks=splits.leaks
    )
