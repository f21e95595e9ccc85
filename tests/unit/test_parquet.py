"""Tables in the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tenfold.data.parquet import as_parquet, from_parquet
from tenfold.errors import DataError
from tenfold.storage import open_store

#: Reads tables of many columns as the store and a user's annotations are read, and tells of threads that were begun.
READ = """
import os, sys
from tenfold.data.parquet import from_parquet
from tenfold.data.tables import read_lines
from tenfold.storage import open_store
store = open_store(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
table = from_parquet(store, "many")
lines = list(read_lines(store.read("annotations"), "annotations.parquet", "here"))
assert table.num_columns == 60 and len(lines) == 9
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_a_table_comes_back_with_the_columns_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    store.write("t", as_parquet(pa.table({"a": [1, 2], "b": ["x", None], "c": [0.5, 1.5]})))
    assert from_parquet(store, "t").to_pydict() == {"a": [1, 2], "b": ["x", None], "c": [0.5, 1.5]}
    assert from_parquet(store, "t", ["c", "a"]).column_names == ["c", "a"]


@pytest.mark.parametrize("columns", [["a", "none"], ["none"]])
def test_a_table_that_lacks_a_column_is_told_to_be_damaged(tmp_path: Path, columns: list[str]) -> None:
    store = open_store(tmp_path.as_uri())
    store.write("t", as_parquet(pa.table({"a": [1, 2]})))
    with pytest.raises(DataError, match=r"/t is damaged: .*none.*; delete it and run the shard stage again"):
        from_parquet(store, "t", columns)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux tells them")
def test_reading_begins_no_thread_that_could_abort_a_process_that_ends(tmp_path: Path) -> None:
    """Arrow's threads do (apache/arrow issue 34314): a stage ended with status 134 behind its last line."""
    store = open_store(tmp_path.as_uri())
    store.write("many", as_parquet(pa.table({f"c{n}": list(range(1000)) for n in range(60)})))
    store.write("annotations", as_parquet(pa.table({"path": [f"{n}.png" for n in range(9)], "label": ["a"] * 9})))
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
