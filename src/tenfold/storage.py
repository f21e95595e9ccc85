"""Files and S3 behind one small interface.

A store is a root address and keys below it. Objects that are named by their content are written with
:meth:`Store.create` (put-if-absent), so two writers of the same thing are both right. S3 takes endpoint,
region and credentials from the standard AWS environment and configuration through boto3.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urlparse

from tenfold.errors import ConflictError, StorageError, redact

T = TypeVar("T")


class Entry(NamedTuple):
    """One object of a listing: its key below the root, size in bytes, and a tag that changes with content."""

    key: str
    size: int
    tag: str


class Store(Protocol):
    """What tenfold asks of storage."""

    uri: str

    def read(self, key: str) -> bytes:
        """Return the object's bytes; :class:`StorageError` when it is not there."""

    def write(self, key: str, data: bytes) -> None:
        """Write or replace the object, whole or not at all."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if it is absent; True when this call made it.

        Raises:
            ConflictError: the object is there with other bytes.
        """

    def exists(self, key: str) -> bool:
        """Tell whether the object is there."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose key starts with ``prefix``, in no promised order."""

    def delete(self, key: str) -> None:
        """Remove the object; absent is fine."""

    def fetch(self, key: str, folder: Path) -> Path:
        """Return a local file with the object's bytes, downloading it into ``folder`` if need be."""


class FileStore:
    """A folder as a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def _path(self, key: str) -> Path:
        # By its name alone: a link in the folder may lead out of it, as links to images often do.
        parts = PurePosixPath(key)
        if parts.is_absolute() or ".." in parts.parts:
            raise StorageError(f"key '{key}' leaves the store {self.uri}")
        return self.root.resolve() / key

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"{self.uri}/{key} is not there") from error
        except OSError as error:
            raise StorageError(f"{self.uri}/{key}: {error.strerror or error}") from error

    def read(self, key: str) -> bytes:
        """See :class:`Store`."""
        with self._errors(key):
            return self._path(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """See :class:`Store`."""
        with self._errors(key):
            path = self._path(key)
            _aside(path, data).replace(path)

    def create(self, key: str, data: bytes) -> bool:
        """See :class:`Store`; the hard link makes one writer win."""
        with self._errors(key):
            path = self._path(key)
            aside = _aside(path, data)
            try:
                path.hardlink_to(aside)
                return True
            except FileExistsError:
                if path.read_bytes() != data:
                    raise ConflictError(f"{self.uri}/{key} is there already with other bytes") from None
                return False
            finally:
                aside.unlink()

    def exists(self, key: str) -> bool:
        """See :class:`Store`."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See :class:`Store`; names that start with a dot are passed over."""
        folder = self._path(prefix.rpartition("/")[0])

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # gone since its name was read
                raise StorageError(f"{error.filename}: {error.strerror}") from error

        for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
            here = Path(parent).resolve()
            folders[:] = [
                name  # a link to a folder above would be walked for ever
                for name in folders
                if not name.startswith(".") and not here.is_relative_to((here / name).resolve())
            ]
            for name in files:
                path = Path(parent, name)
                key = path.relative_to(self.root.resolve()).as_posix()
                if name.startswith(".") or not key.startswith(prefix):
                    continue
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    if path.is_symlink():
                        raise StorageError(f"{path} is a link to nothing") from None
                    continue  # gone since its name was read
                except OSError as error:  # a link to itself, for example
                    raise StorageError(f"{path}: {error.strerror}") from None
                yield Entry(key, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")

    def delete(self, key: str) -> None:
        """See :class:`Store`; folders left empty go too."""
        with self._errors(key):
            path = self._path(key)
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.root.resolve():
                    break
                try:
                    parent.rmdir()
                except OSError:  # not empty, or another process was first
                    break

    def fetch(self, key: str, folder: Path) -> Path:
        """See :class:`Store`; the object is a local file already."""
        path = self._path(key)
        if not path.is_file():
            raise StorageError(f"{self.uri}/{key} is not there")
        return path


def _aside(path: Path, data: bytes) -> Path:
    """Write ``data`` whole into a hidden file beside ``path``; nothing is left of it where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives the owner alone; a shared store has other readers
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


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

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, key: str, call: Callable[[], T], absent: T | None = None, *, may_miss: bool = False) -> T | None:
        from botocore.exceptions import BotoCoreError, ClientError

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
                "SignatureDoesNotMatch": "the secret key is wrong",
            }  # fmt: skip
            raise StorageError(f"{where}: {reasons.get(code, code or 'refused')}") from error
        except BotoCoreError as error:
            raise StorageError(f"{where}: {_reachable(error)}") from error

    def read(self, key: str) -> bytes:
        """See :class:`Store`; what breaks off in the body is retried here, since boto3 retries the head alone."""
        from botocore.exceptions import BotoCoreError

        def get() -> bytes:
            for attempt in range(1, self._attempts + 1):
                answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key))
                try:
                    return bytes(answer["Body"].read())
                except BotoCoreError:  # cut short, reset, too slow, or another checksum
                    if attempt == self._attempts:
                        raise
                    time.sleep(random.uniform(0, 0.5 * 2**attempt))  # noqa: S311
            raise AssertionError

        data = self._call(key, get)
        assert data is not None
        return data

    def write(self, key: str, data: bytes) -> None:
        """See :class:`Store`."""
        self._call(key, lambda: self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data))

    def create(self, key: str, data: bytes) -> bool:
        """See :class:`Store`; ``If-None-Match: *`` lets one writer win."""
        from botocore.exceptions import ClientError

        def put() -> bool:
            for _ in range(5):
                try:
                    self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                    if status == 412:
                        return False
                    if status != 409:  # 409: another writer is at it, so ask again
                        raise
            return False

        made = bool(self._call(key, put))
        if not made and self.read(key) != data:
            raise ConflictError(f"{self.uri}/{key} is there already with other bytes")
        return made

    def exists(self, key: str) -> bool:
        """See :class:`Store`."""
        head = self._call(
            key,
            lambda: bool(self.client.head_object(Bucket=self.bucket, Key=self._key(key))),
            False,
            may_miss=True,
        )
        return bool(head)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See :class:`Store`."""
        start = self._key(prefix) if prefix else (f"{self.prefix}/" if self.prefix else "")
        cut = len(self.prefix) + 1 if self.prefix else 0
        token: dict[str, str] = {}
        while True:
            page = self._call(
                prefix, lambda token=dict(token): self.client.list_objects_v2(  # type: ignore[misc]
                    Bucket=self.bucket, Prefix=start, **token)
            )  # fmt: skip
            assert page is not None
            for item in page.get("Contents", []):
                key = item["Key"][cut:]
                if key and not key.endswith("/"):
                    yield Entry(key, item["Size"], item["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """See :class:`Store`."""
        self._call(key, lambda: self.client.delete_object(Bucket=self.bucket, Key=self._key(key)))

    def fetch(self, key: str, folder: Path) -> Path:
        """See :class:`Store`; keys are content-addressed, so a file that is there already is kept."""
        path = folder / key.replace("/", "_")
        if not path.is_file():
            data = self.read(key)
            try:
                _aside(path, data).replace(path)
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror or error}") from error
        return path


def _reachable(error: Exception) -> str:
    name = type(error).__name__
    if name in {"NoCredentialsError", "PartialCredentialsError"}:
        return "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
    if name in {
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
    }:
        return "the server cannot be reached; check AWS_ENDPOINT_URL and the network"
    return redact(str(error))


def open_store(uri: str, *, patient: bool = True) -> Store:
    """Open the store at ``uri``: ``s3://bucket/prefix``, ``file:///folder`` or a plain path.

    Raises:
        StorageError: the scheme is none of these.
    """
    scheme = urlparse(uri).scheme
    if scheme == "s3":
        bucket, _, prefix = uri.partition("://")[2].partition("/")  # a key may hold ? and #
        if not bucket:
            raise StorageError(f"'{uri}' names no bucket; write s3://bucket/prefix")
        return S3Store(bucket, prefix, patient=patient)
    if scheme == "file":
        return FileStore(Path(unquote(urlparse(uri).path)))
    if scheme and len(scheme) > 1:
        raise StorageError(f"'{uri}': tenfold reads folders, file:// and s3:// addresses, not {scheme}://")
    return FileStore(Path(uri).absolute())


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
