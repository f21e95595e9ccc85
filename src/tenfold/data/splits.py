"""Which images are for testing and which few keep their labels.

Both choices hang on a hash of the image's content and a seed, one image at a time: a source that grows never moves an
image from test to train, and equal images fall into the same split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tenfold.config import DataConfig, LabelsConfig, SplitConfig
from tenfold.data.annotations import Row
from tenfold.errors import DataError

#: ``out``: neither trained nor tested on.
Side = Literal["train", "test", "out"]


def draw(*parts: object) -> float:
    """Return a number in [0, 1) that is a hash of ``parts``."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def side_of(row: Row, content: str, config: SplitConfig, *, own_test: bool) -> Side:
    """Tell whether an image is for training or for testing, or for neither.

    One that the source puts nowhere is for testing with probability ``test_fraction``, if it has a label, if no list
    says that it keeps it, and if the source has no test images of its own. The images of a group are drawn together;
    those of a test group that have no label are left out, since they must not be trained on.

    Args:
        row: the image.
        content: sha256 of its bytes.
        config: share and seed.
        own_test: the source has test images of its own.
    """
    if row.split or own_test or row.listed:
        test = row.split == "test"
        return "out" if test and row.label is None and row.group is not None else "test" if test else "train"
    if row.label is None and row.group is None:
        return "train"
    drawn = draw("test", config.seed, content if row.group is None else f"group {row.group}") < config.test_fraction
    return "train" if not drawn else "test" if row.label is not None else "out"


class Candidate(NamedTuple):
    """A training image that may keep its label.

    ``content`` is the sha256 of its bytes in the source, ``stored`` that of its bytes in row ``row`` of ``shard``.
    """

    label: str
    content: str
    stored: str
    path: str
    shard: str
    row: int


def choose_labelled(train: pa.Table, config: LabelsConfig) -> list[Candidate]:
    """Return the images that keep their labels; fewer labels of the same seed are a part of more.

    Args:
        train: training images, with the columns of :class:`Candidate` and ``listed``. Numbers for each are held beside
            it, no objects.
        config: how many, and the seed.
    """
    named = train["listed"] if config.file is not None else pc.is_valid(train["label"])
    chosen = np.flatnonzero(named.fill_null(False).to_numpy(zero_copy_only=False))
    if config.per_class is not None or config.fraction is not None:
        draws = np.fromiter(_draws(train, config.seed), np.float64, len(train))[chosen]
        label = train["label"].dictionary_encode().unify_dictionaries().combine_chunks()
        codes = label.indices.fill_null(0).to_numpy()[chosen]
        members = np.bincount(codes, minlength=len(label.dictionary))
        kept = np.full(len(members), config.per_class or 0)
        if config.per_class is None:
            kept = np.maximum(1, np.rint((config.fraction or 0) * members))
        order = np.lexsort((draws, codes))
        place = np.arange(len(order)) - (np.cumsum(members) - members)[codes[order]]
        chosen = chosen[order[place < kept[codes[order]]]]
    return [Candidate(**row) for row in train.select(Candidate._fields).take(pa.array(chosen)).to_pylist()]


def _draws(train: pa.Table, seed: int) -> Iterator[float]:
    for batch in train.select(["content", "path"]).to_batches(max_chunksize=65_536):
        for content, path in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield draw("labels", seed, content, path)


@dataclass(frozen=True)
class Division:
    """A data set's images, divided.

    Attributes:
        train: every training image, the labelled ones among them.
        test: the test images.
        labelled: those that keep their labels.
        classes: that the labelled images show, sorted.
        dropped: rows of the test images' shards that are no part of the data set, by shard.
        leaks: pairs of a training and a test path with the same content.
    """

    train: pa.Table
    test: pa.Table
    labelled: list[Candidate]
    classes: list[str]
    dropped: dict[str, list[int]]
    leaks: list[tuple[str, str]]


def divide(images: pa.Table, config: DataConfig) -> Division:
    """Divide packed images, whose ``side`` says which are for testing.

    Args:
        images: the columns of :class:`Candidate`, with ``side``, ``split`` and ``listed``.
        config: ``labels`` and ``allow_leaks`` are used.

    Raises:
        DataError: fewer than two classes, no test image, a test class without a labelled image, or a leak.
    """
    train, drawn = (images.filter(pc.equal(images["side"], side)) for side in ("train", "test"))
    test, dropped, leaks = _apart(train, drawn)
    leaks += _shared_groups(train, test)
    if leaks and not config.allow_leaks:
        shown = "\n".join(f"  {one} = {other}" for one, other in leaks[:10])
        raise DataError(
            f"{len(leaks)} test images are also training images, byte by byte, or of a group that is; remove one of "
            f"each pair, or set data.allow_leaks=true:\n{shown}"
        )
    labelled = choose_labelled(train, config.labels)
    classes = sorted({candidate.label for candidate in labelled})
    _require(classes, test)
    return Division(train, test, labelled, classes, dropped, leaks)


def _apart(train: pa.Table, test: pa.Table) -> tuple[pa.Table, dict[str, list[int]], list[tuple[str, str]]]:
    """Take out of the test images those that are training images too.

    Where chance drew a copy of a training image for testing, it is dropped; where the source itself has an image on
    both sides, it is a leak.

    Returns:
        The test images that stay, the rows to drop of each shard, and the leaks as (training path, test path).
    """
    of = train.filter(pc.is_in(train["content"], value_set=test["content"].combine_chunks()))
    both = pc.is_in(test["content"], value_set=of["content"].combine_chunks())
    copies = test.filter(both).to_pylist()
    if not copies:
        return test, {}, []
    by_content = dict(zip(of["content"].to_pylist(), of["path"].to_pylist(), strict=True))
    dropped: dict[str, list[int]] = {}
    leaks = []
    for copy in copies:
        if copy["split"]:
            leaks.append((by_content[copy["content"]], copy["path"]))
        else:
            dropped.setdefault(copy["shard"], []).append(copy["row"])
    drawn = pc.is_null(test["split"])
    return test.filter(pc.invert(pc.and_(both, drawn))), {k: sorted(v) for k, v in dropped.items()}, sorted(leaks)


def _shared_groups(train: pa.Table, test: pa.Table) -> list[tuple[str, str]]:
    """Return a pair of images of each group that the source has on both sides."""
    grouped = (table.filter(pc.is_valid(table["group"])) for table in (train, test))
    sides = [dict(zip(t["group"].to_pylist(), t["path"].to_pylist(), strict=True)) for t in grouped]
    return sorted((sides[0][group], sides[1][group]) for group in {*sides[0]} & {*sides[1]})


def _require(classes: list[str], test: pa.Table) -> None:
    if len(classes) < 2:
        raise DataError(f"the labelled images show {len(classes)} class(es); at least two are needed")
    if not len(test):
        raise DataError("no image is left for the test split; raise data.split.test_fraction or add a test split")
    without = test.filter(pc.is_null(test["label"]))["path"].to_pylist()
    if without:
        raise DataError(f"{len(without)} test images have no label: {sorted(without)[:10]}")
    foreign = sorted(set(pc.unique(test["label"]).to_pylist()) - set(classes))
    if foreign:
        raise DataError(f"the test split has classes that no labelled image shows: {', '.join(foreign[:10])}")
