from __future__ import annotations

import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tenfold.errors import ConflictError, StorageError
from tenfold.storage import FileStore, S3Store, free_bytes, open_store


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_is_read_back_and_replaced(store: FileStore) -> None:
    store.write("a/b", b"one")
    store.write("a/b", b"two")
    assert store.read("a/b") == b"two"


def test_create_makes_an_absent_object_and_accepts_the_same_bytes_again(store: FileStore) -> None:
    assert store.create("a/b", b"one") is True
    assert store.create("a/b", b"one") is False
    assert store.read("a/b") == b"one"


def test_create_refuses_other_bytes_and_keeps_the_first(store: FileStore) -> None:
    store.create("a/b", b"one")
    with pytest.raises(ConflictError, match=r"a/b is there already with other bytes"):
        store.create("a/b", b"two")
    assert store.read("a/b") == b"one"
    assert files_in(store.root) == {"a/b"}


def test_of_racing_creators_one_wins_and_its_bytes_are_whole(store: FileStore) -> None:
    writers = 8
    for turn in range(10):
        start = threading.Barrier(writers)

        def create(number: int, turn: int = turn, start: threading.Barrier = start) -> bool | None:
            start.wait()
            try:
                return store.create(f"race/{turn}", bytes([number]) * 20_000)
            except ConflictError:
                return None

        with ThreadPoolExecutor(writers) as pool:
            results = list(pool.map(create, range(writers)))
        assert sorted(results, key=str) == [None] * (writers - 1) + [True]
        assert store.read(f"race/{turn}") == bytes([results.index(True)]) * 20_000
    assert files_in(store.root) == {f"race/{turn}" for turn in range(10)}


def test_racing_creators_of_the_same_bytes_are_all_right(store: FileStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: store.create("same", b"x" * 10_000), range(8)))
    assert results.count(True) == 1


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_keys_that_leave_the_root_are_refused(store: FileStore, key: str) -> None:
    for act in (
        lambda: store.read(key),
        lambda: store.write(key, b"x"),
        lambda: store.create(key, b"x"),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.fetch(key, Path("unused")),
        lambda: list(store.list(f"{key}/")),
    ):
        with pytest.raises(StorageError, match="leaves the store"):
            act()
    assert not (store.root.parent / "x").exists()


def test_a_write_that_fails_leaves_the_old_object_and_nothing_else(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/b", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"a/b: No space left on device"):
        store.write("a/b", b"new")
    with pytest.raises(StorageError, match=r"a/c: No space left on device"):
        store.create("a/c", b"new")
    assert store.read("a/b") == b"old"
    assert files_in(store.root) == {"a/b"}


def test_an_object_that_is_absent_is_named(store: FileStore) -> None:
    with pytest.raises(StorageError, match=rf"{store.uri}/a/b is not there"):
        store.read("a/b")
    with pytest.raises(StorageError, match=rf"{store.uri}/a/b is not there"):
        store.fetch("a/b", Path("unused"))
    assert not store.exists("a/b")


def test_a_folder_is_no_object(store: FileStore) -> None:
    store.write("a/b", b"x")
    assert not store.exists("a")
    with pytest.raises(StorageError, match="directory"):
        store.read("a")


def test_list_gives_keys_and_sizes_below_a_prefix(store: FileStore) -> None:
    for key in ("a/x", "a/deep/y", "ab/z", "b"):
        store.write(key, key.encode())
    assert {entry.key for entry in store.list()} == {"a/x", "a/deep/y", "ab/z", "b"}
    assert {entry.key for entry in store.list("a")} == {"a/x", "a/deep/y", "ab/z"}
    assert {entry.key for entry in store.list("a/")} == {"a/x", "a/deep/y"}
    assert {(entry.key, entry.size) for entry in store.list("a/deep")} == {("a/deep/y", 8)}
    assert list(store.list("none/")) == []


def test_list_of_a_store_that_is_not_there_is_empty(store: FileStore) -> None:
    assert list(store.list()) == []


def test_list_passes_over_hidden_files_and_folders(store: FileStore) -> None:
    for key in ("a/.hidden", ".git/x", "a/shown"):
        store.write(key, b"x")
    assert [entry.key for entry in store.list()] == ["a/shown"]


def test_the_tag_of_an_entry_changes_with_the_object(store: FileStore) -> None:
    store.write("a", b"one")
    os.utime(store.root / "a", ns=(1, 1))
    [before] = store.list()
    assert [before] == list(store.list())
    store.write("a", b"two")
    [after] = store.list()
    assert before.tag != after.tag


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_sealed_file_is_taken_over(store: FileStore, tmp_path: Path, elsewhere: bool) -> None:
    """By a link where the disk is the same, by a copy where it is not (/dev/shm)."""
    folder = Path("/dev/shm") if elsewhere and Path("/dev/shm").is_dir() else tmp_path
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"sealed")
        file.flush()
        assert store.create("a/b", Path(file.name), sealed=True)
        linked = (store.root / "a" / "b").stat().st_ino == Path(file.name).stat().st_ino
        assert linked == (folder.stat().st_dev == store.root.stat().st_dev)
        assert not store.create("a/b", Path(file.name), sealed=True)
        with pytest.raises(ConflictError):
            store.create("a/b", b"other")
    assert store.read("a/b") == b"sealed"
    assert (store.root / "a" / "b").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (store.root / "a").iterdir()] == ["b"]


def test_what_is_listed_through_links_can_be_read(store: FileStore, tmp_path: Path) -> None:
    """Image folders are often made of links to where the images really lie."""
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "x.png").write_bytes(b"image")
    store.root.mkdir()
    (store.root / "class").symlink_to(real)
    (store.root / "y.png").symlink_to(real / "x.png")
    assert {entry.key: store.read(entry.key) for entry in store.list()} == {"class/x.png": b"image", "y.png": b"image"}


def test_a_link_to_a_folder_above_is_walked_once(store: FileStore) -> None:
    store.write("a/b/x", b"x")
    (store.root / "a" / "b" / "up").symlink_to(store.root / "a")
    assert [entry.key for entry in store.list()] == ["a/b/x"]


def test_a_link_that_leads_nowhere_is_named(store: FileStore) -> None:
    store.root.mkdir()
    (store.root / "gone.png").symlink_to(store.root / "absent")
    with pytest.raises(StorageError, match=r"gone\.png is a link to nothing"):
        list(store.list())


def test_delete_removes_folders_left_empty_and_minds_no_absence(store: FileStore) -> None:
    store.write("a/b/c", b"x")
    store.write("a/d", b"x")
    store.delete("a/b/c")
    assert files_in(store.root) == {"a/d"}
    assert not (store.root / "a" / "b").exists()
    store.delete("a/d")
    store.delete("a/d")
    assert store.root.is_dir()
    assert not (store.root / "a").exists()


def test_a_folder_that_another_process_removes_as_empty_is_made_again_for_the_next_object(store: FileStore) -> None:
    def come_and_go(name: str) -> None:
        for number in range(400):
            store.write(f"work/print/run/{name}", b"%d" % number)
            store.delete(f"work/print/run/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, "abcd"))


def test_fetch_gives_the_file_itself(store: FileStore, tmp_path: Path) -> None:
    store.write("a", b"x")
    assert store.fetch("a", tmp_path / "cache").read_bytes() == b"x"
    assert not (tmp_path / "cache").exists()


def test_a_store_opens_from_a_path_and_from_its_own_address(tmp_path: Path) -> None:
    folder = tmp_path / "with space é#1"
    store = open_store(str(folder))
    store.write("a", b"x")
    assert store.uri == folder.as_uri()
    again = open_store(store.uri)
    assert again.uri == store.uri
    assert again.read("a") == b"x"


def test_a_relative_path_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("data").uri == (tmp_path / "data").as_uri()


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/a/b/", "bucket", "a/b"),
        ("s3://bucket/a#1/b?c", "bucket", "a#1/b?c"),
    ],
)
def test_an_s3_address_is_bucket_and_prefix(uri: str, bucket: str, prefix: str) -> None:
    store = open_store(uri)
    assert isinstance(store, S3Store)
    assert (store.bucket, store.prefix) == (bucket, prefix)
    assert store.uri == f"s3://{bucket}" + (f"/{prefix}" if prefix else "")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "s3:///x"])
def test_addresses_that_cannot_be_read_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=r"reads folders|names no bucket"):
        open_store(uri)


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b" / "c") > 0


def test_a_sweep_removes_what_killed_writers_left_below_a_prefix_and_nothing_else(store: FileStore) -> None:
    for key in ("a/one/whole", "a/two/whole", "ab/whole"):
        store.write(key, b"whole")
    for name in ("a/one/.writing-x", "a/one/deep/.writing-y", "a/two/.writing-z", "ab/.writing-x", "a/one/.other"):
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    store.sweep("a/one/")
    store.sweep("not/there/")
    assert files_in(store.root) == {
        "a/one/whole", "a/two/whole", "ab/whole", "a/two/.writing-z", "ab/.writing-x", "a/one/.other"
    }  # fmt: skip
