"""Shards on local disk: verified once, shared by the processes of a node, the least recently used removed first."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tenfold.data.manifest import Shard, locate, shard_key
from tenfold.errors import DataError, StorageError
from tenfold.fingerprint import file_digest
from tenfold.storage import Store


class ShardCache:
    """A folder of shards from afar; a store that is a folder is read where it lies.

    A file's name is given only after its digest was found right, so that what has the name is whole. Processes that
    want the same shard at once wait for the one that fetches it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Use ``folder``, and leave at most ``limit`` bytes in it."""
        self.folder, self.limit = folder, limit

    def fetch(self, store: Store, shard: Shard, suffix: Literal["tar", "idx"]) -> Path:
        """Return a local file with the verified bytes of a shard's ``tar`` or ``idx``.

        Raises:
            DataError: the store's bytes are not those that the manifest names.
            StorageError: it is not there.
        """
        sha256 = shard.sha256 if suffix == "tar" else shard.index_sha256
        kept = self.folder / Path(shard_key(shard, suffix)).name
        with contextlib.suppress(OSError):
            os.utime(kept)  # used now
            if file_digest(kept) == sha256:
                return kept
            kept.unlink()  # damaged where it lies: fetched again
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(shard.sha256):
                if kept.is_file():  # another process was first
                    return kept
                place, key = locate(store, shard, suffix)
                incoming = self.folder / "incoming" / (shard.sha256 if shard.uri else "")  # their names may be the same
                path = place.fetch(key, incoming)
                found = file_digest(path)
                mine = path.parent == incoming
                if found != sha256:
                    size = path.stat().st_size
                    if mine:
                        path.unlink()
                    raise DataError(
                        f"{place.uri}/{key} is {'another' if shard.uri else 'damaged'}: {size} bytes with sha256 "
                        f"{found}, the manifest says {sha256}; "
                        f"{'' if shard.uri else 'delete it and '}run the shard stage again"
                    )
                if not mine:
                    return path
                self._make_room(path.stat().st_size)
                return path.rename(kept)
        except OSError as error:
            raise StorageError(f"{error.filename or self.folder}: {error.strerror or error}") from None

    def _make_room(self, size: int) -> None:
        files = []
        for path in self.folder.glob("*.*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(each[1] for each in files) + size
        for _, held, path in sorted(files):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)  # who has it mapped goes on reading it
            total -= held

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        # one of a few lock files, so that they need no clearing up
        with (self.folder / f".lock-{name[:2]}").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
