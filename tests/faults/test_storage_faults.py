"""F19 and F20: a real S3 server behind a proxy that fails as told. Reads and writes end right, or with a reason."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tenfold.errors import ConflictError, StorageError
from tenfold.storage import Span, open_store
from tenfold.storage import s3 as storage_s3

BODY = os.urandom(300_000)


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to the real server; ``faults`` says what goes wrong with the next ones of a method."""

    protocol_version = "HTTP/1.1"
    upstream: str
    faults: dict[str, list[str]]
    seen: list[str]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        waiting = self.faults.get(self.command, [])
        fault = waiting.pop(0) if waiting else ""
        self.seen.append(f"{self.command} {fault}".strip())
        if fault in {"500", "503", "409"}:
            self._answer(int(fault), [], b"<Error><Code>Made</Code><Message>no</Message></Error>")
            return
        if fault == "unheard":  # the server acts, and the answer is lost
            self._ask(body)
            self._reset()
            return
        status, headers, answer = self._ask(body)
        if fault == "wrong tag":
            headers = [(k, '"' + "0" * 32 + '"' if k.lower() == "etag" else v) for k, v in headers]
        if fault == "other bytes":
            answer = bytes([answer[0] ^ 1]) + answer[1:]
        if fault in {"short", "reset"}:
            self._answer(status, headers, answer, sent=len(answer) // 2)
            self._reset() if fault == "reset" else None
            self.close_connection = True
            return
        self._answer(status, headers, answer, slow=fault == "slow")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in {"expect", "connection"}}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        found = answer.status, answer.getheaders(), answer.read()
        connection.close()
        return found

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None, *, slow: bool = False
    ) -> None:
        self.send_response_only(status)
        length = next((v for k, v in headers if k.lower() == "content-length"), str(len(body)))
        for key, value in headers:
            if key.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(key, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if slow:
            try:
                for start in range(0, len(body), 1000):
                    self.wfile.write(body[start : start + 1000])
                    self.wfile.flush()
                    time.sleep(0.02)
            except OSError:
                self.close_connection = True
            return
        self.wfile.write(body[:sent])
        self.wfile.flush()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            return

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Broken connections are what this server is for."""


@pytest.fixture
def proxy(s3: str, seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Proxy]]:
    """The real server behind a proxy; ``a`` holds BODY in its bucket."""
    open_store(s3).write("a", BODY)
    handler = type("Handler", (Proxy,), {"upstream": seaweedfs, "faults": {}, "seen": []})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("fault", ["500", "503", "short", "reset"])
def test_what_breaks_once_is_read_whole(proxy: type[Proxy], s3: str, fault: str, tmp_path: Path) -> None:
    proxy.faults = {"GET": [fault]}
    assert open_store(s3).read("a") == BODY
    proxy.faults = {"GET": [fault, fault]}
    assert open_store(s3).fetch("a", tmp_path).read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fault", ["short", "reset"])
def test_a_body_that_broke_off_is_gone_on_with_where_it_stopped(proxy: type[Proxy], s3: str, fault: str) -> None:
    proxy.faults = {"GET": [fault]}
    came: list[int] = []
    store = open_store(s3)
    real = storage_s3._chunks

    def count(body: Any) -> Iterator[bytes]:
        for chunk in real(body):
            came.append(len(chunk))
            yield chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_s3, "_chunks", count)
        assert store.read("a") == BODY
    assert sum(came) == len(BODY)
    assert proxy.seen == [f"GET {fault}", "GET"]


def test_an_object_replaced_while_it_is_read_is_told_and_never_mixed(proxy: type[Proxy], s3: str) -> None:
    proxy.faults = {"GET": ["short"]}
    store = open_store(s3)
    real = storage_s3.S3Store._wait

    def replace(self: Any, attempt: int) -> None:
        real(self, attempt)
        store.write("a", BODY[::-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_s3.S3Store, "_wait", replace)
        with pytest.raises(StorageError, match="/a: changed while it was read"):
            store.read("a")


def test_a_body_that_trickles_is_given_up_and_asked_for_again(
    proxy: type[Proxy], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "PATIENCE", 0.5)
    monkeypatch.setattr(storage_s3, "SLOWEST", 1_000_000)
    proxy.faults = {"GET": ["slow"]}
    assert open_store(s3).read("a") == BODY
    assert proxy.seen == ["GET slow", "GET"]


@pytest.mark.parametrize("fault", ["500", "short", "reset"])
def test_reading_gives_up_after_a_bounded_number_of_tries(
    proxy: type[Proxy], s3: str, fault: str, tmp_path: Path
) -> None:
    proxy.faults = {"GET": [fault] * 50}
    with pytest.raises(StorageError, match=f"{s3}/a: "):
        open_store(s3, patient=False).fetch("a", tmp_path)
    assert len(proxy.seen) <= 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["500", "503", "wrong tag", "unheard"])
@pytest.mark.parametrize("act", ["write", "create"])
def test_what_is_written_through_a_failure_is_there_whole(proxy: type[Proxy], s3: str, fault: str, act: str) -> None:
    proxy.faults = {"PUT": [fault]}
    getattr(open_store(s3), act)("b", BODY)
    assert open_store(s3).read("b") == BODY
    assert len([seen for seen in proxy.seen if seen.startswith("PUT")]) >= 2


def test_a_server_that_keeps_other_bytes_is_not_believed(proxy: type[Proxy], s3: str) -> None:
    proxy.faults = {"PUT": ["wrong tag"] * 9}
    with pytest.raises(StorageError, match="the server took other bytes than were sent"):
        open_store(s3, patient=False).write("b", BODY)


def test_a_409_is_asked_again_and_a_412_is_an_answer(proxy: type[Proxy], s3: str) -> None:
    proxy.faults = {"PUT": ["409", "409"]}
    assert open_store(s3).create("b", BODY) is True
    assert proxy.seen.count("PUT 409") == 2
    proxy.seen.clear()
    assert open_store(s3).create("b", BODY) is False
    with pytest.raises(ConflictError, match="is there already with other bytes"):
        open_store(s3).create("b", BODY[::-1])
    assert proxy.seen.count("PUT") == 2


# --- parts -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of 5 MiB, the least that S3 takes."""
    monkeypatch.setattr(storage_s3, "PART", 5 << 20)
    return 5 << 20


@pytest.mark.parametrize("fault", ["", "500", "unheard", "wrong tag"])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_large_object_goes_up_in_parts_and_a_part_that_fails_is_sent_again(
    proxy: type[Proxy], s3: str, small_parts: int, tmp_path: Path, fault: str, from_file: bool
) -> None:
    data = os.urandom(1 << 20) * 12
    proxy.faults = {"PUT": ["", fault]}
    content: Any = data
    if from_file:
        content = tmp_path / "large"
        content.write_bytes(data)
    store = open_store(s3)
    assert store.create("large", content) is True
    assert store.read("large") == data
    assert store.create("large", content) is False
    with pytest.raises(ConflictError):
        store.create("large", data[:-1] + b"x")
    assert store.read("large", Span(5 << 20, 10)) == data[5 << 20 : (5 << 20) + 10]
    assert len(proxy.seen) > 4


def test_racing_creators_of_the_same_large_object_are_all_right(s3: str, small_parts: int) -> None:
    store, data = open_store(s3), os.urandom(1 << 20) * 6
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: store.create("race", data), range(4)))
    assert True in results
    assert store.read("race") == data


def test_an_upload_that_fails_leaves_nothing(proxy: type[Proxy], s3: str, small_parts: int) -> None:
    import boto3

    proxy.faults = {"PUT": ["", "500", "500", "500", "500"]}
    with pytest.raises(StorageError):
        open_store(s3, patient=False).write("large", bytes(6 << 20))
    store = open_store(s3)
    assert [entry.key for entry in store.list()] == ["a"]
    assert not boto3.client("s3").list_multipart_uploads(Bucket=s3.removeprefix("s3://")).get("Uploads")


# --- ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_part_of_an_object_can_be_read(proxy: type[Proxy], s3: str, tmp_path: Path, place: str) -> None:
    store = open_store(s3 if place == "s3" else str(tmp_path))
    store.write("a", BODY)
    for span in (Span(0, 1), Span(1000, 70_000), Span(len(BODY) - 5, 5), Span(7, 0)):
        assert store.read("a", span) == BODY[span.start : span.start + span.size]
    with pytest.raises(StorageError, match=r"a:? ends before"):
        store.read("a", Span(len(BODY) - 5, 6))
    with pytest.raises(StorageError, match=r"a:? ends before"):
        store.read("a", Span(len(BODY) + 5, 6))
    store.write("empty", b"")
    assert store.read("empty") == b""


def test_a_part_that_breaks_off_is_read_whole(proxy: type[Proxy], s3: str) -> None:
    proxy.faults = {"GET": ["short", "reset"]}
    assert open_store(s3).read("a", Span(100, 200_000)) == BODY[100:200_100]


def test_bytes_that_changed_on_the_way_are_noticed_by_the_checksum_and_read_again(proxy: type[Proxy], s3: str) -> None:
    proxy.faults = {"GET": ["other bytes"]}
    assert open_store(s3).read("a") == BODY
    assert proxy.seen == ["GET other bytes", "GET"]
