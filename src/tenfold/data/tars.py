"""WebDataset shards as a source: what images a tar holds, where in it they lie, and what it says of them."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from tenfold.data.tables import Line, Split
from tenfold.errors import DataError
from tenfold.storage import Entry, Span, Store

#: Members that are images, by their extension.
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_BLOCK, _BUFFER, _AT_ONCE, _LOOKED_AT = 512, 1 << 16, 8, 1000
_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|val|valid|validation|unlabell?ed)(?=[/_.-])")
_TESTS = {"test", "val", "valid", "validation"}


class TarImage(NamedTuple):
    """An image of a tar: its member's name, where its bytes lie, and the class that the tar gives it."""

    member: str
    offset: int
    size: int
    label: str | None


def scan(file: IO[bytes], size: int, where: str) -> list[TarImage]:
    """Return the images of a tar, in its order.

    The class is the sample's ``cls`` member, or ``label`` or ``cls`` of its ``json`` member.

    Args:
        file: the tar, which can be sought in.
        size: its bytes.
        where: what messages call it.

    Raises:
        DataError: it is cut or no tar, has links or devices, names outside itself, or a name twice.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    seen: set[str] = set()
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isdir():
                    continue
                _check(member, seen, where)
                base, kind = _sample(member.name)
                if kind.endswith(IMAGES) and (base not in images or kind in IMAGES):
                    images[base] = (member.name, member.offset_data, member.size)
                elif kind in {".cls", ".json"}:
                    told = _label(tar, member, kind)
                    if told is not None:
                        labels[base] = told
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{where} is no whole tar: {error}") from None
    file.seek(end)
    if end + 2 * _BLOCK > size or file.read(2 * _BLOCK).strip(b"\0"):
        raise DataError(f"{where} is cut: it ends without the mark of a tar's end")
    return [TarImage(*found, labels.get(base)) for base, found in images.items()]


def _check(member: tarfile.TarInfo, seen: set[str], where: str) -> None:
    path = PurePosixPath(member.name)
    if not member.isreg() or member.issparse():
        raise DataError(f"{where} is refused: its member {member.name} is a link, a device, or sparse")
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where} is refused: its member {member.name} points outside of it")
    if member.name in seen:
        raise DataError(f"{where} is refused: it has the member {member.name} twice")
    seen.add(member.name)


def _sample(name: str) -> tuple[str, str]:
    """Divide a member's name at the first dot of its last part, as WebDataset does: sample and kind."""
    folder, slash, last = name.rpartition("/")
    base, dot, kind = last.partition(".")
    return folder + slash + base, (dot + kind).lower()


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> str | None:
    file = tar.extractfile(member)
    assert file is not None
    text = file.read(1 << 20).decode("utf-8", "replace").strip()
    if kind == ".cls":
        return text or None
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return None
    told = facts.get("label", facts.get("cls")) if isinstance(facts, dict) else None
    if not isinstance(told, str | int) or isinstance(told, bool):
        return None
    return str(told).encode("utf-8", "replace").decode().strip() or None


class _Remote(io.RawIOBase):
    """An object of a store as a file that is read in ranges."""

    def __init__(self, store: Store, entry: Entry) -> None:
        self._store, self._entry, self._at = store, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._entry.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._entry.size - self._at))
        if count:
            buffer[:count] = self._store.read(self._entry.key, Span(self._at, count))
            self._at += count
        return count


class TarSource:
    """The images of WebDataset tars below a folder or an S3 prefix; paths are ``<tar>/<member>``.

    A tar whose path says ``train``, ``unlabelled``, ``test`` or ``val`` puts its images there; the last counts as test.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.uri = store, store.uri
        self._folder = Path(tempfile.mkdtemp(prefix="tenfold-tars-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._scanned: list[Path] = []

    @staticmethod
    def fits(store: Store) -> bool:
        """Tell whether a store holds tars and no loose images, by its first files."""
        names = [entry.key.lower() for entry in islice(store.list(), _LOOKED_AT) if "/." not in f"/{entry.key}"]
        return any(name.endswith(".tar") for name in names) and not any(name.endswith(IMAGES) for name in names)

    def list(self) -> Iterator[Entry]:
        """See :class:`tenfold.data.sources.Source`; some tars at a time, and what was found is kept on disk."""
        self._scanned = []
        tars = (entry for entry in self.store.list() if entry.key.endswith(".tar") and "/." not in f"/{entry.key}")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while waiting := [pool.submit(self._scan, tar) for _, tar in zip(range(4 * _AT_ONCE), tars, strict=False)]:
                for future in waiting:
                    tar, images = future.result()
                    path = self._folder / f"{len(self._scanned):08d}"
                    path.write_text(json.dumps([tar.key, images]))
                    self._scanned.append(path)
                    yield from (Entry(f"{tar.key}/{image.member}", image.size, tar.tag) for image in images)

    def _scan(self, tar: Entry) -> tuple[Entry, Sequence[TarImage]]:
        if ".tar/" in tar.key:
            raise DataError(f"{self.uri}/{tar.key}: the name of a folder that tars lie in must not end in .tar")
        file = io.BufferedReader(_Remote(self.store, tar), _BUFFER)
        return tar, scan(file, tar.size, f"{self.uri}/{tar.key}")

    def lines(self) -> Iterator[Line]:
        """See :class:`tenfold.data.sources.Source`; of the tars that :meth:`list` came to."""
        number = 0
        for path in self._scanned:
            tar, images = json.loads(path.read_text())
            found = _SPLIT.findall(tar)
            split: Split | None = ("test" if found[-1] in _TESTS else "train") if found else None
            for image in (TarImage(*values) for values in images):
                number += 1
                label = None if found and found[-1].startswith("unlabel") else image.label
                yield Line(f"{tar}/{image.member}", label, split, None, number)

    def read(self, path: str) -> bytes:
        """See :class:`tenfold.data.sources.Source`; an image, or another file beside the tars."""
        tar, inside, member = path.partition(".tar/")
        if not inside:
            return self.store.read(path)
        entry = next(entry for entry in self.store.list(f"{tar}.tar") if entry.key == f"{tar}.tar")
        image = next(image for image in self._scan(entry)[1] if image.member == member)
        return self.store.read(entry.key, Span(image.offset, image.size))
