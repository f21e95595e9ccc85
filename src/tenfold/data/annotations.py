"""What a source says of its images: by its folders, by a table, by a list of those that keep their labels."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tenfold.config import PixelsConfig
from tenfold.data.sources import Source
from tenfold.data.tables import Line, Split, csv_rows, parted, read_lines, text_of
from tenfold.errors import DataError
from tenfold.storage import open_store

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def image_suffixes(pixels: PixelsConfig | None) -> tuple[str, ...]:
    """Return how the names of images end: NumPy's arrays are some where other pixels than RGB are wanted."""
    return _SUFFIXES if pixels is None else (*_SUFFIXES, ".npy")


SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "unlabelled": "train", "unlabeled": "train", "test": "test"}


class Row(NamedTuple):
    """An image before it was read: where it is, and what its source says of it (None: nothing).

    ``size`` and ``tag`` are the listing's; ``listed`` tells whether the label list names it (None: there is none).
    Images of one ``group`` (a patient, a video, a site) are never on both sides of the split.
    """

    path: str
    size: int
    tag: str
    label: str | None = None
    split: Split | None = None
    listed: bool | None = None
    group: str | None = None


def by_layout(path: str, size: int, tag: str, *, by_split: bool) -> Row:
    """Return an image with the class and split that its folders tell.

    Args:
        path: ``<class>/…``, or with ``by_split`` ``train/<class>/…``, ``test/<class>/…`` and ``unlabelled/…``.
        size: of the file.
        tag: of the file.
        by_split: the source's top folders are splits.
    """
    parts = path.split("/")
    split = SPLIT_FOLDERS[parts[0]] if by_split and len(parts) > 1 else None
    unlabelled = split is not None and parts[0].startswith("unlabel")
    parts = parts[1:] if split else parts
    return Row(path, size, tag, parts[0] if len(parts) > 1 and not unlabelled else None, split)


class Missing:
    """Images that a list names and that are not there: how many, and the first ten."""

    def __init__(self, where: str) -> None:
        self.where, self.count, self._first = where, 0, list[tuple[int, str]]()

    def add(self, line: int, path: str) -> None:
        """Note a line whose image is not there."""
        self.count += 1
        heapq.heappush(self._first, (-line, path))
        if len(self._first) > 10:
            heapq.heappop(self._first)

    def refuse(self) -> None:
        """Raise a DataError if there is any."""
        if self.count:
            first = "\n".join(f"  {path}" for _, path in sorted(self._first, reverse=True))
            more = f"\n  … and {self.count - 10} more" if self.count > 10 else ""
            raise DataError(f"{self.where} names {self.count} images that are not there:\n{first}{more}")


class Table:
    """A table that says of each image its class, split and group; what it does not name is left out."""

    def __init__(self, lines: Iterator[Line], where: str) -> None:
        self._lines, self.where, self.missing = lines, where, Missing(where)

    @classmethod
    def of(cls, source: Source, name: str) -> Table:
        """Open the annotations file ``name`` in ``source``."""
        where = f"{source.uri}/{name}"
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"data.annotations is a file in the source, by its path from {source.uri}: not {name}")
        try:
            return cls(read_lines(source.read(name), name, where), where)
        except KeyError:
            raise DataError(f"{source.uri} has no file {name}") from None

    def __iter__(self) -> Iterator[Line]:
        return self._lines

    def join(self, entries: Sequence[Sequence[Any]], lines: Sequence[Sequence[Any]]) -> Iterator[Row]:
        """Yield the images that the table names, with what it says of them.

        Raises:
            DataError: it names an image twice.
        """
        there = {entry[0]: entry for entry in entries}
        seen = set()
        for line in (Line(*values) for values in lines):
            if line.path not in there:
                self.missing.add(line.number, line.path)
            elif line.path in seen:
                raise DataError(f"{self.where} names an image twice: {line.path}")
            else:
                seen.add(line.path)
                _, size, tag = there[line.path]
                yield Row(line.path, size, tag, line.label, line.split, group=line.group)


class Labels:
    """The label list: the images that keep their labels, and which class they have if it says so.

    Lines are paths, or bare file names (as the official ImageNet subsets have them), with or without a class.
    """

    def __init__(self, file: str) -> None:
        folder, name = parted(file)
        self.where = f"the label list {file}"
        lines = list(csv_rows(text_of(open_store(folder).read(name), self.where), self.where))
        if lines and lines[0][1][0].strip() == "path":
            lines = lines[1:]
        self._class: dict[str, str] = {}
        self._line: dict[str, int] = {}
        for number, line in lines:
            path, label = line[0].strip(), line[1].strip() if len(line) > 1 else ""
            if path and self._class.setdefault(path, label) != label:
                raise DataError(f"{self.where} gives {path} two labels: {self._class[path]} and {label}")
            self._line.setdefault(path, number)
        if not self._class:
            raise DataError(f"{self.where} is empty")
        self._bare = {path for path in self._class if "/" not in path}
        self._places: dict[str, list[str]] = {}
        self._found: set[str] = set()
        self._unlabelled: list[str] = []
        self._tests: list[str] = []

    def see(self, path: str) -> None:
        """Learn of an image that is there; every one is shown before :meth:`apply`."""
        name = path.rpartition("/")[2]
        if name in self._bare:
            self._places.setdefault(name, []).append(path)

    def _name(self, path: str) -> str | None:
        """Return the list's name of an image; None where it has none."""
        if path in self._class:
            return path
        name = path.rpartition("/")[2]
        if name not in self._bare or name in self._places.get(name, []):  # a file at the top is meant itself
            return None
        places = self._places.get(name, [])
        if len(places) > 1:
            raise DataError(f"the label list names {name}, which is in {len(places)} folders: {sorted(places)[:3]}")
        return name

    def apply(self, row: Row) -> Row:
        """Return the image with its place on the list."""
        name = self._name(row.path)
        if name is None:
            return row._replace(listed=False)
        self._found.add(name)
        label = self._class[name] or row.label
        if not label:
            self._unlabelled.append(row.path)
        if row.split == "test":
            self._tests.append(row.path)
        return row._replace(label=label, listed=True)

    def finish(self) -> None:
        """Refuse what does not fit, once every image was shown.

        Raises:
            DataError: the list names images that are not there, of the test split, or of no class.
        """
        missing = Missing(self.where)
        for name in self._class:
            if name not in self._found:
                missing.add(self._line[name], name)
        missing.refuse()
        if self._unlabelled:
            count, first = len(self._unlabelled), sorted(self._unlabelled)[:10]
            raise DataError(f"{self.where} gives no label for {count} images: {first}")
        if self._tests:
            raise DataError(
                f"{self.where} names {len(self._tests)} images of the test split: {sorted(self._tests)[:10]}"
            )
