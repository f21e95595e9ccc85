"""WebDataset tars that others wrote: what is in them, and how they become shards where they lie."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from tenfold.config import DataConfig
from tenfold.data import adopt
from tenfold.data.build import build_dataset
from tenfold.data.compact import compact
from tenfold.data.decode import decode
from tenfold.data.garbage import find_garbage
from tenfold.data.inspect import inspect
from tenfold.data.manifest import Dataset, is_whole
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.data.tars import TarImage, TarSource, scan
from tenfold.errors import DataError
from tenfold.storage import FileStore

Members = dict[str, bytes]


def tar(members: Members, change: Callable[[tarfile.TarFile], object] = lambda tar: None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
        change(out)
    return buffer.getvalue()


def sixteen_bit() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 514, dtype=np.uint16)).save(buffer, format="PNG")
    return buffer.getvalue()


def samples(first: int, count: int) -> Members:
    """Images of three classes, each with its class beside it."""
    found: Members = {}
    for number in range(first, first + count):
        found[f"{number:05d}.png"] = picture(number)
        found[f"{number:05d}.cls"] = b"abc"[number % 3 : number % 3 + 1]
    return found


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tars of training images, with a 16-bit image and a file that is none, and one of test images."""
    folder = tmp_path / "tars"
    folder.mkdir()
    odd = {"odd.v1.png": sixteen_bit(), "odd.cls": b"a", "bad.png": b"<html>", "sub dir/last one.png": picture(99)}
    (folder / "train-000.tar").write_bytes(tar(samples(0, 20)))
    (folder / "train-001.tar").write_bytes(tar({**samples(20, 20), **odd}))
    (folder / "test-000.tar").write_bytes(tar(samples(40, 10)))
    return folder


def build(folder: Path, store: Path, **values: object) -> Dataset:
    config = DataConfig.model_validate({"source": str(folder), "labels": {"per_class": 2}, **values})
    return build_dataset(open_source(str(folder)), config, FileStore(store))[0]


def scanned(data: bytes) -> list[TarImage]:
    return scan(io.BytesIO(data), len(data), "x.tar")


# --- what is in a tar ----------------------------------------------------------------------------------


def test_images_are_found_with_their_classes_in_the_order_of_the_tar() -> None:
    members = {
        "b/1.cls": b"7\n", "b/1.jpg": b"one", "a.0.jpg": b"two", "a.json": b'{"label": "cat"}', "c.json": b"{}",
        "c.png": b"three", "d.txt": b"a caption", "e.JPG": b"four", "e.json": json.dumps({"cls": 3}).encode(),
    }  # fmt: skip
    data = tar(members)
    found = scanned(data)
    assert [(image.member, image.label) for image in found] == [
        ("b/1.jpg", "7"), ("a.0.jpg", "cat"), ("c.png", None), ("e.JPG", "3"),
    ]  # fmt: skip
    assert [data[image.offset : image.offset + image.size] for image in found] == [b"one", b"two", b"three", b"four"]


def test_a_cut_tar_is_refused_wherever_it_was_cut() -> None:
    """F7: tarfile itself reads on to where a tar was cut between two members, and says nothing."""
    data = tar({"0.jpg": b"x" * 600, "0.cls": b"1", "1.jpg": b"y" * 5000, "1.cls": b"1"})
    with tarfile.open(fileobj=io.BytesIO(data)) as whole:
        end = whole.getmembers()[-1].offset_data + 512
    assert len(scanned(data[: end + 1024])) == 2
    for cut in [*range(0, end + 1024, 256), 1, 511, 513, end - 1, end + 1023]:
        with pytest.raises(DataError, match=r"is cut|no whole tar"):
            scanned(data[:cut])


@pytest.mark.parametrize(
    ("facts", "label"),
    [(b'{"label": " a "}', "a"), (b'{"label": ""}', None), (b'{"label": true}', None), (b"[" * 200_000, None),
     (b'{"label": "\\ud800"}', "?"), (b"[1]", None), (b"\xff", None)],
)  # fmt: skip
def test_classes_of_json_members_are_cleaned_as_a_table_s_are(facts: bytes, label: str | None) -> None:
    assert [image.label for image in scanned(tar({"0.jpg": b"x", "0.json": facts}))] == [label]


def test_of_a_sample_s_images_the_one_with_the_plain_name_is_taken() -> None:
    assert [image.member for image in scanned(tar({"0.depth.png": b"x", "0.png": b"y"}))] == ["0.png"]


LINKS: dict[str, Callable[[tarfile.TarFile], object]] = {
    "symbolic link": lambda out: out.addfile(_special("link.jpg", tarfile.SYMTYPE)),
    "hard link": lambda out: out.addfile(_special("link.jpg", tarfile.LNKTYPE)),
    "device": lambda out: out.addfile(_special("null.jpg", tarfile.CHRTYPE)),
    "outside": lambda out: out.addfile(tarfile.TarInfo("../x.jpg")),
    "absolute": lambda out: out.addfile(tarfile.TarInfo("/etc/x.jpg")),
    "sparse": lambda out: out.addfile(_special("s.jpg", tarfile.GNUTYPE_SPARSE)),
    "twice": lambda out: out.addfile(tarfile.TarInfo("0.jpg")),
}


def _special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize("kind", LINKS)
def test_a_tar_with_hostile_members_is_refused(kind: str) -> None:
    """F8."""
    with pytest.raises(DataError, match=r"x\.tar is refused: .*(link|outside|twice|sparse)"):
        scanned(tar({"0.jpg": b"x"}, LINKS[kind]))


def test_what_is_no_tar_is_refused() -> None:
    for data in (b"", b"hello" * 1000):
        with pytest.raises(DataError, match=r"x\.tar is (no whole tar|cut)"):
            scanned(data)


# --- as shards -----------------------------------------------------------------------------------------


def test_tars_are_adopted_where_they_lie_and_read_as_shards(tars: Path, tmp_path: Path) -> None:
    assert isinstance(open_source(str(tars)), TarSource)
    dataset = build(tars, tmp_path / "store")
    manifest = dataset.manifest
    assert manifest.classes == ["a", "b", "c"]
    assert {name: split.count for name, split in manifest.splits.items()} == {
        "unlabelled": 42, "labelled": 6, "test": 10,
    }  # fmt: skip
    assert [q.path for q in manifest.quarantined] == ["train-001.tar/bad.png"]
    adopted = [shard for shard in manifest.splits["unlabelled"].shards if shard.uri]
    assert sorted(shard.uri or "" for shard in adopted) == [(tars / f"train-00{n}.tar").as_uri() for n in (0, 1)]
    held = sum(entry.size for entry in dataset.store.list("shards/") if entry.key.endswith(".tar"))
    assert held < sum(path.stat().st_size for path in tars.glob("train*"))
    reader = SplitReader(dataset, "unlabelled")
    members = {f"{path.name}/{name}": data for path in tars.glob("*.tar") for name, data in _contents(path).items()}
    paths = set()
    for number in range(len(reader)):
        paths.add(path := reader.path(number))
        np.testing.assert_array_equal(decode(reader.image(number).tobytes()).pixels, decode(members[path]).pixels)
        assert reader.label(number) == -1
    assert len(paths) == 42
    assert "train-001.tar/sub dir/last one.png" in paths
    labelled = SplitReader(dataset, "labelled")
    assert set(labelled.keys) <= set(reader.keys)
    assert len(set(reader.keys)) == 42
    for number in range(6):
        name = labelled.path(number)
        assert members[name.removesuffix(".png") + ".cls"].decode() == labelled.classes[labelled.label(number)]
    assert not find_garbage(dataset.store) or all("shards/" not in e.key for e in find_garbage(dataset.store))


def _contents(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}


def test_the_same_tars_give_the_same_data_set_however_they_are_partitioned(tars: Path, tmp_path: Path) -> None:
    whole = build(tars, tmp_path / "a")
    parts = build(tars, tmp_path / "b", partition_images=5)
    assert set(SplitReader(whole, "unlabelled").keys) == set(SplitReader(parts, "unlabelled").keys)
    assert build(tars, tmp_path / "c").digest == whole.digest
    again, fresh = build_dataset(
        open_source(str(tars)), DataConfig.model_validate({"source": str(tars), "labels": {"per_class": 2}}),
        FileStore(tmp_path / "a"),
    )  # fmt: skip
    assert (again.digest, fresh) == (whole.digest, False)


def test_a_tar_that_came_is_added_and_one_that_went_is_dropped(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(tars, tmp_path / "store")
    (tars / "train-002.tar").write_bytes(tar(samples(60, 5)))
    more = build(tars, tmp_path / "store")
    assert more.manifest.splits["unlabelled"].count == before.manifest.splits["unlabelled"].count + 5
    (tars / "train-000.tar").unlink()
    monkeypatch.setattr(adopt, "examined", lambda *_: pytest.fail("what stayed is read again"))
    less = build(tars, tmp_path / "store")
    assert less.manifest.splits["unlabelled"].count == more.manifest.splits["unlabelled"].count - 20
    assert len(SplitReader(less, "unlabelled")) == 27
    assert not is_whole(before)


def test_a_tar_that_was_written_again_is_taken_anew_and_no_longer_passes_for_the_old_one(
    tars: Path, tmp_path: Path
) -> None:
    before = build(tars, tmp_path / "store")
    (tars / "train-000.tar").write_bytes(tar({**samples(0, 20), **samples(70, 1)}))
    with pytest.raises(DataError, match=r"train-000\.tar is another: .* run the shard stage again"):
        SplitReader(before, "unlabelled")
    after = build(tars, tmp_path / "store")
    reader = SplitReader(after, "unlabelled")
    assert len(reader) == 43
    assert len({reader.path(number) for number in range(43)}) == 43


def test_of_a_tar_of_which_some_images_are_told_anew_the_others_stay(tars: Path, tmp_path: Path) -> None:
    names = [f"train-000.tar/{number:05d}.png,{'abc'[number % 3]}" for number in range(6)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(names))
    config = {"labels": {"file": str(labels)}}
    before = build(tars, tmp_path / "store", **config)
    labels.write_text("\n".join([*names, "train-000.tar/00007.png,b"]))
    after = build(tars, tmp_path / "store", **config)
    counts = [{name: split.count for name, split in d.manifest.splits.items()} for d in (before, after)]
    assert counts[1] == {**counts[0], "labelled": 7}
    assert len(SplitReader(after, "unlabelled")) == counts[0]["unlabelled"]
    found = [set(SplitReader(d, "unlabelled").keys) for d in (after, build(tars, tmp_path / "fresh", **config))]
    assert found[0] == found[1]


def test_a_merge_that_failed_leaves_nothing_that_misleads_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.tar").write_bytes(tar(samples(20 * number, 20)))
    labels = tmp_path / "labels.csv"
    config = {"labels": {"file": str(labels)}, "partition_images": 20, "split": {"test_fraction": 0.3}}
    named = {f"{n // 20}.tar/{n:05d}.png": "abc"[n % 3] for n in (0, 1, 2, 25, 47, 60)}
    labels.write_text("".join(f"{path},a\n" for path in named))
    with pytest.raises(DataError, match="at least two are needed"):
        build(folder, tmp_path / "store", **config)
    labels.write_text("".join(f"{path},{label}\n" for path, label in named.items()))
    found = build(folder, tmp_path / "store", **config)
    assert len(SplitReader(found, "unlabelled")) == found.manifest.splits["unlabelled"].count
    assert found.digest == build(folder, tmp_path / "fresh", **config).digest


@pytest.mark.parametrize("name", ["run#1", "a?b", "50%25", "with space", "ünï"])
def test_tars_in_folders_of_odd_names_are_adopted(tars: Path, tmp_path: Path, name: str) -> None:
    (tars / name).mkdir()
    (tars / "train-000.tar").rename(tars / name / "train-000.tar")
    dataset = build(tars, tmp_path / "store")
    assert len(SplitReader(dataset, "unlabelled")) == 42
    assert is_whole(dataset)


def test_a_folder_whose_name_is_a_tar_s_is_refused(tars: Path, tmp_path: Path) -> None:
    (tars / "x.tar").mkdir()
    (tars / "train-000.tar").rename(tars / "x.tar" / "train-000.tar")
    with pytest.raises(DataError, match=r"x\.tar/train-000\.tar: the name of a folder"):
        build(tars, tmp_path / "store")


def test_a_folder_of_loose_images_is_one_though_a_tar_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(picture(1))
    (tmp_path / "all.tar").write_bytes(tar(samples(0, 2)))
    assert not isinstance(open_source(str(tmp_path)), TarSource)


def test_tars_that_were_touched_show_no_duplicates(tars: Path, tmp_path: Path) -> None:
    build(tars, tmp_path / "store")
    for name in ("train-000.tar", "test-000.tar"):
        os.utime(tars / name, ns=(1, 1))
    found = inspect(build(tars, tmp_path / "store"))
    assert found["equal_training_images"] == 0
    assert sum(found["longer_side"]["histogram"].values()) == 52


def test_two_tars_of_the_same_bytes_are_refused(tars: Path, tmp_path: Path) -> None:
    (tars / "train-copy.tar").write_bytes((tars / "train-000.tar").read_bytes())
    with pytest.raises(DataError, match=r"train-000\.tar and .*train-copy\.tar hold the same bytes"):
        build(tars, tmp_path / "store")


def test_adopted_tars_are_not_compacted(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has adopted tars"):
        compact(build(tars, tmp_path / "store"))
