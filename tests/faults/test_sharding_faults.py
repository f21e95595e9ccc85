"""F6, F9, F12, F29 and kills while a data set is sharded."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from pictures import picture

from tenfold.config import DataConfig
from tenfold.data import pack as packing
from tenfold.data.build import build_dataset
from tenfold.data.manifest import is_whole
from tenfold.data.reader import SplitReader
from tenfold.data.sources import StoreSource, open_source
from tenfold.errors import DataError, StorageError
from tenfold.storage import FileStore, Store
from tenfold.storage.store import Content, size_of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(60):
        path = folder / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def config(source: Path, **values: Any) -> DataConfig:
    told = {"source": str(source), "labels": {"per_class": 2}, "split": {"test_fraction": 0.3}, "shard_images": 5}
    return DataConfig.model_validate({**told, **values})


class Failing(StoreSource):
    """A source whose reading breaks off after a number of images."""

    def __init__(self, store: Store, reads: int) -> None:
        super().__init__(store)
        self.left, self.reads = reads, list[str]()

    def read(self, path: str) -> bytes:
        if self.left <= 0:
            raise StorageError("the line is dead")
        self.left -= 1
        self.reads.append(path)
        return super().read(path)


def digest_of_all(images: Path, tmp_path: Path) -> str:
    return build_dataset(open_source(str(images)), config(images), FileStore(tmp_path / "reference"))[0].digest


def test_a_packer_that_broke_off_goes_on_behind_its_last_full_shard(images: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    first = Failing(FileStore(images), 40)
    with pytest.raises(StorageError, match="the line is dead"):
        build_dataset(first, config(images), store, threads=1)
    assert list(store.list("datasets/")) == []
    second = Failing(FileStore(images), 1000)
    dataset, _ = build_dataset(second, config(images), store, threads=1)
    assert dataset.digest == digest_of_all(images, tmp_path)
    assert len(second.reads) <= 60 - 30, "what full shards hold is not read again"
    assert not [entry.key for entry in store.list("packs/") if not entry.key.endswith("packed.parquet")]


KILLED = """
import sys, time
from pathlib import Path
from tenfold.config import DataConfig
from tenfold.data.build import build_dataset
from tenfold.data.sources import open_source
from tenfold.storage import FileStore

class Slow(type(open_source(sys.argv[1]))):
    def read(self, path):
        time.sleep(0.03)
        return super().read(path)

config = DataConfig.model_validate_json(sys.argv[3])
print(build_dataset(Slow(FileStore(Path(sys.argv[1]))), config, FileStore(Path(sys.argv[2])), threads=1)[0].digest)
"""


def test_a_packer_killed_at_any_moment_leaves_nothing_half_written(images: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", KILLED, str(images), str(store), config(images).model_dump_json()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        before = len(list(store.rglob("*"))) if store.is_dir() else 0
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if store.is_dir() and len(list(store.rglob("*.tar"))) * 3 > before // 4 + 3:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in store.rglob("*.tar"):
            assert packing.hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == digest_of_all(images, tmp_path)


class Full(FileStore):
    """A disk that is full after a number of bytes."""

    def __init__(self, root: Path, room: int) -> None:
        super().__init__(root)
        self.room = room

    def create(self, key: str, content: Content, *, sealed: bool = False) -> bool:
        self.room -= size_of(content)
        if self.room < 0:
            with self._errors(key):
                raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(key, content, sealed=sealed)


@pytest.mark.parametrize("room", [0, 3_000, 12_000, 25_000])
def test_a_full_disk_is_told_and_leaves_no_half_shard(images: Path, tmp_path: Path, room: int) -> None:
    store = Full(tmp_path / "store", room)
    with pytest.raises(StorageError, match="No space left on device"):
        build_dataset(open_source(str(images)), config(images), store)
    assert list(store.list("datasets/")) == []
    for path in (tmp_path / "store").rglob("*.tar"):
        assert packing.hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    dataset, _ = build_dataset(open_source(str(images)), config(images), FileStore(tmp_path / "store"))
    assert dataset.digest == digest_of_all(images, tmp_path)


def test_a_temporary_folder_without_room_is_told_and_left_empty(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the room: writing beyond it fails as a full disk does."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store, before = FileStore(tmp_path / "store"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"a temporary file \(TMPDIR\): File too large"):
            build_dataset(open_source(str(images)), config(images, shard_images=40), store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(temporary.iterdir()) == []
    assert build_dataset(open_source(str(images)), config(images), store)[0].digest == digest_of_all(images, tmp_path)


class Cut(StoreSource):
    """A source that answers with a part of a file, a number of times."""

    def __init__(self, store: Store, times: int) -> None:
        super().__init__(store)
        self.times = times

    def read(self, path: str) -> bytes:
        data = super().read(path)
        if path == "a/0.png" and self.times:
            self.times -= 1
            return data[:50]
        return data


def test_an_answer_that_came_short_is_asked_for_again(images: Path, tmp_path: Path) -> None:
    dataset, _ = build_dataset(Cut(FileStore(images), 2), config(images), FileStore(tmp_path / "store"))
    assert dataset.digest == digest_of_all(images, tmp_path)
    assert dataset.manifest.quarantined == []


def test_an_image_that_stays_short_stops_the_packer_and_is_not_quarantined(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a/0\.png has 50 bytes, and had \d+ when it was listed"):
        build_dataset(Cut(FileStore(images), 99), config(images), FileStore(tmp_path / "store"))


def test_nothing_new_is_one_empty_partition_and_the_same_data_set(images: Path, tmp_path: Path) -> None:
    from tenfold.components.shard import stage
    from tenfold.data.plan import open_plan
    from tenfold.environment import Environment
    from tenfold.progress import Reporter

    environment = Environment.read()
    store = FileStore(Path(environment.home / "store"))
    first = build_dataset(open_source(str(images)), config(images), store)[0]
    partitions = stage.plan(config(images), environment, Reporter("shard"))
    assert len(partitions) == 1
    plan = open_plan(store, partitions[0].partition("/")[0])
    assert [partition.images for partition in plan.partitions] == [0]
    stage.pack(config(images), partitions[0], environment, Reporter("shard"))
    again, fresh = build_dataset(open_source(str(images)), config(images), store)
    assert (again.digest, fresh) == (first.digest, False)


def test_an_empty_source_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    store = FileStore(tmp_path / "store")
    with pytest.raises(DataError, match="no images in"):
        build_dataset(open_source(str(tmp_path / "images")), config(tmp_path / "images"), store)
    assert list(store.list()) == []


def test_a_source_that_lost_all_its_images_is_refused_and_the_data_set_stays(images: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    first = build_dataset(open_source(str(images)), config(images), store)[0]
    for path in images.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="no images"):
        build_dataset(open_source(str(images)), config(images), store)
    assert is_whole(first)
    assert len(SplitReader(first, "test")) == first.manifest.splits["test"].count
