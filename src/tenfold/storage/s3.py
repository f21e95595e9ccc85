"""S3, and what speaks its protocol, as a store.

boto3 takes endpoint, region, addressing and credentials from the standard AWS environment and configuration, and
retries what passes (500, 503, time-outs, resets before the body) with jitter. Here stands what it leaves to its
caller: bodies that break off, put-if-absent, uploads in parts, and the proof that what arrived is what was sent.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from tenfold.errors import ConflictError, StorageError, redact
from tenfold.storage.store import Content, Entry, Span, parts_of, size_of

T = TypeVar("T")
#: Objects above this many bytes go up in parts of this size, a few at once.
PART = 32 << 20
_PARTS_AT_ONCE = 4
_CHUNK = 64 << 10
#: A body that brings fewer bytes a second than this, for this many seconds, has failed.
SLOWEST, PATIENCE = 4096, 30.0


class _BrokenOffError(Exception):
    """A body ended early, or came too slowly to go on waiting."""


class S3Store:
    """A bucket and prefix as a store."""

    def __init__(self, bucket: str, prefix: str = "", *, patient: bool = True) -> None:
        """Open the bucket lazily.

        Args:
            bucket: its name.
            prefix: keys are below it.
            patient: False for checks that must answer within seconds (short time-outs, one retry).
        """
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.uri = f"s3://{bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self._patient, self._attempts = patient, 6 if patient else 2
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The boto3 client, made at first use."""
        if self._client is None:
            import boto3
            from botocore.config import Config

            retries: Any = {"mode": "standard", "total_max_attempts": self._attempts}
            connect, read = (10, 60) if self._patient else (1, 2)
            limits = Config(retries=retries, connect_timeout=connect, read_timeout=read, max_pool_connections=32)
            try:
                self._client = boto3.client("s3", config=limits)
            except ValueError as error:  # an endpoint that is no address
                raise StorageError(f"{self.uri}: {redact(str(error))}; check AWS_ENDPOINT_URL") from None
        return self._client

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}" if self.prefix else key}

    def _call(
        self, doing: str, key: str, call: Callable[[], T], absent: T | None = None, *, may_miss: bool = False
    ) -> T | None:
        """Return what ``call`` does, which reads, writes or lists (``doing``)."""
        from botocore.exceptions import BotoCoreError, ClientError

        tried = (doing, self.uri, key)
        where = f"{self.uri}/{key}" if key else self.uri
        try:
            return call()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in {"404", "NoSuchKey", "NotFound"} and may_miss:
                return absent
            reasons = {
                "404": "is not there", "NoSuchKey": "is not there", "NotFound": "is not there",
                "NoSuchBucket": "the bucket does not exist", "403": "access denied",
                "AccessDenied": "access denied", "InvalidAccessKeyId": "the access key is not known",
                "SignatureDoesNotMatch": "the secret key is wrong", "412": "changed while it was read",
                "PreconditionFailed": "changed while it was read", "InvalidRange": "ends before the bytes asked for",
                "416": "ends before the bytes asked for",
            }  # fmt: skip
            away = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
            told, again = f"{where}: {reasons.get(code, code or 'refused')}", away and self._patient
            raise StorageError(told, again=again, tried=tried) from error
        except BotoCoreError as error:
            again = self._patient and _passing(error)
            raise StorageError(f"{where}: {_reachable(error)}", again=again, tried=tried) from error

    def _wait(self, attempt: int) -> None:
        time.sleep(random.uniform(0, 0.25 * 2**attempt))  # noqa: S311

    # --- reading ---------------------------------------------------------------------------------------

    def read(self, key: str, span: Span | None = None) -> bytes:
        """See :class:`Store`."""
        if span is not None and span.size == 0:
            return b""
        with tempfile.SpooledTemporaryFile(max_size=1 << 40) as sink:  # in memory
            self._download(key, span, sink)
            sink.seek(0)
            return sink.read()

    def _download(self, key: str, span: Span | None, sink: IO[bytes]) -> None:
        """Write the bytes into ``sink``, going on where a body broke off."""
        from botocore.exceptions import BotoCoreError, FlexibleChecksumError

        first = span.start if span else 0
        end = first + span.size if span else None
        position, tag = first, ""
        for attempt in range(1, self._attempts + 1):
            request = self._at(key)
            if span or position:
                request["Range"] = f"bytes={position}-{'' if end is None else end - 1}"
            if tag:  # the rest must be of the same object
                request["IfMatch"] = tag
            answer = self._call("read", key, lambda request=request: self.client.get_object(**request))  # type: ignore[misc]
            assert answer is not None
            tag, expected = answer.get("ETag", ""), answer["ContentLength"]
            if span is None and position and "ContentRange" not in answer:  # a server that sends all or nothing
                position = _emptied(sink)
            if end is not None and position + expected != end:
                raise StorageError(f"{self.uri}/{key}: ends before the bytes asked for")
            end = position + expected
            try:
                for chunk in _chunks(answer["Body"]):
                    sink.write(chunk)
                    position += len(chunk)
                if position != end:
                    raise _BrokenOffError(f"{position - first} of {end - first} bytes came")
                return
            except (BotoCoreError, _BrokenOffError) as error:
                if attempt == self._attempts:
                    raise StorageError(f"{self.uri}/{key}: {_reachable(error)}", again=self._patient) from error
                if isinstance(error, FlexibleChecksumError):  # any of its bytes may be wrong
                    _emptied(sink)
                    position = first
            self._wait(attempt)

    def fetch(self, key: str, folder: Path) -> Path:
        """See :class:`Store`."""
        path = folder / key.replace("/", "_")
        if not path.is_file():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=folder, prefix=".fetching-", delete=False) as file:
                    aside = Path(file.name)
                    try:
                        self._download(key, None, file)
                        file.flush()
                        aside.chmod(0o644)
                        aside.replace(path)
                    except BaseException:
                        aside.unlink(missing_ok=True)
                        raise
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror or error}") from error
        return path

    # --- writing ---------------------------------------------------------------------------------------

    def write(self, key: str, content: Content) -> None:
        """See :class:`Store`."""
        self._call("write", key, lambda: self._put(key, content, {}))

    def create(self, key: str, content: Content, *, sealed: bool = False) -> bool:
        """See :class:`Store`; ``If-None-Match: *`` lets one writer win.

        An object in parts is put in place by a conditional completion: S3 lets one of two writers win there too;
        seaweedfs checks the condition and acts in two steps. Our large objects are named by their content, so that
        two writers at once write the same bytes.
        """
        from botocore.exceptions import ClientError

        def put() -> bool:
            for attempt in range(1, self._attempts + 1):
                try:
                    self._put(key, content, {"IfNoneMatch": "*"})
                    return True
                except ClientError as error:
                    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                    if status == 412:
                        return False
                    if status != 409:  # 409: another writer is at it, so ask again
                        raise
                self._wait(attempt)
            return False

        made = bool(self._call("write", key, put))
        if not made and not self._holds(key, content):
            raise ConflictError(f"{self.uri}/{key} is there already with other bytes")
        return made

    def _holds(self, key: str, content: Content) -> bool:
        """Tell whether the object has these bytes."""
        with tempfile.TemporaryFile() as held:
            self._download(key, None, held)
            if held.seek(0, 2) != size_of(content):
                return False
            held.seek(0)
            return all(held.read(len(part)) == part for part in parts_of(content, 1 << 20))

    def _put(self, key: str, content: Content, condition: dict[str, str]) -> None:
        """Send the object, in parts if it is large; what the server took is checked against what was sent."""
        if size_of(content) <= PART:
            body = content.read_bytes() if isinstance(content, Path) else content
            self._sent(key, body, lambda: self.client.put_object(**self._at(key), **condition, Body=body))
            return
        upload = {**self._at(key), "UploadId": self.client.create_multipart_upload(**self._at(key))["UploadId"]}

        def send(numbered: tuple[int, bytes]) -> dict[str, Any]:
            number, part = numbered
            answer = self._sent(
                key, part, lambda: self.client.upload_part(**upload, PartNumber=number, Body=part)
            )  # boto3 tries each part again by itself
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            parts = enumerate(parts_of(content, PART), start=1)
            sent: list[dict[str, Any]] = []
            with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
                while group := list(islice(parts, _PARTS_AT_ONCE)):
                    sent += pool.map(send, group)
            self.client.complete_multipart_upload(**upload, **condition, MultipartUpload={"Parts": sent})
        except BaseException:
            self._forget(upload)
            raise

    def _forget(self, upload: dict[str, str]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client.abort_multipart_upload(**upload)
        except (BotoCoreError, ClientError):  # the bucket's own clean-up rule takes it
            return

    def _sent(self, key: str, body: bytes, send: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Send ``body`` until the server's MD5 of it is ours, where its tag is one."""
        expected = hashlib.md5(body, usedforsecurity=False).hexdigest()
        for attempt in range(1, self._attempts + 1):
            answer = send()
            tag = answer.get("ETag", "").strip('"')
            told = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
            if not told or len(tag) != 32 or tag == expected:
                return answer
            if attempt < self._attempts:
                self._wait(attempt)
        raise StorageError(f"{self.uri}/{key}: the server took other bytes than were sent (MD5 {tag}, not {expected})")

    def sweep(self, prefix: str) -> None:
        """See :class:`Store`; these are uploads in parts. Who may not see them leaves them to the bucket's own rule."""
        root = self._at(prefix)
        pages = self.client.get_paginator("list_multipart_uploads")

        def begun() -> list[dict[str, Any]]:
            found = pages.paginate(Bucket=self.bucket, Prefix=root["Key"])
            return [upload for page in found for upload in page.get("Uploads", [])]

        try:
            uploads = self._call("list", prefix, begun) or []
        except StorageError:
            return
        for upload in uploads:
            self._forget({"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]})

    # --- the rest --------------------------------------------------------------------------------------

    def exists(self, key: str) -> bool:
        """See :class:`Store`."""
        asked = partial(self.client.head_object, **self._at(key))
        head = self._call("read", key, lambda: bool(asked()), False, may_miss=True)
        return bool(head)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See :class:`Store`."""
        return (entry for entry, _ in self.dated(prefix))

    def dated(self, prefix: str = "") -> Iterator[tuple[Entry, float]]:
        """See :class:`Store`."""
        start = self._at(prefix)["Key"] if prefix else (f"{self.prefix}/" if self.prefix else "")
        cut = len(self.prefix) + 1 if self.prefix else 0
        token: dict[str, str] = {}
        while True:
            page = self._call(
                "list", prefix, lambda token=dict(token): self.client.list_objects_v2(  # type: ignore[misc]
                    Bucket=self.bucket, Prefix=start, **token)
            )  # fmt: skip
            assert page is not None
            for item in page.get("Contents", []):
                key = item["Key"][cut:]
                if key and not key.endswith("/"):
                    yield Entry(key, item["Size"], item["ETag"].strip('"')), item["LastModified"].timestamp()
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """See :class:`Store`."""
        self._call("write", key, lambda: self.client.delete_object(**self._at(key)))


def _emptied(sink: IO[bytes]) -> int:
    """Empty ``sink``; returns where it stands."""
    sink.seek(0)
    sink.truncate()
    return 0


def _chunks(body: Any) -> Iterator[bytes]:
    """Yield a body's bytes; one that trickles is given up."""
    start, came = time.monotonic(), 0
    while chunk := body.read(_CHUNK):
        yield chunk
        came += len(chunk)
        spent = time.monotonic() - start
        if spent > PATIENCE and came < SLOWEST * spent:
            raise _BrokenOffError(f"the answer came too slowly: {came} bytes in {spent:.0f} s")


def _passing(error: Exception) -> bool:
    """Return whether the connection failed, which may be otherwise the next time."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    return isinstance(error, NoConnection | HTTPClientError)


def _reachable(error: Exception) -> str:
    name = type(error).__name__
    if name in {"NoCredentialsError", "PartialCredentialsError"}:
        return "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
    if name in {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"}:
        return "the server cannot be reached; check AWS_ENDPOINT_URL and the network"
    return redact(str(error))
