"""A source's images with what is known of them, on disk, in an order that no backend decides.

Storage lists a billion keys in whatever order it likes, and their list does not fit into memory. So rows are spooled
into buckets by the first bits of a hash of their path; one bucket at a time is sorted and joined with the lists that
say which class and which split an image has.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from tenfold.config import DataConfig
from tenfold.data.annotations import Labels, Row, Table, by_layout, image_suffixes
from tenfold.data.sources import Source
from tenfold.errors import DataError
from tenfold.fingerprint import canonical_json, digest

_BITS = 8
#: Endings that are told apart.
_KINDS = 100
#: Lists that wait in memory.
_IN_MEMORY = 100_000


@lru_cache(maxsize=1 << 17)
def place(path: str) -> int:
    """Return where ``path`` stands in the order of a data set: the first 64 bits of its SHA-256.

    What lies in a tar stands together, where the tar's own path does.
    """
    tar, _, _ = path.partition(".tar/")
    return int.from_bytes(hashlib.sha256(tar.encode()).digest()[:8], "big")


class Buckets:
    """Lists in buckets by the first bits of their path's hash; all but the last come to lie in a file a bucket."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._files = [folder / f"{number:02x}" for number in range(1 << _BITS)]
        self._waiting: list[list[tuple[Any, ...]]] = [[] for _ in self._files]
        self._count = 0

    def add(self, values: tuple[Any, ...]) -> None:
        """Keep ``values``, whose first is the path."""
        self._waiting[place(values[0]) >> (64 - _BITS)].append(values)
        self._count += 1
        if self._count % _IN_MEMORY == 0:
            self._spill()

    def _spill(self) -> None:
        for file, waiting in zip(self._files, self._waiting, strict=True):
            if waiting:
                with file.open("a") as out:
                    out.writelines(json.dumps(values) + "\n" for values in waiting)
                waiting.clear()

    def __iter__(self) -> Iterator[Sequence[Sequence[Any]]]:
        """Yield each bucket's lists; those of one path stand in the order in which they came."""
        for file, waiting in zip(self._files, self._waiting, strict=True):
            spilled: list[Sequence[Any]] = []
            if self._count >= _IN_MEMORY and file.is_file():
                with file.open() as lines:
                    spilled += map(json.loads, lines)
            yield [*spilled, *waiting]


@dataclass
class Listing:
    """All images of a source, on disk.

    Attributes:
        count: how many.
        classes: that a training image may keep its label of, by name.
        passed: files that are no images by their names' endings, by ending.
        own_test: whether the source has a test split of its own.
        digest: of all rows, whatever their order.
        complete: False where the listing was cut at a limit, so that nothing is known of the rest.
    """

    complete: bool
    _rows: Buckets
    count: int = 0
    passed: Counter[str] = field(default_factory=Counter)
    classes: set[str] = field(default_factory=set)
    own_test: bool = False
    _sum: int = 0
    _bound: set[str] = field(default_factory=set)
    _tests: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Take in an image."""
        self.count += 1
        self.own_test |= row.split == "test"
        if row.label and row.split != "test" and row.listed is not False:
            self.classes.add(row.label)
        if row.group is not None:
            if row.listed or row.split == "train":
                self._bound.add(row.group)
            elif row.split == "test":
                self._tests.add(row.group)
        row = row._replace(listed=row.listed or None)  # "not on the list" and "no list" are one from here on
        self._sum += int.from_bytes(hashlib.sha256(repr(tuple(row)).encode()).digest()[:16], "big")
        self._rows.add(row)

    @property
    def digest(self) -> str:
        """The sum of all rows' hashes, hashed: an order has no part in it."""
        return digest(canonical_json([self.count, f"{self._sum:x}"]))

    def rows(self) -> Iterator[Row]:
        """Yield the images in the order of their paths' hashes.

        Of a group one image of which is for training by the source or a list, all are, and so for testing.
        """
        for bucket in self._rows:
            for row in sorted((Row(*values) for values in bucket), key=lambda row: (place(row.path), row.path)):
                if row.group is None or row.split is not None:
                    yield row
                elif row.group in self._bound:
                    yield row._replace(split="train")
                else:
                    yield row._replace(split="test") if row.group in self._tests else row


def list_images(source: Source, config: DataConfig, folder: Path, limit: int | None = None) -> Listing:
    """List ``source`` and give each image its class and split.

    Layouts: ``<class>/…``; ``train/<class>/…`` with ``test/<class>/…`` and optionally ``unlabelled/…``; or any layout
    with a table of ``path,label,split`` (``config.annotations``; the last two may be empty), which then says what the
    images are. Files directly at the top have no class.

    Args:
        source: the images.
        config: ``annotations`` and ``labels.file`` are used.
        folder: an empty place on disk, needed as long as the listing is.
        limit: stop after that many images; what the lists name and was not met by then is not missed.

    Raises:
        DataError: nothing is there, or the lists name what is not there.
    """
    own = source.lines()
    if own is not None and config.annotations:
        raise DataError(f"{source.uri} is a table itself; data.annotations is for folders and prefixes")
    table = Table(own, source.uri) if own is not None else None
    if config.annotations:
        table = Table.of(source, config.annotations)
    labels = Labels(config.labels.file) if config.labels.file else None
    raw, said = Buckets(folder / "listed"), Buckets(folder / "said")
    files, count, suffixes = 0, 0, image_suffixes(config.pixels)
    foreign: list[str] = []
    passed: Counter[str] = Counter()
    splits = others = False
    complete = True
    for entry in source.list():
        files += 1
        if not entry.key.lower().endswith(suffixes):
            passed[PurePosixPath(entry.key).suffix.lower() if len(passed) < _KINDS else "…"] += 1
            continue
        if not _is_text(entry.key):
            foreign.append(entry.key)
            continue
        if count == limit:
            complete = False
            break
        count += 1
        top, inside, _ = entry.key.partition("/")
        splits |= bool(inside) and top in {"train", "test"}
        others |= bool(inside) and top not in {"train", "test", "unlabelled", "unlabeled"}
        raw.add(entry)
        if labels:
            labels.see(entry.key)
    if foreign:
        raise DataError(f"{source.uri}: {len(foreign)} file names are no UTF-8; rename them: {foreign[:10]}")
    if not count:
        found = f" among {files} files ({told_kinds(passed)})" if files else ""
        hint = "; NPY is read with data.pixels (--preset multichannel)" if ".npy" in passed else ""
        raise DataError(f"no images{found} in {source.uri}; expected {', '.join(suffixes[:4])}, … files{hint}")
    for line in table or ():
        said.add(line)
    listing = Listing(complete, Buckets(folder / "joined"), passed=passed)
    for entries, lines in zip(raw, said, strict=True):
        by_split = splits and not others
        rows = table.join(entries, lines) if table else (by_layout(*entry, by_split=by_split) for entry in entries)
        for row in rows:
            listing.add(labels.apply(row) if labels else row)
    if complete and table:
        table.missing.refuse()
    if complete and labels:
        labels.finish()
    return listing


def told_kinds(passed: Counter[str]) -> str:
    """Return how many files of which endings there are, for people."""
    return ", ".join(f"{number} {ending or 'without an ending'}" for ending, number in passed.most_common(5))


def _is_text(name: str) -> bool:
    """Tell whether ``name`` is Unicode; Python spells other bytes of a file name as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
