"""Where images come from: scikit-learn's digits, a folder, or the same layout below an S3 prefix.

A source lists items and reads them; :func:`annotate` says from the layout or a CSV file which class and
which split each item has.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, cast

from tenfold.config import DataConfig
from tenfold.data.decode import encode_png
from tenfold.errors import DataError, did_you_mean
from tenfold.storage import Entry, Store, open_store

Split = Literal["train", "test"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "unlabelled": "train",
    "unlabeled": "train",
    "test": "test",
}


class Source(Protocol):
    """A set of images."""

    uri: str

    def list(self) -> list[Entry]:
        """Return every file, sorted by path."""

    def read(self, path: str) -> bytes:
        """Return one file's bytes."""


class DigitsSource:
    """scikit-learn's ``load_digits``: 1,797 grey images of 8 x 8 pixels in 10 classes, as PNG files."""

    uri = "digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images = {
            f"{label}/{number:04d}.png": image
            for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True))
        }

    def list(self) -> list[Entry]:
        """See :class:`Source`."""
        return [Entry(path, 64, "load_digits") for path in sorted(self._images)]

    def read(self, path: str) -> bytes:
        """See :class:`Source`; 0..16 becomes 0..255."""
        return encode_png((self._images[path] * (255 / 16)).round().astype("uint8"))


class StoreSource:
    """Files below a folder or an S3 prefix."""

    def __init__(self, store: Store) -> None:
        self.store, self.uri = store, store.uri

    def list(self) -> list[Entry]:
        """See :class:`Source`; hidden files are passed over, as folders do it and S3 does not."""
        return sorted(entry for entry in self.store.list() if "/." not in f"/{entry.key}")

    def read(self, path: str) -> bytes:
        """See :class:`Source`."""
        return self.store.read(path)


def open_source(uri: str, *, patient: bool = True) -> Source:
    """Open ``digits``, a folder or an ``s3://`` prefix."""
    return DigitsSource() if uri == "digits" else StoreSource(open_store(uri, patient=patient))


class Annotated(NamedTuple):
    """An image with what the source says about it; None: it does not say."""

    entry: Entry
    label: str | None
    split: Split | None


@dataclass(frozen=True)
class Annotations:
    """Every image of a source, and the label list if one is configured.

    Attributes:
        images: sorted by path.
        listed: paths that keep their labels; None: no list was given.
    """

    images: list[Annotated]
    listed: frozenset[str] | None


def annotate(source: Source, config: DataConfig) -> Annotations:
    """List the source and give each image its class and split.

    Layouts: ``<class>/…``; ``train/<class>/…`` with ``test/<class>/…`` and optionally ``unlabelled/…``;
    or any layout with a CSV of ``path,label,split`` (``config.annotations``; the last two may be empty).
    Files directly at the top have no class.

    Raises:
        DataError: nothing is there, or the lists name what is not there.
    """
    entries = source.list()
    images = [entry for entry in entries if entry.key.lower().endswith(IMAGE_SUFFIXES)]
    foreign = [entry.key for entry in images if not _is_text(entry.key)]
    if foreign:
        raise DataError(f"{source.uri}: {len(foreign)} file names are no UTF-8; rename them: {foreign[:10]}")
    if not images:
        found = f" among {len(entries)} files" if entries else ""
        raise DataError(f"no images{found} in {source.uri}; expected {', '.join(IMAGE_SUFFIXES[:4])}, … files")
    if config.annotations:
        annotated = _from_csv(source, config.annotations, images)
    else:
        annotated = _from_layout(images)
    listed = None
    if config.labels.file:
        annotated, listed = _apply_list(config.labels.file, annotated)
    return Annotations(annotated, listed)


def _from_layout(images: Iterable[Entry]) -> list[Annotated]:
    images = list(images)
    tops = {image.key.split("/")[0] for image in images if "/" in image.key}
    by_split = bool(tops & {"train", "test"}) and tops <= set(_SPLIT_FOLDERS)
    annotated = []
    for image in images:
        parts = image.key.split("/")
        split = _SPLIT_FOLDERS[parts[0]] if by_split and len(parts) > 1 else None
        if split:
            unlabelled = parts[0].startswith("unlabel")
            parts = parts[1:]
        label = parts[0] if len(parts) > 1 and not (split and unlabelled) else None
        annotated.append(Annotated(image, label, split))
    return annotated


def _from_csv(source: Source, name: str, images: Iterable[Entry]) -> list[Annotated]:
    try:
        text = _text(source.read(name), f"{source.uri}/{name}")
    except KeyError:
        raise DataError(f"{source.uri} has no file {name}") from None
    columns, *rows = _rows(text, f"{source.uri}/{name}") or [[]]
    if "path" not in columns:
        raise DataError(f"{source.uri}/{name} has no column 'path' (columns: {', '.join(columns) or 'none'})")
    unknown = set(columns) - {"path", "label", "split"}
    if unknown:
        raise DataError(
            f"{source.uri}/{name}: unknown column '{min(unknown)}'{did_you_mean(min(unknown), ['label', 'split'])}"
        )
    by_path = {image.key: image for image in images}
    annotated, missing = [], []
    for line, values in enumerate(rows, start=2):
        row = dict(zip(columns, values, strict=False))
        path, split = row["path"], (row.get("split") or "").strip().lower() or None
        split = "train" if split in {"unlabelled", "unlabeled"} else split
        if split not in {None, "train", "test"}:
            raise DataError(f"{source.uri}/{name}, line {line}: split '{split}' is not train, test or unlabelled")
        if path not in by_path:
            missing.append(path)
            continue
        annotated.append(Annotated(by_path[path], (row.get("label") or "").strip() or None, cast(Split | None, split)))
    _require_found(missing, f"{source.uri}/{name}")
    if len({image.entry.key for image in annotated}) != len(annotated):
        raise DataError(f"{source.uri}/{name} names an image twice")
    return sorted(annotated)


def _apply_list(file: str, annotated: list[Annotated]) -> tuple[list[Annotated], frozenset[str]]:
    folder, _, name = file.rpartition("/")
    text = _text(open_store(folder or ".").read(name), f"the label list {file}")
    lines = [line for line in _rows(text, f"the label list {file}") if line[0].strip()]
    if lines and lines[0][0].strip() == "path":
        lines = lines[1:]
    labels: dict[str, str] = {}
    for line in lines:
        path, label = line[0].strip(), line[1].strip() if len(line) > 1 else ""
        if labels.setdefault(path, label) != label:
            raise DataError(f"the label list {file} gives {path} two labels: {labels[path]} and {label}")
    if not labels:
        raise DataError(f"the label list {file} is empty")
    known = {image.entry.key: image for image in annotated}
    labels = _with_folders(labels, known)
    _require_found([path for path in labels if path not in known], f"the label list {file}")
    unlabelled = [path for path, label in labels.items() if not (label or known[path].label)]
    if unlabelled:
        raise DataError(f"the label list {file} gives no label for {len(unlabelled)} images: {unlabelled[:10]}")
    tests = [path for path in labels if known[path].split == "test"]
    if tests:
        raise DataError(f"the label list {file} names {len(tests)} images of the test split: {tests[:10]}")
    changed = [
        image._replace(label=labels[image.entry.key] or image.label) if image.entry.key in labels else image
        for image in annotated
    ]
    return changed, frozenset(labels)


def _with_folders(labels: dict[str, str], known: Iterable[str]) -> dict[str, str]:
    """Return the list with the folders of bare file names (as the official ImageNet subsets have them) filled in."""
    if all("/" in path for path in labels):
        return labels
    paths: dict[str, list[str]] = {}
    for path in known:
        paths.setdefault(path.rpartition("/")[2], []).append(path)
    found = {}
    for name, label in labels.items():
        places = [name] if "/" in name or name in paths.get(name, []) else paths.get(name, [name])
        if len(places) > 1:
            raise DataError(f"the label list names {name}, which is in {len(places)} folders: {sorted(places)[:3]}")
        found[places[0]] = label
    return found


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is no UTF-8 text") from None


def _rows(text: str, where: str) -> list[list[str]]:
    """Return the non-empty rows of a CSV text."""
    try:
        return [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise DataError(f"{where} is no valid CSV: {error}") from None


def _is_text(name: str) -> bool:
    """Tell whether ``name`` is Unicode; Python spells other bytes of a file name as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _require_found(missing: list[str], where: str) -> None:
    if missing:
        first = "\n".join(f"  {path}" for path in missing[:10])
        more = f"\n  … and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DataError(f"{where} names {len(missing)} images that are not there:\n{first}{more}")
