"""What tenfold asks of storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

#: Bytes from a byte string or, without holding them in memory, from a local file.
Content = bytes | Path


class Entry(NamedTuple):
    """One object of a listing: its key below the root, size in bytes, and a tag that changes with content."""

    key: str
    size: int
    tag: str


class Span(NamedTuple):
    """A part of an object: its first byte and how many."""

    start: int
    size: int


class Store(Protocol):
    """A root address and keys below it.

    Objects that are named by their content are written with :meth:`create` (put-if-absent), so two writers of the
    same thing are both right.
    """

    uri: str

    def read(self, key: str, span: Span | None = None) -> bytes:
        """Return the object's bytes, or those of ``span``.

        Raises:
            StorageError: it is not there, ends before ``span`` does, or cannot be read.
        """

    def write(self, key: str, content: Content) -> None:
        """Write or replace the object, whole or not at all."""

    def create(self, key: str, content: Content, *, sealed: bool = False) -> bool:
        """Write the object if it is absent; True when this call made it.

        Args:
            key: of the object.
            content: its bytes.
            sealed: that nobody writes to the local file ``content`` any more, so that a link to it is as good as a
                copy; its name may be removed afterwards.

        Raises:
            ConflictError: the object is there with other bytes.
        """

    def exists(self, key: str) -> bool:
        """Tell whether the object is there."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose key starts with ``prefix``, in no promised order, a page at a time."""

    def dated(self, prefix: str = "") -> Iterator[tuple[Entry, float]]:
        """Yield what :meth:`list` does, each with when it was written: seconds since 1970, by the store's clock."""

    def delete(self, key: str) -> None:
        """Remove the object; absent is fine."""

    def sweep(self, prefix: str) -> None:
        """Remove what writers that were killed left unfinished below ``prefix``, where nobody writes now."""

    def fetch(self, key: str, folder: Path) -> Path:
        """Return a local file with the object's bytes, streamed into ``folder`` if need be.

        A file that is there already is kept, so keys must be named by content.
        """


def size_of(content: Content) -> int:
    """Return the number of bytes."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


def parts_of(content: Content, size: int) -> Iterator[bytes]:
    """Yield the content in parts of ``size`` bytes, the last one shorter; nothing of empty content."""
    if isinstance(content, bytes):
        for start in range(0, len(content), size):
            yield content[start : start + size]
        return
    with content.open("rb") as file:
        while part := file.read(size):
            yield part
