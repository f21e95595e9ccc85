"""A folder as a store."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tenfold.errors import ConflictError, StorageError
from tenfold.storage.store import Content, Entry, Span, parts_of

_CHUNK = 1 << 20
#: Of what is written: a temporary file is its owner's alone, and a shared store has other readers.
_MODE = 0o644
_ASIDE = ".writing-"

#: What a folder on a network gives while its server is away.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}

#: How often a folder is made again that another process removed.
_TRIES = 100


class FileStore:
    """A folder as a store."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = root.absolute().as_uri()

    def _path(self, key: str) -> Path:
        # By its name alone: a link in the folder may lead out of it, as links to images often do.
        parts = PurePosixPath(key)
        if parts.is_absolute() or ".." in parts.parts:
            raise StorageError(f"key '{key}' leaves the store {self.uri}")
        return self.root / key

    @contextlib.contextmanager
    def _errors(self, key: str, doing: str = "write") -> Iterator[None]:
        tried = (doing, self.uri, key)
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"{self.uri}/{key} is not there", tried=tried) from error
        except OSError as error:
            told, again = f"{self.uri}/{key}: {error.strerror or error}", error.errno in _PASSING
            raise StorageError(told, again=again, tried=tried) from error

    def read(self, key: str, span: Span | None = None) -> bytes:
        """See :class:`Store`."""
        with self._errors(key, "read"):
            path = self._path(key)
            if span is None:
                return path.read_bytes()
            with path.open("rb") as file:
                file.seek(span.start)
                data = file.read(span.size)
        if len(data) != span.size:
            raise StorageError(f"{self.uri}/{key} ends before byte {span.start + span.size}")
        return data

    def write(self, key: str, content: Content) -> None:
        """See :class:`Store`."""
        with self._errors(key):
            path = self._path(key)
            write_aside(path, content).replace(path)

    def create(self, key: str, content: Content, *, sealed: bool = False) -> bool:
        """See :class:`Store`; the hard link makes one writer win."""
        with self._errors(key):
            path = self._path(key)
            aside = (_linked_aside(path, content) if sealed else None) or write_aside(path, content)
            try:
                path.hardlink_to(aside)
                return True
            except FileExistsError:
                if not filecmp.cmp(path, aside, shallow=False):
                    raise ConflictError(f"{self.uri}/{key} is there already with other bytes") from None
                return False
            finally:
                aside.unlink()

    def exists(self, key: str) -> bool:
        """See :class:`Store`."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See :class:`Store`; names that start with a dot are passed over."""
        return (entry for entry, _ in self.dated(prefix))

    def dated(self, prefix: str = "") -> Iterator[tuple[Entry, float]]:
        """See :class:`Store`."""
        folder = self._path(prefix.rpartition("/")[0])

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # gone since its name was read
                raise StorageError(f"{error.filename}: {error.strerror}", tried=("list", self.uri, prefix)) from error

        for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
            here = Path(parent).resolve()
            folders[:] = [
                name  # a link to a folder above would be walked for ever
                for name in folders
                if not name.startswith(".") and not here.is_relative_to((here / name).resolve())
            ]
            above = Path(parent).relative_to(self.root).as_posix()
            for name in files:
                key = name if above == "." else f"{above}/{name}"
                if name.startswith(".") or not key.startswith(prefix):
                    continue
                path = os.path.join(parent, name)  # noqa: PTH118 - a Path a file is a third of the time
                try:
                    stat = os.stat(path)  # noqa: PTH116
                except FileNotFoundError:
                    if os.path.islink(path):  # noqa: PTH114
                        raise StorageError(f"{path} is a link to nothing") from None
                    continue  # gone since its name was read
                except OSError as error:  # a link to itself, for example
                    raise StorageError(f"{path}: {error.strerror}") from None
                yield Entry(key, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}"), stat.st_mtime

    def delete(self, key: str) -> None:
        """See :class:`Store`; folders left empty go too."""
        with self._errors(key):
            path = self._path(key)
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.root:
                    break
                try:
                    parent.rmdir()
                except OSError:  # not empty, or another process was first
                    break

    def sweep(self, prefix: str) -> None:
        """See :class:`Store`; these are hidden files."""
        for aside in self._path(prefix.rpartition("/")[0]).rglob(f"{_ASIDE}*"):
            if aside.relative_to(self.root).as_posix().startswith(prefix):
                aside.unlink(missing_ok=True)

    def fetch(self, key: str, folder: Path) -> Path:
        """See :class:`Store`; the object is a local file already."""
        path = self._path(key)
        if not path.is_file():
            raise StorageError(f"{self.uri}/{key} is not there", tried=("read", self.uri, key))
        return path


def _linked_aside(path: Path, content: Content) -> Path | None:
    """Give the file ``content`` a hidden second name beside ``path``; None where that cannot be, as on other disks."""
    assert isinstance(content, Path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{_ASIDE}{uuid.uuid4().hex}")
    try:
        aside.hardlink_to(content)
    except OSError:
        return None
    try:
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.chmod(_MODE)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return aside


def write_aside(path: Path, content: Content) -> Path:
    """Write ``content`` whole into a hidden file beside ``path``; nothing is left of it where that fails."""
    handle, name = _made_beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts_of(content, _CHUNK):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(_MODE)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _made_beside(path: Path) -> tuple[int, str]:
    """Make a hidden file beside ``path``, and the folder where it is missing; return its handle and name.

    A deletion takes folders that it leaves empty with it, between the two at the worst.
    """
    tries = _TRIES
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return tempfile.mkstemp(dir=path.parent, prefix=_ASIDE)
        except (FileNotFoundError, FileExistsError):
            tries -= 1
            if not tries or path.parent.is_file():
                raise
