"""What a task leaves in the store for MLflow: a spool without what was sent.

It lies at ``tracking/<run id>/<task>/<number>.jsonl``. A task that finds it reserves it with a ``.claim`` beside it, so
that tasks that start at once do not all send it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from tenfold.errors import ConflictError
from tenfold.storage import Store
from tenfold.tracking.spool import FOLDER, SUFFIX, Spool, header_of, number_of, unsent

_CLAIM = ".claim"


def leave(spool: Spool, store: Store) -> str:
    """Move what MLflow lacks of a spool into the store and return its key, behind those of earlier attempts.

    Raises:
        TenfoldError: the store does not take it; the local file is still there.
    """
    header = header_of(spool.path)
    prefix = f"{FOLDER}/{header.run_id}/{header.task}/"
    number = max((number_of(entry.key.rpartition("/")[2]) for entry in store.list(prefix)), default=0)
    with tempfile.NamedTemporaryFile(suffix=SUFFIX) as file:
        for line in chain([asdict(header)], unsent(spool.path)):
            file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        while True:
            number += 1
            key = f"{prefix}{number:06d}{SUFFIX}"
            try:
                store.create(key, Path(file.name))
            except ConflictError:
                continue
            spool.remove()
            return key


def left(store: Store, run_id: str | None = None) -> list[str]:
    """Return the keys of what tasks left, each task's in order; those of one run where it is given."""
    prefix = f"{FOLDER}/{run_id}/" if run_id else f"{FOLDER}/"
    return sorted(entry.key for entry in store.list(prefix) if entry.key.endswith(SUFFIX))


@contextlib.contextmanager
def claimed(store: Store, key: str, claimant: str) -> Iterator[bool]:
    """Reserve what lies at ``key``, and say whether that went well; a killed claimant's retry gets it again.

    What a claimant that never comes again had reserved is left to those who ask nobody: the next run's preflight.
    """
    try:
        store.create(key + _CLAIM, claimant.encode())
    except ConflictError:
        yield False
        return
    try:
        yield True
    finally:
        store.delete(key + _CLAIM)


def discard(store: Store, key: str) -> None:
    """Remove what lies at ``key``, and any reservation of it."""
    store.delete(key + _CLAIM)  # first, so that a kill here leaves no reservation of nothing
    store.delete(key)
