"""What is in a data set: counts, sizes, what was left out, what looks alike."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tenfold.data.build import read_record
from tenfold.data.duplicates import find_duplicates
from tenfold.data.manifest import Dataset
from tenfold.data.parquet import from_parquet
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError

_EDGES = [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 1 << 20]
_COLUMNS = ["path", "content", "shard", "row", "side", "width", "height", "look"]


def images_of(dataset: Dataset) -> pa.Table:
    """Return the table of a data set's images, as they were packed.

    Its columns are those of :data:`tenfold.data.pack.COLUMNS` that tell what an image is; rows that the manifest drops
    are left out.
    """
    record = read_record(dataset)
    tables = [key for generation in record.history.generations for key in generation] if record else []
    shards = {s.sha256: set(s.dropped) for name in ("unlabelled", "test") for s in dataset.manifest.splits[name].shards}
    forgotten = record.history.forgotten if record else {}

    def told(key: str) -> pa.Table:
        table = from_parquet(dataset.store, key, _COLUMNS)
        gone = pc.is_in(table["path"], value_set=pa.array(forgotten.get(key, []), pa.string()))
        return table.filter(pc.invert(gone))

    images = pa.concat_tables([_empty(), *map(told, tables)])
    kept = [
        shard in shards and row not in shards[shard]
        for shard, row in zip(images["shard"].to_pylist(), images["row"].to_pylist(), strict=True)
    ]
    return images.filter(pa.array(kept, pa.bool_()))


def _empty() -> pa.Table:
    from tenfold.data.pack import COLUMNS

    return pa.Table.from_pylist([], pa.schema([COLUMNS.field(name) for name in _COLUMNS]))


def inspect(dataset: Dataset) -> dict[str, Any]:
    """Return the facts of a data set, ready for JSON.

    Raises:
        DataError: nothing is recorded of how it was made.
    """
    if read_record(dataset) is None:
        raise DataError(
            f"nothing is recorded beside {dataset.uri} of how it was made. If it is the unlabelled part of a data set, "
            "which pretraining takes, inspect the whole one: the run prints its address"
        )
    manifest, images = dataset.manifest, images_of(dataset)
    train, test = (images.filter(pc.equal(images["side"], side)) for side in ("train", "test"))
    found = find_duplicates(train, test)
    sides = np.maximum(images["width"].to_numpy(), images["height"].to_numpy())
    return {
        "dataset": dataset.uri,
        "classes": manifest.classes,
        "splits": {
            name: {
                "images": split.count, "classes": split.class_counts, "shards": len(split.shards),
                "bytes": sum(shard.size for shard in split.shards),
                "dropped": sum(len(shard.dropped) for shard in split.shards),
            }
            for name, split in manifest.splits.items()
        },
        "longer_side": {
            "smallest": int(sides.min(initial=1 << 30)), "median": float(np.median(sides)) if len(sides) else 0.0,
            "largest": int(sides.max(initial=0)),
            "histogram": {
                f"{low} to {high - 1}": int(((sides >= low) & (sides < high)).sum()) for low, high in pairwise(_EDGES)
            },
        },
        "quarantined": [q.model_dump() for q in manifest.quarantined],
        "equal_training_images": found.equal, "equal_test_images": found.equal_tests,
        "alike_in_train_and_test": [{"train": a, "test": b, "bits": bits} for a, b, bits in found.alike],
        "leaks": manifest.leaks,
    }  # fmt: skip


def contact_sheet(dataset: Dataset, cache: Path, columns: int = 10, rows: int = 12, side: int = 64) -> Image.Image:
    """Return a picture of labelled images, a row a class (of the first classes, if there are more than rows)."""
    reader = SplitReader(dataset, "labelled", cache)
    labels = reader.labels()
    shown = range(min(rows, len(reader.classes)))
    sheet = Image.new("RGB", (columns * side, len(shown) * side), "white")
    for label in shown:
        for column, number in enumerate(np.flatnonzero(labels == label)[:columns]):
            picture = Image.fromarray(reader.picture(int(number)))
            picture.thumbnail((side, side))
            sheet.paste(picture, (column * side, label * side))
    return sheet
