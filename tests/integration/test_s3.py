"""S3 against a real server (seaweedfs): what the store, the builder and the reader promise holds there too."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from tenfold.components.shard import stage
from tenfold.config import DataConfig
from tenfold.data.build import build_dataset, finish
from tenfold.data.manifest import Dataset, open_dataset
from tenfold.data.pack import open_packed
from tenfold.data.plan import open_plan
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.environment import Environment
from tenfold.errors import ConflictError, DataError, StorageError
from tenfold.progress import Reporter
from tenfold.storage import S3Store, open_store

# --- the store -----------------------------------------------------------------------------------------


def test_what_was_written_is_read_back_replaced_and_deleted(s3: str) -> None:
    store = open_store(f"{s3}/some/prefix")
    assert not store.exists("a/b")
    store.write("a/b", b"one")
    store.write("a/b", b"two")
    assert store.read("a/b") == b"two"
    assert store.exists("a/b")
    assert open_store(s3).read("some/prefix/a/b") == b"two"
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")


def test_create_makes_an_absent_object_and_accepts_the_same_bytes_again(s3: str) -> None:
    store = open_store(s3)
    assert store.create("a", b"one") is True
    assert store.create("a", b"one") is False
    with pytest.raises(ConflictError, match=rf"{s3}/a is there already with other bytes"):
        store.create("a", b"two")
    assert store.read("a") == b"one"


def test_a_sweep_ends_the_uploads_in_parts_that_killed_writers_left_below_a_prefix(s3: str) -> None:
    store = open_store(f"{s3}/some")
    assert isinstance(store, S3Store)
    store.write("a/whole", b"whole")

    def begun() -> set[str]:
        return {found["Key"] for found in store.client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", [])}

    for key in ("some/a/half", "some/a/deep/half", "some/b/half", "a/half"):
        upload = store.client.create_multipart_upload(Bucket=store.bucket, Key=key)
        store.client.upload_part(
            Bucket=store.bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * (5 << 20)
        )
    assert len(begun()) == 4
    store.sweep("a/")
    assert begun() == {"some/b/half", "a/half"}
    assert store.read("a/whole") == b"whole"


def test_of_racing_creators_one_wins_and_its_bytes_are_whole(s3: str) -> None:
    writers = 6
    store = open_store(s3)
    store.exists("warm")
    for turn in range(3):
        start = threading.Barrier(writers)

        def create(number: int, turn: int = turn, start: threading.Barrier = start) -> bool | None:
            start.wait()
            try:
                return store.create(f"race/{turn}", bytes([number]) * 50_000)
            except ConflictError:
                return None

        with ThreadPoolExecutor(writers) as pool:
            results = list(pool.map(create, range(writers)))
        assert sorted(results, key=str) == [None] * (writers - 1) + [True]
        assert store.read(f"race/{turn}") == bytes([results.index(True)]) * 50_000


def test_racing_creators_of_the_same_bytes_are_all_right(s3: str) -> None:
    store = open_store(s3)
    store.exists("warm")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: store.create("same", b"x" * 10_000), range(8)))
    assert results.count(True) == 1


def test_more_keys_than_a_page_holds_are_listed_below_their_prefix(s3: str) -> None:
    store = open_store(f"{s3}/images")
    keys = {f"{'ab'[n % 2]}/{n:04d}" for n in range(1010)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.write(key, b"x"), keys))
    beside = open_store(s3)
    for key in ("images-old/x", "imagesx", "other/y"):
        beside.write(key, b"xy")
    entries = list(store.list())
    assert len(entries) == 1010
    assert {entry.key for entry in entries} == keys
    assert {entry.size for entry in entries} == {1}
    assert {entry.key for entry in store.list("a/")} == {key for key in keys if key.startswith("a/")}
    assert {entry.key for entry in store.list("a/000")} == {f"a/{n:04d}" for n in range(0, 10, 2)}
    assert {entry.key for entry in beside.list()} - {f"images/{key}" for key in keys} == {
        "images-old/x",
        "imagesx",
        "other/y",
    }


def test_keys_with_spaces_and_letters_beyond_ascii_come_back(s3: str) -> None:
    store = open_store(s3)
    for key in ("a b/é+ü.png", "a%20b", "日本/1&2.png"):
        store.write(key, key.encode())
    assert {entry.key: store.read(entry.key).decode() for entry in store.list()} == {
        key: key for key in ("a b/é+ü.png", "a%20b", "日本/1&2.png")
    }


def test_the_tag_of_an_entry_changes_with_the_object(s3: str) -> None:
    store = open_store(s3)
    store.write("a", b"one")
    [before] = store.list()
    store.write("a", b"one")
    assert [before] == list(store.list())
    store.write("a", b"two")
    [after] = store.list()
    assert before.tag != after.tag


def test_an_empty_bucket_lists_nothing(s3: str) -> None:
    assert list(open_store(s3).list()) == []


def test_a_missing_object_is_named(s3: str) -> None:
    with pytest.raises(StorageError, match=rf"^{s3}/p/absent: is not there$"):
        open_store(f"{s3}/p").read("absent")


def test_a_missing_bucket_is_named(s3: str) -> None:
    store = open_store("s3://no-such-bucket-here/p")
    for act in (lambda: store.read("a"), lambda: list(store.list())):
        with pytest.raises(StorageError, match=r"^s3://no-such-bucket-here/p(/a)?: the bucket does not exist$"):
            act()


def test_fetch_keeps_what_it_has_and_leaves_no_part_behind(s3: str, tmp_path: Path) -> None:
    store = open_store(s3)
    store.write("shards/a", b"x")
    path = store.fetch("shards/a", tmp_path / "cache")
    store.delete("shards/a")
    assert store.fetch("shards/a", tmp_path / "cache") == path
    assert path.read_bytes() == b"x"
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_threads_may_fetch_the_same_object_at_once(s3: str, tmp_path: Path) -> None:
    store = open_store(s3)
    store.write("shards/a", b"x" * 100_000)
    for turn in range(5):
        folder = tmp_path / str(turn)
        with ThreadPoolExecutor(8) as pool:
            paths = set(pool.map(lambda _, folder=folder: store.fetch("shards/a", folder), range(8)))
        assert [path.read_bytes() for path in paths] == [b"x" * 100_000]
        assert len(list(folder.iterdir())) == 1


# --- servers that cannot be reached or fail ----------------------------------------------------------------


def test_a_wrong_endpoint_is_told_without_patience(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound, not listening: refused at once
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"the server cannot be reached; check AWS_ENDPOINT_URL"):
            open_store(s3, patient=False).read("a")


@pytest.mark.timeout(30)
def test_a_server_that_never_answers_is_told_without_patience(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"the server cannot be reached; check AWS_ENDPOINT_URL"):
            open_store(s3, patient=False).read("a")


def test_an_endpoint_that_is_no_address_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "seaweedfs:8333")
    with pytest.raises(StorageError, match=r"check AWS_ENDPOINT_URL"):
        open_store(s3, patient=False).read("a")


def test_missing_credentials_are_told(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it remembers what it found once
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no AWS credentials found; set AWS_ACCESS_KEY_ID"):
        open_store(s3, patient=False).read("a")


def test_secrets_stay_out_of_messages(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:any-secret@[bad")
    with pytest.raises(StorageError) as caught:
        open_store(s3, patient=False).read("a")
    assert "any-secret" not in str(caught.value)


class Scripted(BaseHTTPRequestHandler):
    """Answers as the class's script says, one entry a request, the last one for ever."""

    script: list[str]
    seen: int

    def do_GET(self) -> None:
        step = self.script[min(type(self).seen, len(self.script) - 1)]
        type(self).seen += 1
        body = b"0123456789"
        if step == "short":
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(body[:4])
            self.close_connection = True
            return
        if step != "200":
            body = f"<Error><Code>{step[4:]}</Code><Message>no</Message></Error>".encode()
        self.send_response(int(step[:3]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def scripted(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Scripted]]:
    """A server that fails as told."""
    handler = type("Handler", (Scripted,), {"script": ["200"], "seen": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("failure", ["500 InternalError", "503 SlowDown", "short"])
def test_a_failure_that_passes_is_retried(scripted: type[Scripted], failure: str) -> None:
    scripted.script = [failure, "200"]
    assert open_store("s3://bucket").read("a") == b"0123456789"
    assert scripted.seen == 2


@pytest.mark.parametrize("failure", ["500 InternalError", "short"])
def test_retries_are_bounded(scripted: type[Scripted], failure: str) -> None:
    scripted.script = [failure]
    with pytest.raises(StorageError, match="s3://bucket/a: "):
        open_store("s3://bucket", patient=False).read("a")
    assert scripted.seen == 2


@pytest.mark.parametrize(
    ("failure", "message"), [("403 AccessDenied", "access denied"), ("404 NoSuchKey", "is not there")]
)
def test_a_failure_that_stays_is_not_retried(scripted: type[Scripted], failure: str, message: str) -> None:
    scripted.script = [failure]
    with pytest.raises(StorageError, match=f"^s3://bucket/a: {message}$"):
        open_store("s3://bucket").read("a")
    assert scripted.seen == 1


# --- data sets -----------------------------------------------------------------------------------------


def pictures() -> dict[str, bytes]:
    """Images whose paths sort differently by letter, by byte and by folder."""
    found = {}
    for number in range(30):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, format="PNG")
        found[f"{['a', 'a-b', 'B'][number % 3]}/{number}.png"] = buffer.getvalue()
    found["a/.hidden.png"] = b"left behind by a file browser"
    found["B/bad.png"] = b""
    return found


CONFIG: dict[str, Any] = {"labels": {"per_class": 2}, "split": {"test_fraction": 0.3}, "shard_images": 8,
                          "partition_images": 4}  # fmt: skip


@pytest.fixture
def on_s3(s3: str) -> Dataset:
    """A data set from S3 in S3."""
    store = open_store(f"{s3}/images")
    for key, data in pictures().items():
        store.write(key, data)
    config = DataConfig.model_validate({**CONFIG, "source": store.uri})
    return build_dataset(open_source(store.uri), config, open_store(f"{s3}/store"))[0]


def shard(config: DataConfig, store: str, packers: int) -> tuple[Dataset, int]:
    """Shard by the stage's own tasks, ``packers`` partitions at once; returns how many partitions there were."""
    environment = replace(Environment.read(), store=store)
    reporter = Reporter("shard")
    partitions = stage.plan(config, environment, reporter)
    with ThreadPoolExecutor(packers) as pool:
        packed = list(pool.map(lambda each: stage.pack(config, each, environment, reporter), partitions))
    opened = open_store(store)
    plan = open_plan(opened, partitions[0].partition("/")[0])
    assert len(partitions) == len(plan.partitions)
    known = [open_packed(opened, table) for table in packed]
    return finish(plan, known, config, opened, open_source(config.source).uri), len(partitions)


@pytest.mark.parametrize("packers", [1, 4])
def test_a_folder_and_s3_give_the_same_data_set_by_one_and_by_four_packers(
    on_s3: Dataset, s3: str, tmp_path: Path, packers: int
) -> None:
    for key, data in pictures().items():
        (tmp_path / "images" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / key).write_bytes(data)
    for source, store in ((str(tmp_path / "images"), str(tmp_path / "store")), (f"{s3}/images", f"{s3}/other")):
        config = DataConfig.model_validate({**CONFIG, "source": source})
        for partitions in (8, 1):  # the second time nothing is new, which is one empty partition
            dataset, packed = shard(config, store, packers)
            assert (dataset.digest, packed) == (on_s3.digest, partitions)
        assert [q.path for q in dataset.manifest.quarantined] == ["B/bad.png"]


def test_four_packers_of_the_same_partition_at_once_are_all_right(on_s3: Dataset, s3: str) -> None:
    config = DataConfig.model_validate({**CONFIG, "source": f"{s3}/images"})
    environment = replace(Environment.read(), store=f"{s3}/race")
    partitions = stage.plan(config, environment, Reporter("shard"))
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: stage.pack(config, partitions[0], environment, Reporter("shard")), range(4)))
    assert len(found) == 1
    assert open_packed(open_store(f"{s3}/race"), found.pop()).shards["train"]


def test_an_unchanged_prefix_is_not_read_again(on_s3: Dataset, s3: str) -> None:
    config = DataConfig.model_validate({**CONFIG, "source": f"{s3}/images"})
    again, fresh = build_dataset(open_source(config.source), config, on_s3.store)
    assert (again.uri, fresh) == (on_s3.uri, False)


def test_shards_on_s3_are_read_back(on_s3: Dataset, tmp_path: Path) -> None:
    assert on_s3.uri.startswith("s3://")
    dataset = open_dataset(on_s3.uri)
    expected = pictures()
    for name in ("unlabelled", "labelled", "test"):
        reader = SplitReader(dataset, name, tmp_path / "cache")
        assert len(reader) == dataset.manifest.splits[name].count > 0
        for number in range(len(reader)):
            assert reader.sample(number).image == expected[reader.path(number)]


def test_a_damaged_shard_on_s3_is_refused_by_name_and_not_kept(on_s3: Dataset, tmp_path: Path) -> None:
    name = f"shards/{on_s3.manifest.splits['test'].shards[0].sha256}.tar"
    data = on_s3.store.read(name)
    on_s3.store.write(name, data[:-1] + b"x")
    with pytest.raises(DataError, match=f"{on_s3.store.uri}/{name} is damaged"):
        SplitReader(on_s3, "test", tmp_path / "cache")
    on_s3.store.write(name, data)
    assert len(SplitReader(on_s3, "test", tmp_path / "cache")) > 0


def test_a_copy_damaged_in_the_cache_is_fetched_again(on_s3: Dataset, tmp_path: Path) -> None:
    SplitReader(on_s3, "test", tmp_path / "cache")
    for damaged in (b"", b"half a shard"):
        for path in (tmp_path / "cache").glob("*.*"):
            if path.is_file() and not path.name.startswith("."):
                path.write_bytes(damaged)
        reader = SplitReader(on_s3, "test", tmp_path / "cache")
        assert reader.image(0)[:4].tobytes() == b"\x89PNG"


def test_tars_on_s3_are_adopted_where_they_lie(s3: str, tmp_path: Path) -> None:
    for folder, first in (("train-a", 0), ("train-b", 20), ("test", 40)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(first, first + 20):
                for name, data in (("png", picture(number)), ("cls", b"ab"[number % 2 :][:1])):
                    info = tarfile.TarInfo(f"{number}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        open_store(f"{s3}/tars").write(f"{folder}/0000.tar", buffer.getvalue())  # the same name in each folder
    source, store = f"{s3}/tars", open_store(f"{s3}/store")
    config = DataConfig.model_validate({"source": source, "labels": {"per_class": 2}})
    dataset, _ = build_dataset(open_source(source), config, store)
    shards = dataset.manifest.splits["unlabelled"].shards
    assert sorted(str(shard.uri) for shard in shards) == [f"{source}/train-{name}/0000.tar" for name in "ab"]
    reader = SplitReader(dataset, "unlabelled", tmp_path / "cache")
    found = {reader.path(number): reader.image(number).tobytes() for number in range(len(reader))}
    assert found == {f"train-{'ab'[n // 20]}/0000.tar/{n}.png": picture(n) for n in range(40)}
    open_store(source).write("train-a/0000.tar", b"another")
    again = SplitReader(dataset, "unlabelled", tmp_path / "cache")
    assert len(again) == 40, "what is in the cache was verified"
    with pytest.raises(DataError, match=r"train-a/0000\.tar is another: 7 bytes"):
        SplitReader(dataset, "unlabelled", tmp_path / "other")


def test_a_client_is_made_at_first_use_alone() -> None:
    store = S3Store("bucket")
    assert store.uri == "s3://bucket"
    assert store._client is None
