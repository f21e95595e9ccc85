"""F5, F7 and F8: a shard or index that is not what the manifest says is refused by name."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tenfold.data.decode import encode_png
from tenfold.data.manifest import Dataset, Manifest, Shard, SplitShards, publish
from tenfold.data.reader import SplitReader
from tenfold.data.shards import Sample, ShardWriter
from tenfold.errors import DataError, StorageError
from tenfold.storage import FileStore


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six samples in two shards."""
    import numpy as np

    store = FileStore(tmp_path / "store")
    writer = ShardWriter(store, 3, 10**9)
    for number in range(6):
        image = encode_png(np.full((4, 4, 3), number, dtype=np.uint8))
        writer.add(Sample(f"{number:032x}", "png", image, f"a/{number}.png", 0))
    split = SplitShards(count=6, class_counts={"a": 6}, shards=writer.close())
    return publish(store, Manifest(classes=["a", "b"], splits={"test": split}, quarantined=[]))


def second(dataset: Dataset) -> Shard:
    return dataset.manifest.splits["test"].shards[1]


def change(dataset: Dataset, suffix: str, edit: Callable[[bytes], bytes]) -> str:
    name = f"shards/{second(dataset).sha256}.{suffix}"
    dataset.store.write(name, edit(dataset.store.read(name)))
    return name


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_undamaged_shards_are_read(dataset: Dataset) -> None:
    reader = SplitReader(dataset, "test")
    assert [reader.path(number) for number in range(6)] == [f"a/{number}.png" for number in range(6)]


@pytest.mark.parametrize("position", [0, 700, 2000, -1])
def test_a_flipped_bit_in_a_shard_is_refused_naming_the_shard(dataset: Dataset, position: int) -> None:
    name = change(dataset, "tar", lambda data: flipped(data, position % len(data)))
    with pytest.raises(DataError, match=rf"{name} is damaged: .*delete it and run the shard stage again"):
        SplitReader(dataset, "test")


@pytest.mark.parametrize("position", [0, 10, 40])
def test_a_flipped_bit_in_an_index_is_refused_naming_the_shard(dataset: Dataset, position: int) -> None:
    name = change(dataset, "idx", lambda data: flipped(data, position))
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        SplitReader(dataset, "test")


def offsets(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset for member in tar.getmembers()]


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda data: data[: offsets(data)[3]], id="between two samples"),
        pytest.param(lambda data: data[: offsets(data)[4]], id="between an image and its class"),
        pytest.param(lambda data: data[: offsets(data)[3] + 100], id="inside a header"),
        pytest.param(lambda data: data[:-512], id="in the end marker"),
        pytest.param(lambda data: b"", id="to nothing"),
    ],
)
def test_a_cut_shard_is_refused_naming_the_shard(dataset: Dataset, cut: Callable[[bytes], bytes]) -> None:
    name = change(dataset, "tar", cut)
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        SplitReader(dataset, "test")


@pytest.mark.parametrize("kept", [0, 5, 20])
def test_a_cut_index_is_refused_naming_the_shard(dataset: Dataset, kept: int) -> None:
    name = change(dataset, "idx", lambda data: data[:kept])
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        SplitReader(dataset, "test")


@pytest.mark.parametrize(
    "member",
    [
        {"name": "../x.png"},
        {"name": "/abs.png"},
        {"name": "link.png", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "device.png", "type": tarfile.CHRTYPE},
        {"name": f"{3:032x}.png"},
    ],
    ids=["up", "absolute", "link", "device", "twice"],
)
def test_a_shard_with_a_member_slipped_in_is_refused(dataset: Dataset, member: dict[str, object]) -> None:
    def slip(data: bytes) -> bytes:
        info = tarfile.TarInfo()
        for field, value in member.items():
            setattr(info, field, value)
        return info.tobuf(format=tarfile.USTAR_FORMAT) + data

    name = change(dataset, "tar", slip)
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        SplitReader(dataset, "test")


def test_one_shard_in_the_place_of_another_is_refused(dataset: Dataset) -> None:
    first = dataset.manifest.splits["test"].shards[0]
    name = change(dataset, "tar", lambda data: dataset.store.read(f"shards/{first.sha256}.tar"))
    with pytest.raises(DataError, match=rf"{name} is damaged: .* sha256 {first.sha256}"):
        SplitReader(dataset, "test")


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_a_missing_shard_is_named(dataset: Dataset, suffix: str) -> None:
    name = f"shards/{second(dataset).sha256}.{suffix}"
    dataset.store.delete(name)
    with pytest.raises(StorageError, match=rf"{name} is not there"):
        SplitReader(dataset, "test")


def test_a_manifest_that_counts_otherwise_than_the_index_is_refused(dataset: Dataset) -> None:
    split = dataset.manifest.splits["test"]
    shards = [split.shards[0], split.shards[1].model_copy(update={"count": 2})]
    lying = Manifest(classes=["a"], splits={"test": split.model_copy(update={"shards": shards})}, quarantined=[])
    with pytest.raises(DataError, match=rf"shard {second(dataset).sha256} does not hold the manifest's 2 samples"):
        SplitReader(publish(dataset.store, lying), "test")
