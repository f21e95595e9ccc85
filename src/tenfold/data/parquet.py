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


def open_parquet(data: bytes) -> pq.ParquetFile:
    """Open a Parquet file's bytes for reading in this thread; readers must ask for no threads of Arrow's either.

    A thread of Arrow's that lets go of Python's bytes while the process ends aborts it (apache/arrow issue 34314).

    Raises:
        pyarrow.ArrowInvalid: it is none.
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)


def from_parquet(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of the store, the ``columns`` in their order.

    Raises:
        DataError: it is none, or lacks a column.
    """
    try:
        table = open_parquet(store.read(key)).read(columns, use_threads=False)
        return table if columns is None else table.select(columns)
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{store.uri}/{key} is damaged: {error}; delete it and run the shard stage again") from None
