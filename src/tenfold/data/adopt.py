"""Tars that others wrote, taken as shards where they lie: checked, indexed, not copied.

An image that trains and that every decoder reads alike stays in its tar. The others are copied into shards of our own:
test images, images that must be re-encoded. The tar's row of an image that is not used counts as dropped.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tenfold.data.annotations import Row
from tenfold.data.manifest import Shard, shard_key
from tenfold.data.pack import Check, Checked, Checking, examined
from tenfold.data.plan import Plan
from tenfold.data.sources import Source
from tenfold.data.tars import TarImage, TarSource, scan
from tenfold.errors import DataError
from tenfold.fingerprint import digest, file_digest
from tenfold.storage import Store

#: Tars that are held open; rows come tar by tar, some hundred at once.
_OPEN = 16


def check_of(plan: Plan, source: Source, store: Store) -> Check:
    """Return what checks the images of ``source`` for a packer, and adopts them where it can."""
    return Adopting(plan, source, store) if isinstance(source, TarSource) else Checking(plan, source)


@dataclass
class _Tar:
    sha256: str
    size: int
    images: list[TarImage]
    data: mmap.mmap | None
    rows: dict[str, int]
    keys: dict[int, tuple[str, str]] = field(default_factory=dict)  # of adopted rows: key and extension


class Adopting:
    """Checks images where their tar lies; see :func:`tenfold.data.pack.pack`."""

    def __init__(self, plan: Plan, source: TarSource, store: Store) -> None:
        self._plan, self._source, self._store = plan, source, store
        self._tars: dict[str, _Tar] = {}
        self._open: OrderedDict[str, _Tar] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, number: int, row: Row) -> Checked:
        """Check an image."""
        name, _, member = row.path.partition(".tar/")
        tar, data = self._tar(f"{name}.tar")
        place = tar.rows.get(member)
        if place is None or data is None or tar.images[place].size != row.size:
            raise DataError(f"{self._source.uri}/{row.path} was there when it was listed and is not now; run again")
        image = tar.images[place]
        checked = examined(self._plan, number, row, bytes(data[image.offset : image.offset + image.size]))
        sample = checked.sample
        plain = checked.facts.get("stored") == checked.facts.get("content")
        if sample is None or checked.facts["side"] != "train" or not plain:
            return checked
        with self._lock:
            tar.keys[place] = (sample.key, sample.extension)
        return Checked({**checked.facts, "shard": tar.sha256, "row": place}, None)

    def _tar(self, name: str) -> tuple[_Tar, mmap.mmap | None]:
        with self._lock:
            tar = self._open.get(name)
            if tar is None:
                tar = self._open[name] = self._opened(name)
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)[1].data = None
            self._open.move_to_end(name)
            return tar, tar.data

    def _opened(self, name: str) -> _Tar:
        folder = Path(tempfile.mkdtemp(prefix="tenfold-tar-"))
        try:
            path = self._source.store.fetch(name, folder)
            with path.open("rb") as file:
                size = path.stat().st_size
                images = scan(file, size, f"{self._source.uri}/{name}")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            known = self._tars.get(name)
            if known is not None:
                known.data = data
                return known
            rows = {image.member: place for place, image in enumerate(images)}
            made = self._tars[name] = _Tar(file_digest(path), size, images, data, rows)
            return made
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays until it is closed

    def adopted(self) -> list[Shard]:
        """Write the indexes of the tars that images were adopted from, and return those as shards."""
        shards: dict[str, Shard] = {}
        for name, tar in sorted(self._tars.items()):
            if not tar.keys:
                continue
            uri = f"{self._source.uri}/{name}"
            if tar.sha256 in shards:
                raise DataError(f"{shards[tar.sha256].uri} and {uri} hold the same bytes; remove one of them")
            lines = [self._line(tar, name, place) for place in range(len(tar.images))]
            index = f"v1.2 {len(lines)}\n{''.join(line + chr(10) for line in lines)}".encode()
            dropped = sorted(set(range(len(lines))) - set(tar.keys))
            shard = Shard(
                sha256=tar.sha256, size=tar.size, count=len(lines), index_sha256=digest(index), dropped=dropped, uri=uri
            )
            self._store.create(shard_key(shard, "idx"), index)
            shards[tar.sha256] = shard
        return list(shards.values())

    def _line(self, tar: _Tar, name: str, place: int) -> str:
        image = tar.images[place]
        key, extension = tar.keys.get(place, (f"row-{place}", "jpg"))
        path = quote(f"{name}/{image.member}")
        return f"{extension} {image.offset} {image.size} {key}.{extension} path 0 0 {path}"
