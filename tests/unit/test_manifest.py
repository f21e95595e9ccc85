from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.data import manifest as module
from tenfold.data.garbage import find_garbage
from tenfold.data.manifest import Manifest, Shard, SplitShards, open_dataset, publish
from tenfold.errors import DataError
from tenfold.fingerprint import digest
from tenfold.storage import FileStore


def shard(number: int) -> Shard:
    return Shard(sha256=digest(str(number)), size=10240, count=3, index_sha256=digest(f"i{number}"), dropped=[])


def made(count: int) -> Manifest:
    splits = {
        "unlabelled": SplitShards(count=3 * count, class_counts={}, shards=[shard(n) for n in range(count)]),
        "labelled": SplitShards(count=3, class_counts={"a": 3}, shards=[shard(-1)]),
        "test": SplitShards(count=3, class_counts={"a": 3}, shards=[shard(-2)]),
    }
    return Manifest.model_validate({"classes": ["a"], "splits": splits, "quarantined": []})


def keys(store: FileStore, prefix: str) -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def test_a_long_list_of_shards_lies_in_parts_and_comes_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARDS_A_PART", 10)
    store = FileStore(tmp_path)
    dataset = publish(store, made(25))
    assert len(keys(store, "datasets/parts/")) == 3
    assert b"datasets" not in (data := store.read(f"datasets/{dataset.digest}/manifest.json"))
    assert len(data) < 1500, "the manifest itself names the parts alone"
    assert open_dataset(dataset.uri).manifest == made(25)
    assert publish(store, made(25)).digest == dataset.digest
    assert publish(store, made(26)).digest != dataset.digest
    assert len(keys(store, "datasets/parts/")) == 4, "two parts of the two manifests are the same"


def test_a_short_list_stays_in_the_manifest(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    publish(store, made(25))
    assert not keys(store, "datasets/parts/")


@pytest.mark.parametrize("change", [lambda data: data[:-9] + b"0" + data[-8:], lambda data: data[:-20]])
def test_a_damaged_part_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    monkeypatch.setattr(module, "SHARDS_A_PART", 10)
    store = FileStore(tmp_path)
    dataset = publish(store, made(25))
    key = keys(store, "datasets/parts/")[1]
    path = tmp_path / key
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"datasets/parts/.* is damaged"):
        open_dataset(dataset.uri)


def test_what_parts_name_is_no_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARDS_A_PART", 10)
    store = FileStore(tmp_path)
    publish(store, made(25))
    for number in (3, 24, 99):
        store.write(f"shards/{digest(str(number))}.tar", b"x")
    assert [entry.key for entry in find_garbage(store)] == [f"shards/{digest('99')}.tar"]
