"""A source that grows, shrinks and changes: what is read again, and what the data set then is."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from tenfold.config import DataConfig, LabelsConfig
from tenfold.data.build import build_dataset
from tenfold.data.compact import compact
from tenfold.data.garbage import find_garbage
from tenfold.data.inspect import contact_sheet, inspect
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import Source, open_source
from tenfold.data.tables import Line
from tenfold.fingerprint import digest
from tenfold.storage import Entry, FileStore


def fill(folder: Path, numbers: range) -> None:
    for number in numbers:
        path = folder / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


class Counting:
    """A source that remembers what was read."""

    def __init__(self, source: Source) -> None:
        self.source, self.uri, self.reads = source, source.uri, list[str]()

    def list(self) -> Iterator[Entry]:
        return self.source.list()

    def lines(self) -> Iterator[Line] | None:
        return self.source.lines()

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return self.source.read(path)


class Place:
    """A folder of images, a store, and how they are sharded."""

    def __init__(self, root: Path, **values: Any) -> None:
        self.images, self.store = root / "images", FileStore(root / "store")
        self.config = DataConfig.model_validate(
            {
                "source": str(self.images), "labels": {"per_class": 2}, "split": {"test_fraction": 0.3},
                "shard_images": 10, "partition_images": 16, "max_bad_fraction": 0.2, **values,
            }
        )  # fmt: skip
        self.reads: list[str] = []

    def build(self) -> Dataset:
        source = Counting(open_source(str(self.images)))
        dataset, _ = build_dataset(source, self.config, self.store)
        self.reads = sorted(source.reads)
        return dataset


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    fill(place.images, range(60))
    return place


def content(dataset: Dataset) -> dict[str, dict[str, bytes]]:
    """Return each split's images by path."""
    found = {}
    for split in dataset.manifest.splits:
        reader = SplitReader(dataset, split)
        assert len(reader) == dataset.manifest.splits[split].count
        samples = [reader.sample(number) for number in range(len(reader))]
        found[split] = {f"{sample.path} {sample.label}": sample.image for sample in samples}
    return found


def from_scratch(place: Place, tmp_path: Path) -> Dataset:
    """Shard the images into an empty store."""
    tmp_path.mkdir(exist_ok=True)
    empty = FileStore(Path(tempfile.mkdtemp(dir=tmp_path)))
    return build_dataset(open_source(str(place.images)), place.config, empty)[0]


def test_of_a_source_that_grew_the_new_images_alone_are_read(place: Place, tmp_path: Path) -> None:
    first = place.build()
    assert len(place.reads) == 60
    fill(place.images, range(60, 70))
    second = place.build()
    assert place.reads == sorted(f"{'abc'[n % 3]}/{n}.png" for n in range(60, 70))
    assert second.digest != first.digest
    assert content(second) == content(from_scratch(place, tmp_path))
    before = {shard.sha256 for shard in first.manifest.splits["unlabelled"].shards}
    assert before < {shard.sha256 for shard in second.manifest.splits["unlabelled"].shards}
    [beside] = [entry.key for entry in place.store.list(f"datasets/{second.digest}/source-")]
    assert json.loads(place.store.read(beside))["parent"] == first.digest


def test_a_removed_image_leaves_without_a_shard_being_written_anew(place: Place, tmp_path: Path) -> None:
    first = place.build()
    gone = sorted(place.images.rglob("*.png"))[:7]
    for path in gone:
        path.unlink()
    second = place.build()
    assert place.reads == []
    assert content(second) == content(from_scratch(place, tmp_path))
    names = {f"{path.parent.name}/{path.name}" for path in gone}
    assert not names & {key.split(" ")[0] for split in content(second).values() for key in split}
    sides = ("unlabelled", "test")
    kept = [{shard.sha256 for side in sides for shard in each.manifest.splits[side].shards} for each in (first, second)]
    assert kept[1] <= kept[0]


def labelled_as(place: Place, named: dict[str, str | None]) -> None:
    """Let a label list name images, each with a class or with its folder's."""
    file = place.images.parent / "labels.csv"
    file.write_text("path,label\n" + "".join(f"{path},{label or ''}\n" for path, label in named.items()))
    labels = {"file": str(file)}
    place.config = place.config.model_copy(update={"labels": LabelsConfig.model_validate(labels)})


def test_another_label_list_reads_and_packs_no_training_image_again(tmp_path: Path) -> None:
    """So the unlabelled images stay the data set that they were, and an encoder need not be pretrained again."""
    place = Place(tmp_path)
    for split, numbers in (("train", range(45)), ("test", range(45, 60))):
        fill(place.images / split, numbers)
    lists: list[dict[str, str | None]] = [
        {f"train/{'abc'[n % 3]}/{n}.png": None for n in range(6)},
        {f"train/{'abc'[n % 3]}/{n}.png": None for n in range(15)},
        {f"train/{'abc'[n % 3]}/{n}.png": "bca"[n % 3] for n in range(3, 9)},
        {f"train/{'abc'[n % 3]}/{n}.png": None for n in range(6)},
    ]
    first, unlabelled = place.build(), set()
    for turn, named in enumerate(lists):
        labelled_as(place, named)
        dataset = place.build()
        assert place.reads == []
        assert content(dataset) == content(from_scratch(place, tmp_path / f"list{turn}"))
        assert dataset.manifest.splits["labelled"].count == len(named)
        unlabelled.add(digest(dataset.manifest.unlabelled().divided()[0]))
    assert unlabelled == {digest(first.manifest.unlabelled().divided()[0])}
    path = place.images / "train" / "a" / "0.png"
    os.utime(path, ns=(5, 5))
    (place.images / "train" / "b" / "1.png").write_bytes(picture(1000))
    fill(place.images / "train", range(60, 63))
    labelled_as(place, {**lists[0], "train/b/61.png": "c"})
    dataset = place.build()
    assert place.reads == ["train/a/0.png", "train/a/60.png", "train/b/1.png", "train/b/61.png", "train/c/62.png"]
    assert content(dataset) == content(from_scratch(place, tmp_path / "mixed"))
    assert content(compact(dataset)) == content(dataset)
    labelled_as(place, lists[2])
    assert content(place.build()) == content(from_scratch(place, tmp_path / "after"))
    assert place.reads == []


def test_a_drawn_test_image_that_is_listed_trains_from_then_on(place: Place, tmp_path: Path) -> None:
    drawn = sorted({key.split(" ")[0] for key in content(place.build())["test"]})
    labelled_as(place, {f"{'abc'[n % 3]}/{n}.png": None for n in range(6)} | dict.fromkeys(drawn[:2]))
    dataset = place.build()
    assert place.reads == [path for path in drawn if path in set(place.reads)] != []
    assert content(dataset) == content(from_scratch(place, tmp_path))


def test_a_changed_image_is_packed_again_and_the_old_one_is_gone(place: Place, tmp_path: Path) -> None:
    place.build()
    (place.images / "a" / "0.png").write_bytes(picture(1000))
    second = place.build()
    assert place.reads == ["a/0.png"]
    assert content(second) == content(from_scratch(place, tmp_path))
    third = place.build()
    assert place.reads == []
    assert third.digest == second.digest


def test_an_image_that_was_only_touched_changes_nothing_and_is_read_once(place: Place) -> None:
    first = place.build()
    os.utime(place.images / "a" / "0.png", ns=(1, 1))
    second = place.build()
    assert (second.digest, place.reads) == (first.digest, ["a/0.png"])
    fill(place.images, range(60, 61))
    place.build()
    assert place.reads == ["a/60.png"]


def test_images_come_and_go_over_many_runs(place: Place, tmp_path: Path) -> None:
    place.build()
    random = np.random.default_rng(0)
    for turn in range(6):
        fill(place.images, range(60 + 8 * turn, 68 + 8 * turn))
        there = sorted(place.images.rglob("*.png"))
        for path in random.choice(np.array(there, dtype=object), 6, replace=False):
            path.unlink()
        for path in random.choice(np.array(sorted(place.images.rglob("*.png")), dtype=object), 4, replace=False):
            path.write_bytes(picture(int(random.integers(10**6))))
        if turn % 2:
            (place.images / "a" / "bad.png").write_bytes(b"" if turn == 1 else b"<html>")
        else:
            (place.images / "a" / "bad.png").unlink(missing_ok=True)
        dataset = place.build()
        assert len(place.reads) <= 8 + 4 + 1
        scratch = from_scratch(place, tmp_path)
        assert content(dataset) == content(scratch)
        assert dataset.manifest.quarantined == scratch.manifest.quarantined
        assert dataset.manifest.classes == scratch.manifest.classes


def test_images_and_their_labels_come_and_go_over_many_runs(place: Place, tmp_path: Path) -> None:
    place.build()
    random = np.random.default_rng(1)
    for turn in range(6):
        fill(place.images, range(60 + 5 * turn, 65 + 5 * turn))
        there = np.array(sorted(path.relative_to(place.images).as_posix() for path in place.images.rglob("*.png")))
        for path in random.choice(there, 3, replace=False):
            (place.images / path).unlink()
        there = np.array(sorted(path.relative_to(place.images).as_posix() for path in place.images.rglob("*.png")))
        for path in random.choice(there, 3, replace=False):
            os.utime(place.images / path, ns=(turn, turn))
        listed = random.choice(there, 25, replace=False)
        labelled_as(place, {str(path): [None, "a", "b", "c"][random.integers(4)] for path in listed})
        assert content(place.build()) == content(from_scratch(place, tmp_path))


def test_another_choice_of_labels_reads_nothing(place: Place) -> None:
    first = place.build()
    place.config = place.config.model_copy(
        update={"labels": place.config.labels.model_copy(update={"per_class": 5, "seed": 3})}
    )
    second = place.build()
    assert place.reads == []
    assert second.manifest.splits["unlabelled"] == first.manifest.splits["unlabelled"]
    assert second.manifest.splits["labelled"].count == 15


def test_where_a_shard_of_before_is_gone_its_partition_is_packed_anew(place: Place, tmp_path: Path) -> None:
    first = place.build()
    place.store.delete(f"shards/{first.manifest.splits['unlabelled'].shards[0].sha256}.tar")
    fill(place.images, range(60, 64))
    second = place.build()
    assert 10 <= len(place.reads) <= 64
    assert second.digest == from_scratch(place, tmp_path).digest


@pytest.mark.parametrize("partition_images", [1, 7, 1000])
def test_the_content_does_not_hang_on_the_size_of_partitions(tmp_path: Path, partition_images: int) -> None:
    one, other = Place(tmp_path, partition_images=partition_images), Place(tmp_path / "x", partition_images=16)
    fill(one.images, range(60))
    fill(other.images, range(60))
    assert content(one.build()) == content(other.build())


def test_a_set_that_grew_is_compacted_to_what_a_first_sharding_gives(place: Place, tmp_path: Path) -> None:
    (place.images / "a").mkdir(parents=True, exist_ok=True)
    (place.images / "a" / "bad.png").write_bytes(b"<html>")
    Image.fromarray(np.full((4, 4), 514, dtype=np.uint16)).save(place.images / "a" / "wide.png")
    place.build()
    fill(place.images, range(60, 90))
    (place.images / "b" / "1.png").unlink()
    (place.images / "a" / "0.png").write_bytes(picture(1000))
    grown = place.build()
    scratch = from_scratch(place, tmp_path)
    assert grown.digest != scratch.digest
    compacted = compact(grown)
    assert compacted.digest == scratch.digest
    assert content(compacted) == content(grown)
    assert place.build().digest == compacted.digest
    assert place.reads == []
    fill(place.images, range(90, 93))
    later = place.build()
    assert len(place.reads) == 3
    assert content(later) == content(build_dataset(open_source(str(place.images)), place.config,
                                                   FileStore(tmp_path / "again"))[0])  # fmt: skip


def test_garbage_is_what_no_data_set_and_no_history_leads_to(place: Place) -> None:
    first = place.build()
    fill(place.images, range(60, 70))
    second = place.build()
    compacted = compact(second)
    place.store.write("shards/" + "0" * 64 + ".tar", b"left behind")
    found = {entry.key for entry in find_garbage(place.store)}
    assert "shards/" + "0" * 64 + ".tar" in found
    for key in found:
        place.store.delete(key)
    for dataset in (first, second, compacted):
        content(dataset)
    place.build()
    assert place.reads == []
    inspect(second)


def test_inspection_tells_counts_sizes_and_what_looks_alike(tmp_path: Path) -> None:
    place = Place(tmp_path)
    fill(place.images, range(60))
    random = np.random.default_rng(5)
    coarse = Image.fromarray(random.integers(0, 256, (8, 9, 3), dtype=np.uint8))
    for split, scale, kind in (("train", 10, "png"), ("test", 8, "jpg")):
        folder = place.images.parent / "photos" / split / "a"
        folder.mkdir(parents=True)
        coarse.resize((9 * scale, 8 * scale), Image.Resampling.NEAREST).save(folder / f"same.{kind}")
        for number in range(4):
            for name in "ab":
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                (folder.parent / name).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(folder.parent / name / f"{split}{number}.png")
    for split in ("train", "test"):
        folder = place.images.parent / "photos" / split / "b"
        (folder / "copy.png").write_bytes((folder / f"{split}0.png").read_bytes())
    place.images = place.images.parent / "photos"
    place.config = place.config.model_copy(update={"source": str(place.images)})
    dataset = place.build()
    facts = inspect(dataset)
    assert facts["splits"]["unlabelled"]["images"] == 10
    assert facts["longer_side"]["largest"] == 90
    assert sum(facts["longer_side"]["histogram"].values()) == 20
    assert (facts["equal_training_images"], facts["equal_test_images"]) == (1, 1)
    [pair] = facts["alike_in_train_and_test"]
    assert (pair["train"], pair["test"]) == ("train/a/same.png", "test/a/same.jpg")
    assert contact_sheet(dataset, tmp_path / "cache").size == (640, 128)


def test_an_image_that_is_packed_into_the_very_shard_it_was_in_before_stays(place: Place, tmp_path: Path) -> None:
    """Shards are named by content, so one that comes back has the name under which rows were dropped."""
    place.build()
    fill(place.images, range(60, 62))
    place.build()
    for path in place.images.rglob("6[01].png"):
        os.utime(path, ns=(5, 5))
    for turn in range(3):
        assert content(place.build()) == content(from_scratch(place, tmp_path / f"touched{turn}"))
        for path in place.images.rglob("6[01].png"):
            path.unlink()
        assert content(place.build()) == content(from_scratch(place, tmp_path / f"without{turn}"))
        fill(place.images, range(60, 62))
        if turn == 1:  # the same tag as the last time, as an object store would give it
            for path in place.images.rglob("6[01].png"):
                os.utime(path, ns=(5, 5))
    (place.images / "a" / "60.png").write_bytes(picture(9))
    assert content(place.build()) == content(from_scratch(place, tmp_path / "other"))
    fill(place.images, range(60, 61))
    assert content(place.build()) == content(from_scratch(place, tmp_path / "back"))
