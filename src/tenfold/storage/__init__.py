"""Files and S3 behind one small interface."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

from tenfold.errors import StorageError, redact
from tenfold.storage.files import FileStore
from tenfold.storage.s3 import S3Store
from tenfold.storage.store import Content, Entry, Span, Store

__all__ = ["Content", "Entry", "FileStore", "S3Store", "Span", "Store", "free_bytes", "open_store"]


def open_store(uri: str, *, patient: bool = True) -> Store:
    """Open the store at ``uri``: ``s3://bucket/prefix``, ``file:///folder`` or a plain path.

    Raises:
        StorageError: the scheme is none of these.
    """
    scheme = urlparse(uri).scheme
    if scheme == "s3":
        bucket, _, prefix = uri.partition("://")[2].partition("/")  # a key may hold ? and #
        if not bucket:
            raise StorageError(f"'{uri}' names no bucket; write s3://bucket/prefix")
        if "@" in bucket or ":" in bucket:
            raise StorageError(
                f"'{redact(uri)}': an s3:// address holds a bucket's name and no credentials; give them by the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and take them out of where this one stood"
            )
        return S3Store(bucket, prefix, patient=patient)
    if scheme == "file":
        return FileStore(Path(unquote(urlparse(uri).path)))
    if scheme and len(scheme) > 1:
        raise StorageError(f"'{uri}': tenfold reads folders, file:// and s3:// addresses, not {scheme}://")
    return FileStore(Path(uri).absolute())


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
