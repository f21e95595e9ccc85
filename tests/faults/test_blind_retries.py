"""F27: KFP tries a task again whatever it failed by. What cannot succeed ends at once; what was mended goes on."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tenfold.environment import Environment
from tenfold.errors import ConfigError, LaunchError, NonFiniteError, StorageError, TenfoldError
from tenfold.execution import Attempt
from tenfold.retry import record_of, recorded
from tenfold.storage import open_store


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Return what makes try ``index`` of a task that does ``work``; it says whether the work was begun."""
    worked: list[str] = []

    def make(
        work: Callable[[], object], index: int, task: str = "finetune", part: str = "", run_id: str = "run",
        status: int = 2,
    ) -> bool:  # fmt: skip
        monkeypatch.setenv("KFP_RETRY_INDEX", str(index))
        monkeypatch.setenv("TENFOLD_RUN_ID", run_id)
        worked.clear()

        def run() -> None:
            with Attempt(task, part):
                worked.append(task)
                work()
            sys.exit(0)

        with pytest.raises(SystemExit) as end:
            run()
        assert end.value.code in {0, status}
        return bool(worked)

    return make


def fails(error: TenfoldError) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("error", [ConfigError("no such thing"), NonFiniteError("the loss is not finite")])
def test_what_the_run_itself_decides_is_not_tried_again_in_the_same_run(
    error: TenfoldError, attempt: Callable[..., bool], capfd: pytest.CaptureFixture[str]
) -> None:
    assert attempt(fails(error), 0)
    capfd.readouterr()
    assert not attempt(fails(error), 1), "the second try did the work again"
    assert f"finetune: {error} (as in the try before; no other was made)" in capfd.readouterr().err
    assert attempt(lambda: None, 0), "the first try of a run looks at no record"
    assert attempt(lambda: None, 1, run_id="other"), "another run's record counts for nothing"
    assert attempt(lambda: None, 1, task="distill"), "another task's neither"


def test_a_run_that_is_retried_by_hand_knows_nothing_of_the_round_before(attempt: Callable[..., bool]) -> None:
    assert attempt(fails(ConfigError("bad")), 0)
    assert attempt(lambda: None, 0), "KFP counts from 0 again"
    assert recorded(Environment.read(), "finetune") is None
    assert attempt(lambda: None, 1), "the first try's pod was killed, which leaves no record"


def test_a_disk_that_is_full_is_told_with_the_file_only_where_that_is_known(
    attempt: Callable[..., bool], capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as of a write to an open file

    assert attempt(work, 0, status=1)
    assert "finetune: No space left on device" in capfd.readouterr().err


def test_each_part_of_a_fan_out_has_a_record_of_its_own(attempt: Callable[..., bool]) -> None:
    assert attempt(fails(ConfigError("bad")), 0, task="pack", part="plan/0")
    assert not attempt(lambda: None, 1, task="pack", part="plan/0")
    assert attempt(lambda: None, 1, task="pack", part="plan/1")


def test_an_outage_is_tried_again_always(attempt: Callable[..., bool]) -> None:
    store = Environment.read().store
    assert attempt(fails(StorageError("503", again=True, tried=("read", store, "key"))), 0, status=75)
    assert attempt(lambda: None, 1)


def test_an_object_that_was_missing_is_looked_for_before_the_work_begins_anew(attempt: Callable[..., bool]) -> None:
    store = open_store(Environment.read().store)
    assert attempt(lambda: store.read("labels.txt"), 0)
    assert not attempt(lambda: store.read("labels.txt"), 1)
    assert not attempt(lambda: store.read("labels.txt"), 2)
    store.write("labels.txt", b"")  # whatever it holds: that is the task's own affair
    assert attempt(lambda: store.read("labels.txt"), 3)


@pytest.mark.parametrize("doing", ["read", "write", "list"])
def test_a_bucket_that_is_missing_ends_the_second_try_and_lets_the_third_go_on_once_it_is_there(
    doing: str, s3: str, attempt: Callable[..., bool]
) -> None:
    import boto3

    store = open_store(f"{s3}-made-later")

    def work() -> None:
        if doing == "read":
            store.read("a.png")
        elif doing == "write":
            store.write("a.png", b"png")
        else:
            list(store.list("images/"))

    assert attempt(work, 0)
    assert not attempt(work, 1)
    boto3.client("s3").create_bucket(Bucket=f"{s3.removeprefix('s3://')}-made-later")
    open_store(f"{s3}-made-later").write("a.png", b"png")
    assert attempt(work, 2)
    assert [entry.key for entry in store.list()] == ["a.png"], "a look leaves nothing behind"


class Guarded(BaseHTTPRequestHandler):
    """Answers as S3 does, once it lets anybody in."""

    opened = False

    def _answer(self) -> None:
        body = b"<Error><Code>AccessDenied</Code></Error>"
        if self.opened:
            body = b"png" if self.command == "GET" else b""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response((206 if "Range" in self.headers else 200) if self.opened else 403)
        if self.opened and "Range" in self.headers:
            body = body[:1]
            self.send_header("Content-Range", "bytes 0-0/3")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("doing", ["read", "write"])
def test_denied_access_ends_further_tries_until_it_is_given(
    doing: str, attempt: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(Guarded):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # a body of a known length
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "any")
        store = open_store("s3://bucket")

        def work() -> None:
            _ = store.read("a.png") if doing == "read" else store.write("a.png", b"png")

        assert attempt(work, 0)
        assert not attempt(work, 1)
        Handler.opened = True
        assert attempt(work, 2)
        server.shutdown()


def test_what_a_rank_failed_by_counts_as_the_tasks_own_error(attempt: Callable[..., bool]) -> None:
    inner = record_of(NonFiniteError("the loss is not finite"))
    assert attempt(fails(LaunchError(inner["message"], record=inner)), 0)
    assert not attempt(lambda: None, 1)
    assert attempt(fails(LaunchError("the processes ended without a result")), 0)
    assert attempt(lambda: None, 1), "nobody knows why, so it is tried again"


def test_a_store_that_takes_no_record_leaves_the_tries_as_they_were(
    attempt: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_STORE", "s3://nobody")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "here")
    assert attempt(fails(ConfigError("bad")), 0)
    assert attempt(lambda: None, 1)
