from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from tenfold.components.shard import stage
from tenfold.config import DataConfig, LabelsConfig
from tenfold.data.build import build_dataset
from tenfold.data.decode import decode
from tenfold.data.inspect import inspect
from tenfold.data.manifest import Dataset, Manifest, dataset_digest, manifest_key, open_dataset, publish
from tenfold.data.parquet import from_parquet
from tenfold.data.reader import SplitReader
from tenfold.data.sources import Source, open_source
from tenfold.data.tables import Line
from tenfold.errors import ConflictError, DataError, StorageError
from tenfold.fingerprint import digest
from tenfold.storage import Entry, FileStore
from tenfold.work import Work


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of twelve images, one of them 16-bit, and a file that is none."""
    folder = tmp_path / "images"
    for number in range(36):
        path = folder / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    Image.fromarray(np.full((4, 4), 514, dtype=np.uint16)).save(folder / "a" / "wide.png")
    return folder


def config(source: Path | str, **values: Any) -> DataConfig:
    return DataConfig.model_validate(
        {
            "source": str(source),
            "labels": {"per_class": 2},
            "split": {"test_fraction": 0.3},
            "shard_images": 10,
            **values,
        }
    )


class Counting:
    """A source that counts what is read, and lists in the order that it is told."""

    def __init__(self, source: Source, order: Callable[[list[Entry]], list[Entry]] = list) -> None:
        self.source, self.uri, self.order, self.reads = source, source.uri, order, 0

    def list(self) -> Iterator[Entry]:
        return iter(self.order(list(self.source.list())))

    def lines(self) -> Iterator[Line] | None:
        return self.source.lines()

    def read(self, path: str) -> bytes:
        self.reads += 1
        return self.source.read(path)


def build(folder: Path, store: Path, **values: Any) -> Dataset:
    return build_dataset(open_source(str(folder)), config(folder, **values), FileStore(store))[0]


# --- the same images, the same data set ------------------------------------------------------------------


def test_another_order_of_the_listing_gives_the_same_data_set(images: Path, tmp_path: Path) -> None:
    (images / "a" / "bad.png").write_bytes(b"")
    (images / "b" / "bad.png").write_bytes(b"")
    built = []
    for name, order in (("one", list), ("other", lambda entries: entries[::-1])):
        source = Counting(open_source(str(images)), order)
        built.append(build_dataset(source, config(images, max_bad_fraction=0.1), FileStore(tmp_path / name))[0])
    assert built[0].digest == built[1].digest


def test_another_folder_and_other_times_give_the_same_data_set(images: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "deeper"
    shutil.copytree(images, moved)
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    assert build(images, tmp_path / "one").digest == build(moved, tmp_path / "other").digest


def test_files_that_are_no_images_change_nothing(images: Path, tmp_path: Path) -> None:
    before = build(images, tmp_path / "one").digest
    (images / "a" / "notes.txt").write_text("hello")
    assert build(images, tmp_path / "other").digest == before


def test_each_of_content_name_and_configuration_changes_the_data_set(images: Path, tmp_path: Path) -> None:
    digests = [
        build(images, tmp_path / "store").digest,
        build(images, tmp_path / "store", labels={"per_class": 3}).digest,
        build(images, tmp_path / "store", split={"test_fraction": 0.3, "seed": 1}).digest,
        build(images, tmp_path / "store", shard_images=11).digest,
    ]
    (images / "a" / "0.png").rename(images / "a" / "zero.png")
    digests.append(build(images, tmp_path / "store").digest)
    (images / "a" / "zero.png").write_bytes(picture(99))
    digests.append(build(images, tmp_path / "store").digest)
    assert len(set(digests)) == 6


# --- the second time -------------------------------------------------------------------------------------


def test_an_unchanged_source_is_not_read_again(images: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    first, second = (Counting(open_source(str(images))) for _ in range(2))
    built, fresh = build_dataset(first, config(images), store)
    again, fresh_again = build_dataset(second, config(images), store)
    assert (first.reads, fresh) == (37, True)
    assert (second.reads, fresh_again) == (0, False)
    assert again.uri == built.uri
    assert again.manifest == built.manifest


def test_a_changed_image_is_noticed_where_only_its_time_tells(images: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    before, _ = build_dataset(open_source(str(images)), config(images), store)
    path = images / "b" / "1.png"
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data))
    os.utime(path, ns=(1, 1))
    source = Counting(open_source(str(images)))
    same, fresh = build_dataset(source, config(images), store)
    assert (same.digest, fresh, source.reads) == (before.digest, True, 1)  # touched: read, and found the same
    path.write_bytes(picture(50))
    os.utime(path, ns=(2, 2))
    after, _ = build_dataset(open_source(str(images)), config(images), store)
    assert after.digest != before.digest


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_a_shard_that_is_gone_is_made_again(images: Path, tmp_path: Path, suffix: str) -> None:
    """The reader tells its user to delete a damaged shard and to shard again."""
    store = FileStore(tmp_path / "store")
    dataset, _ = build_dataset(open_source(str(images)), config(images), store)
    store.delete(f"shards/{dataset.manifest.splits['test'].shards[0].sha256}.{suffix}")
    again, fresh = build_dataset(open_source(str(images)), config(images), store)
    assert (again.digest, fresh) == (dataset.digest, True)
    assert len(SplitReader(again, "test")) == dataset.manifest.splits["test"].count


def test_a_manifest_that_is_gone_is_made_again(images: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    dataset, _ = build_dataset(open_source(str(images)), config(images), store)
    store.delete(manifest_key(dataset.digest))
    assert build_dataset(open_source(str(images)), config(images), store)[0].digest == dataset.digest
    assert open_dataset(dataset.uri).manifest == dataset.manifest


# --- what is in it -------------------------------------------------------------------------------------


def test_every_image_is_in_its_split_with_its_class(images: Path, tmp_path: Path) -> None:
    dataset = build(images, tmp_path / "store")
    manifest = dataset.manifest
    assert manifest.classes == ["a", "b", "c"]
    readers = {name: SplitReader(dataset, name) for name in manifest.splits}
    unlabelled, labelled, test = (readers[name] for name in ("unlabelled", "labelled", "test"))
    assert len(unlabelled) + len(test) == 37
    assert len(labelled) == 6
    assert set(unlabelled.labels().tolist()) == {-1}
    for reader in (labelled, test):
        assert reader.split in {"labelled", "test"}
        for number in range(len(reader)):
            assert manifest.classes[reader.label(number)] == reader.path(number)[0]
    for reader in readers.values():
        for number in range(len(reader)):
            original = decode((images / reader.path(number)).read_bytes())
            np.testing.assert_array_equal(decode(reader.image(number).tobytes()).pixels, original.pixels)
    assert manifest.splits["labelled"].class_counts == {"a": 2, "b": 2, "c": 2}
    assert sum(manifest.splits["test"].class_counts.values()) == len(test) == manifest.splits["test"].count
    assert manifest.splits["unlabelled"].class_counts == {}
    assert manifest.splits["unlabelled"].shards[0].count == 10


def test_what_is_known_of_the_source_lies_beside_the_manifest(images: Path, tmp_path: Path) -> None:
    dataset = build(images, tmp_path / "store")
    [beside] = [e.key for e in dataset.store.list(f"datasets/{dataset.digest}/source-")]
    record = json.loads(dataset.store.read(beside))
    assert record["source"] == images.as_uri()
    tables = [from_parquet(dataset.store, key) for tables in record["history"]["generations"] for key in tables]
    assert sum(len(table) for table in tables) == 37
    assert images.as_uri() not in dataset.manifest.model_dump_json()


# --- what cannot be used -------------------------------------------------------------------------------


def test_bad_images_are_quarantined_with_reasons_in_the_order_of_their_paths(images: Path, tmp_path: Path) -> None:
    (images / "c" / "bad.png").write_bytes(b"")
    (images / "a" / "bad.jpg").write_bytes(b"<html>")
    (images / "b" / "bad.png").write_bytes(picture(0)[:60])
    dataset = build(images, tmp_path / "store", max_bad_fraction=0.1)
    quarantined = dataset.manifest.quarantined
    assert [q.path for q in quarantined] == ["a/bad.jpg", "b/bad.png", "c/bad.png"]
    assert quarantined[0].reason == "not an image but a web page (HTML)"
    assert quarantined[2].reason == "empty file"
    assert sum(dataset.manifest.splits[name].count for name in ("unlabelled", "test")) == 37


def test_just_the_allowed_share_of_bad_images_passes_and_one_more_does_not(images: Path, tmp_path: Path) -> None:
    for number in range(3):
        (images / "a" / f"bad{number}.png").write_bytes(b"")
    share = 3 / 40
    assert len(build(images, tmp_path / "store", max_bad_fraction=share).manifest.quarantined) == 3
    (images / "a" / "bad3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"4 of 41 images cannot be read, more than data\.max_bad_fraction=0\.075") as e:
        build(images, tmp_path / "other", max_bad_fraction=share)
    assert "a/bad0.png: empty file" in str(e.value)
    assert {entry.key.split("/")[0] for entry in FileStore(tmp_path / "other").list()} <= {"lists", "shards", "packs"}


def test_too_large_an_image_is_quarantined(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(images / "a" / "big.png")
    quarantined = build(images, tmp_path / "store", max_pixels=100).manifest.quarantined
    assert [(q.path, q.reason) for q in quarantined] == [("a/big.png", "20 x 20 pixels, more than max_pixels=100")]


def test_a_source_that_fails_stops_the_build_and_publishes_nothing(images: Path, tmp_path: Path) -> None:
    class Failing(Counting):
        def read(self, path: str) -> bytes:
            if path == "c/2.png":
                raise StorageError("the disk is gone")
            return super().read(path)

    with pytest.raises(StorageError, match="the disk is gone"):
        build_dataset(Failing(open_source(str(images))), config(images), FileStore(tmp_path / "store"))
    assert list(FileStore(tmp_path / "store").list("datasets/")) == []


def test_progress_counts_every_image(images: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_dataset(
        open_source(str(images)),
        config(images),
        FileStore(tmp_path / "s"),
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 37) for n in range(1, 38)]


# --- the manifest --------------------------------------------------------------------------------------


def test_a_manifest_comes_back_from_its_address(images: Path, tmp_path: Path) -> None:
    dataset = build(images, tmp_path / "store")
    assert dataset.uri == f"{(tmp_path / 'store').as_uri()}/datasets/{dataset.digest}"
    for uri in (dataset.uri, dataset.uri + "/"):
        again = open_dataset(uri)
        assert (again.digest, again.manifest) == (dataset.digest, dataset.manifest)


def test_a_damaged_manifest_is_refused(images: Path, tmp_path: Path) -> None:
    dataset = build(images, tmp_path / "store")
    data = dataset.store.read(manifest_key(dataset.digest))
    dataset.store.write(manifest_key(dataset.digest), data.replace(b'"a"', b'"A"', 1))
    with pytest.raises(DataError, match=rf"{dataset.uri}/manifest.json is damaged: its sha256 is"):
        open_dataset(dataset.uri)
    with pytest.raises(ConflictError):
        publish(dataset.store, dataset.manifest)


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    data = b'{"version":2}'
    store = FileStore(tmp_path)
    store.write(manifest_key(digest(data)), data)
    with pytest.raises(DataError, match="cannot be read by this version"):
        open_dataset(f"{store.uri}/datasets/{digest(data)}")


@pytest.mark.parametrize(
    "uri", ["", "/data/images", "file:///x/datasets/abc", f"file:///x/datasets/{'G' * 64}", f"file:///x/{'a' * 64}"]
)
def test_an_address_that_is_no_data_sets_is_refused(uri: str) -> None:
    with pytest.raises(DataError, match=r"is no dataset URI; those end in /datasets/<sha256>"):
        open_dataset(uri)


def test_a_data_set_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"datasets/{'a' * 64}/manifest\.json is not there"):
        open_dataset(f"{tmp_path.as_uri()}/datasets/{'a' * 64}")


def test_a_dataset_address_ends_in_its_digest() -> None:
    assert dataset_digest(f"s3://bucket/x/datasets/{'0' * 64}/") == "0" * 64


def test_other_labels_leave_the_unlabelled_images_the_data_set_that_they_were(images: Path, tmp_path: Path) -> None:
    """So that an encoder that was pretrained on them need not be pretrained again."""
    found = []
    for labels in ({"per_class": 2}, {"per_class": 3}, {"fraction": 0.5, "seed": 1}):
        whole = config(images).model_copy(update={"labels": LabelsConfig.model_validate(labels)})
        dataset, _ = build_dataset(open_source(str(images)), whole, FileStore(tmp_path / "store"))
        found.append((dataset.digest, digest(dataset.manifest.unlabelled().divided()[0])))
    assert len({whole for whole, _ in found}) == 3
    assert len({unlabelled for _, unlabelled in found}) == 1


def test_an_empty_manifest_encodes_the_same_bytes_each_time() -> None:
    manifest = Manifest(classes=["b", "a"], splits={}, quarantined=[])
    assert manifest.divided()[0] == b'{"classes":["b","a"],"leaks":[],"quarantined":[],"splits":{},"version":2}'


# --- the stage -----------------------------------------------------------------------------------------


def test_the_shard_stage_gives_the_address_and_a_summary(
    images: Path, tmp_path: Path, make_work: Callable[..., Work]
) -> None:
    (images / "a" / "bad.png").write_bytes(b"")
    outputs = stage.Outputs(tmp_path / "summary.json")
    work = make_work("shard")

    def shard() -> str:
        partitions = stage.plan(config(images), work.environment, work.reporter)
        packed = [stage.pack(config(images), each, work.environment, work.reporter) for each in partitions]
        found = stage.run(config(images), stage.Inputs(json.dumps(partitions), json.dumps(packed)), outputs, work)
        unlabelled = open_dataset(found.unlabelled).manifest
        assert unlabelled.splits["unlabelled"] == open_dataset(found.dataset).manifest.splits["unlabelled"]
        assert [unlabelled.splits[name].count for name in ("labelled", "test")] == [0, 0]
        with pytest.raises(DataError, match="inspect the whole one"):
            inspect(open_dataset(found.unlabelled))
        return found.dataset

    uri = shard()
    summary = json.loads(outputs.summary.read_text())
    assert summary["dataset"] == uri
    assert summary["classes"] == ["a", "b", "c"]
    assert summary["quarantined"] == [{"path": "a/bad.png", "reason": "empty file"}]
    assert {n: s.count for n, s in open_dataset(uri).manifest.splits.items()} == summary["counts"]
    assert shard() == uri
