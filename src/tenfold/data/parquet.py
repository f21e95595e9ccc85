"""Tables in the store, as Parquet files."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from tenfold.errors import DataError
from tenfold.storage import Store


def as_parquet(table: pa.Table) -> bytes:
    """Return a table as a Parquet file's bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of the store.

    Raises:
        DataError: it is none.
    """
    try:
        return pq.read_table(pa.BufferReader(store.read(key)), columns=columns)
    except pa.ArrowInvalid as error:
        raise DataError(f"{store.uri}/{key} is damaged: {error}; delete it and run the shard stage again") from None
