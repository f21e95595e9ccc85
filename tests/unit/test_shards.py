from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tenfold.data.decode import decode, encode_png
from tenfold.data.manifest import Shard
from tenfold.data.shards import Sample, ShardWriter, _header, parse_facts, parse_index
from tenfold.errors import DataError
from tenfold.fingerprint import digest
from tenfold.storage import FileStore


def sample(number: int, label: str | None = "cat", side: int = 5) -> Sample:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    return Sample(f"{number:032x}", "png", encode_png(pixels), f"class/é {number}.png", label)


def write(folder: Path, samples: list[Sample], images: int = 1000, size: int = 10**9) -> tuple[FileStore, list[Shard]]:
    store = FileStore(folder)
    writer = ShardWriter(store, images, size)
    for one in samples:
        writer.add(one)
    return store, writer.close()


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    samples = [sample(n, "abc"[n % 3]) for n in range(7)]
    one, shards = write(tmp_path / "one", samples, images=3)
    other, again = write(tmp_path / "other", samples, images=3)
    assert shards == again
    assert {e.key: one.read(e.key) for e in one.list()} == {e.key: other.read(e.key) for e in other.list()}


def test_a_shard_is_named_by_its_content(tmp_path: Path) -> None:
    store, [shard] = write(tmp_path, [sample(1)])
    data, index = store.read(f"shards/{shard.sha256}.tar"), store.read(f"shards/{shard.sha256}.idx")
    assert (digest(data), len(data), digest(index)) == (shard.sha256, shard.size, shard.index_sha256)


def test_writing_the_same_shard_twice_into_one_store_is_fine(tmp_path: Path) -> None:
    assert write(tmp_path, [sample(1)])[1] == write(tmp_path, [sample(1)])[1]


def test_pythons_tarfile_reads_the_samples(tmp_path: Path) -> None:
    samples = [sample(1, "é"), sample(2, None, side=30), sample(3, "dog")]
    store, [shard] = write(tmp_path, samples)
    with tarfile.open(fileobj=io.BytesIO(store.read(f"shards/{shard.sha256}.tar"))) as tar:
        members = tar.getmembers()
        assert all(member.isfile() and member.mtime == 0 and member.uid == 0 for member in members)
        content = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    images = {name: data for name, data in content.items() if not name.endswith(".json")}
    assert images == {f"{one.key}.png": one.image for one in samples}
    assert [parse_facts(content[f"{one.key}.json"]) for one in samples] == [(one.path, one.label) for one in samples]


def test_dali_reads_the_samples_by_the_index(tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, types

    samples = [sample(n, "abcd"[n % 4], side=4 + n) for n in range(6)]
    store, shards = write(tmp_path, samples, images=4)
    assert [shard.count for shard in shards] == [4, 2]
    pipe = dali.Pipeline(batch_size=6, num_threads=1, device_id=None)
    with pipe:
        image, facts = fn.readers.webdataset(
            paths=[str(store.fetch(f"shards/{s.sha256}.tar", tmp_path)) for s in shards],
            index_paths=[str(store.fetch(f"shards/{s.sha256}.idx", tmp_path)) for s in shards],
            ext=["jpg;png", "json"],
            missing_component_behavior="error",
        )
        pipe.set_outputs(fn.decoders.image(image, device="cpu", output_type=types.RGB), facts)
    pipe.build()
    images, facts = pipe.run()
    assert [parse_facts(np.asarray(facts[n]).tobytes())[1] for n in range(6)] == [one.label for one in samples]
    for number, one in enumerate(samples):
        np.testing.assert_array_equal(np.asarray(images[number]), decode(one.image).pixels)


def test_the_index_points_at_each_part(tmp_path: Path) -> None:
    samples = [sample(1), sample(2, None)]
    store, [shard] = write(tmp_path, samples)
    data = store.read(f"shards/{shard.sha256}.tar")
    index = parse_index(store.read(f"shards/{shard.sha256}.idx").decode(), shard)
    assert index.keys == [one.key for one in samples]
    assert index.extensions == ["png", "png"]
    for row, one in enumerate(samples):
        offset, size = index.images[row].tolist()
        assert data[offset : offset + size] == one.image
        offset, size = index.facts[row].tolist()
        assert parse_facts(data[offset : offset + size]) == (one.path, one.label)


def test_a_shard_ends_at_its_number_of_images(tmp_path: Path) -> None:
    _, shards = write(tmp_path, [sample(n) for n in range(7)], images=3)
    assert [shard.count for shard in shards] == [3, 3, 1]


def test_a_full_last_shard_is_followed_by_no_empty_one(tmp_path: Path) -> None:
    _, shards = write(tmp_path, [sample(n) for n in range(6)], images=3)
    assert [shard.count for shard in shards] == [3, 3]


def test_a_shard_ends_at_its_number_of_bytes(tmp_path: Path) -> None:
    _, [whole] = write(tmp_path / "whole", [sample(n) for n in range(8)])
    each = (whole.size - 1024) // 8
    _, shards = write(tmp_path / "cut", [sample(n) for n in range(8)], size=2 * each)
    assert [shard.count for shard in shards] == [2, 2, 2, 2]


def test_an_image_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    _, shards = write(tmp_path, [sample(n) for n in range(3)], size=1)
    assert [shard.count for shard in shards] == [1, 1, 1]


def test_no_sample_at_all_gives_one_empty_shard(tmp_path: Path) -> None:
    store, [shard] = write(tmp_path, [])
    assert (shard.count, shard.size) == (0, 1024)
    with tarfile.open(fileobj=io.BytesIO(store.read(f"shards/{shard.sha256}.tar"))) as tar:
        assert tar.getmembers() == []
    assert parse_index(store.read(f"shards/{shard.sha256}.idx").decode(), shard).keys == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v1.2 2\npng 512 10 a.png\n", "does not hold the manifest's 1 samples"),
        ("v1.2 1\n", "does not hold the manifest's 1 samples"),
        ("v1.2 1\npng 512 999999 a.png json 512 1 a.json\n", "points outside the shard"),
        ("v1.2 1\npng 512 10 a.png\n", "a sample with no image or no json"),
    ],
)
def test_an_index_that_does_not_fit_its_shard_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"f{'f' * 63}.*{message}"):
        parse_index(text, Shard(sha256="f" * 64, size=2048, count=1, index_sha256=""))


@pytest.mark.parametrize(("name", "size"), [("a.jpg", 0), (f"{'f' * 32}.json", 57), ("k.png", 8**11 - 1)])
def test_a_member_s_header_is_tarfile_s(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert _header(name, size) == info.tobuf(format=tarfile.USTAR_FORMAT)
