"""Tables of images: a line an image, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

import pyarrow as pa

from tenfold.data.parquet import open_parquet
from tenfold.errors import DataError, did_you_mean

Split = Literal["train", "test"]
#: Names that people give to what tenfold cannot learn from.
_MANY = {"labels", "targets", "tags", "boxes", "mask"}


class Line(NamedTuple):
    """What a table says of an image (None: nothing), and where in the table that stands."""

    path: str
    label: str | None
    split: Split | None
    group: str | None
    number: int


def parted(address: str) -> tuple[str, str]:
    """Return the folder of a file's address, and its name; a bare name lies in the working folder."""
    folder, slash, name = address.rpartition("/")
    return folder or slash or ".", name


def read_lines(data: bytes, name: str, where: str) -> Iterator[Line]:
    """Yield the lines of a table with the columns ``path`` and perhaps ``label``, ``split`` and ``group``.

    Args:
        data: the file's bytes.
        name: its name; one that ends in ``.parquet`` is Parquet, every other CSV.
        where: what messages call it.

    Raises:
        DataError: no valid table, or a column, split or label that is not known.
    """
    columns, rows = _parquet(data, where) if name.endswith(".parquet") else _csv(data, where)
    if "path" not in columns:
        raise DataError(f"{where} has no column 'path' (columns: {', '.join(columns) or 'none'})")
    unknown = sorted(set(columns) - {"path", "label", "split", "group"})
    if set(unknown) & _MANY:
        raise DataError(
            f"{where}: the column '{min(set(unknown) & _MANY)}' looks like several labels an image; tenfold learns one "
            "class an image, in a column 'label'"
        )
    if unknown:
        raise DataError(
            f"{where}: unknown column '{unknown[0]}'"
            f"{did_you_mean(unknown[0], ['label', 'split', 'group']) or '; known are path, label, split and group'}"
        )
    for number, row in rows:
        split = (row.get("split") or "").strip().lower() or None
        split = "train" if split in {"unlabelled", "unlabeled"} else split
        if split not in {None, "train", "test"}:
            raise DataError(f"{where}, line {number}: split '{split}' is not train, test or unlabelled")
        label, group = ((row.get(key) or "").strip() or None for key in ("label", "group"))
        if label and label[0] in "[{(" and label[-1] in "]})":
            raise DataError(
                f"{where}, line {number}: the label {label} looks like several; tenfold learns one class an image"
            )
        yield Line(row["path"], label, cast(Split | None, split), group, number)


def _csv(data: bytes, where: str) -> tuple[list[str], Iterator[tuple[int, Mapping[str, str]]]]:
    rows = csv_rows(text_of(data, where), where)
    columns = next(rows, (1, []))[1]
    return columns, ((number, dict(zip(columns, values, strict=False))) for number, values in rows)


def _parquet(data: bytes, where: str) -> tuple[list[str], Iterator[tuple[int, Mapping[str, str]]]]:
    try:
        file = open_parquet(data)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where} is no valid Parquet file: {error}") from None
    nested = [field.name for field in file.schema_arrow if pa.types.is_nested(field.type)]
    if nested:
        raise DataError(f"{where}: the column '{nested[0]}' holds lists; tenfold learns one class an image")

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        number = 0
        for batch in file.iter_batches(65_536, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield number, {key: None if value is None else str(value) for key, value in row.items()}

    return list(file.schema_arrow.names), rows()


def text_of(data: bytes, where: str) -> str:
    """Return UTF-8 bytes as text.

    Raises:
        DataError: they are none.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is no UTF-8 text") from None


def csv_rows(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of the non-empty rows of a CSV text.

    Raises:
        DataError: it is none.
    """
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{where} is no valid CSV: {error}") from None
