"""Tars that others wrote, taken as shards where they lie: checked, indexed, not copied.

An image that trains and that every decoder reads alike stays in its tar. The others are copied into shards of our own:
test images, images that must be re-encoded, and all where ``data.pixels`` asks for others than 8-bit RGB.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tenfold.data.annotations import Row
from tenfold.data.manifest import Shard, address, shard_key
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
    name: str
    sha256: str
    size: int
    images: list[TarImage]
    data: mmap.mmap | None
    rows: dict[str, int]

    def key(self, place: int) -> str:
        """Return a sample's stable name, which the whole tar's digest decides."""
        return digest(f"{self.name}/{self.images[place].member}\0{self.sha256}")[:32]

    def extension(self, place: int) -> str:
        return "png" if self.images[place].member.lower().endswith(".png") else "jpg"

    def index(self) -> bytes:
        """Return the DALI index of all images, with their paths."""
        lines = [f"v1.2 {len(self.images)}"]
        for place, image in enumerate(self.images):
            kind, path = self.extension(place), quote(f"{self.name}/{image.member}")
            lines.append(f"{kind} {image.offset} {image.size} {self.key(place)}.{kind} path 0 0 {path}")
        return "".join(f"{line}\n" for line in lines).encode()


class Adopting:
    """Checks images where their tar lies; see :func:`tenfold.data.pack.pack`."""

    waits = False  # a tar from afar is fetched whole

    def __init__(self, plan: Plan, source: TarSource, store: Store) -> None:
        self._plan, self._source, self._store = plan, source, store
        self._open: OrderedDict[str, _Tar] = OrderedDict()
        self._used: dict[str, _Tar] = {}
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
        plain = self._plan.pixels is None and checked.facts.get("stored") == checked.facts.get("content")
        if checked.sample is None or checked.facts["side"] != "train" or not plain:
            return checked
        with self._lock:
            self._used[tar.sha256 + tar.name] = tar
        return Checked({**checked.facts, "key": tar.key(place), "shard": tar.sha256, "row": place}, None)

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
            rows = {image.member: place for place, image in enumerate(images)}
            return _Tar(name, file_digest(path), size, images, data, rows)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays until it is closed

    def adopted(self) -> list[Shard]:
        """Write the indexes of the tars that images were adopted from since the last call, and return those as shards.

        Which of a tar's rows are used is for the merge to say: others may have been adopted earlier.
        """
        used, self._used = self._used, {}
        shards = []
        for tar in sorted(used.values(), key=lambda tar: tar.name):
            index = tar.index()
            shard = Shard(
                sha256=tar.sha256, size=tar.size, count=len(tar.images), index_sha256=digest(index),
                uri=address(self._source.uri, tar.name),
            )  # fmt: skip
            self._store.create(shard_key(shard, "idx"), index)
            shards.append(shard)
        return shards
