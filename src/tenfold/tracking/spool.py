"""What MLflow was not sent yet, as JSON lines.

Each attempt of a task has a file of its own, ``<home>/tracking/<run id>/<task>/<number>.jsonl``, and holds a lock on it
as long as its process lives. Its first line is the :class:`Header`; then comes a line for each record, in order, and
``{"sent": n}`` for what MLflow has. What is left at a task's end goes to the same key below ``tracking/`` of the store,
without the lines of what was sent. Numbers count up; no time decides an order.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tenfold.environment import Environment
from tenfold.errors import ConflictError, redact
from tenfold.storage import Store
from tenfold.tracking.tracker import InvalidRecordError, Record, now

FOLDER = "tracking"
_SUFFIX, _CLAIM = ".jsonl", ".claim"


@dataclass(frozen=True)
class Header:
    """Whose records a spool holds, and where they belong.

    Attributes:
        run_id: the pipeline run's id.
        task: the task's name.
        experiment: MLflow's experiment.
        address: MLflow's address, without credentials.
        started: when the attempt began, in milliseconds.
    """

    run_id: str
    task: str
    experiment: str
    address: str
    started: int

    @classmethod
    def of(cls, environment: Environment, task: str) -> Header:
        """Return the header of an attempt of ``task`` that begins now."""
        return cls(environment.run_id, task, environment.experiment, redact(environment.tracking_uri), now())


class Spool:
    """The file of one attempt. Its maker adds records from one thread while another sends and acknowledges them."""

    def __init__(self, path: Path, handle: int, sent: int = 0) -> None:
        """Take an open and locked file; see :meth:`make` and :meth:`abandoned`."""
        self.path = path
        self._handle, self._sent = handle, sent
        self._lock = threading.Lock()
        self._number = self._last = 0
        self._position = self._end = 0

    @classmethod
    def make(cls, home: Path, header: Header) -> Spool:
        """Make the file of a new attempt, numbered behind those of its task's earlier ones."""
        folder = home / FOLDER / header.run_id / header.task
        folder.mkdir(parents=True, exist_ok=True)
        number = max((_number(path.name) for path in folder.iterdir()), default=0)
        # It gets its name when it has its lock and its header, so that nobody takes it for an abandoned one.
        aside = folder / f".making-{uuid.uuid4().hex}"
        handle = os.open(aside, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            os.write(handle, json.dumps(asdict(header)).encode() + b"\n")
            while True:
                number += 1
                path = folder / f"{number:06d}{_SUFFIX}"
                try:
                    path.hardlink_to(aside)
                except FileExistsError:
                    continue
                return cls(path, handle)
        finally:
            aside.unlink()

    @classmethod
    def abandoned(cls, path: Path) -> Spool | None:
        """Open a file whose process is gone; None where it works still, or another process took the file."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return cls(path, handle, _acknowledged(path))
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(handle)
        return None

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._handle, json.dumps(line).encode() + b"\n")

    def add(self, op: str, values: dict[str, Any]) -> None:
        """Add a record.

        Raises:
            OSError: the disk is full; the record is lost.
        """
        with self._lock:
            self._number += 1
            self._write({"n": self._number, "op": op, **values})

    def next(self, limit: int) -> list[Record]:
        """Return the next records that are not acknowledged, at most ``limit``."""
        found: list[Record] = []
        self._end = self._position
        with self.path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n") or len(found) == limit:  # the last line is being written
                    break
                self._end += len(line)
                record = _parsed(line)
                if "op" in record and record["n"] > self._sent:
                    found.append(record)
        self._last = found[-1]["n"] if found else 0
        return found

    def acknowledge(self, record: Record) -> None:
        """Note that MLflow has all records up to ``record``, one of those that :meth:`next` gave."""
        with self._lock:
            self._sent = record["n"]
            if self._sent == self._last:
                self._position = self._end
            if self._handle >= 0:
                self._write({"sent": self._sent})

    def remove(self) -> None:
        """Remove the file, and the folders that it leaves empty; a second time does nothing."""
        with self._lock:
            if self._handle < 0:
                return
            self.path.unlink(missing_ok=True)
            for folder in list(self.path.parents)[:3]:
                try:
                    folder.rmdir()
                except OSError:  # not empty, or another process was first
                    break
            os.close(self._handle)
            self._handle = -1

    def close(self) -> None:
        """Give the file up as it is: to whoever opens it next."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def leave(self, store: Store) -> str:
        """Move what was not acknowledged into the store and return its key, behind those of earlier attempts.

        Raises:
            TenfoldError: the store does not take it; the file is still here.
        """
        header = header_of(self.path)
        prefix = f"{FOLDER}/{header.run_id}/{header.task}/"
        number = max((_number(entry.key.rpartition("/")[2]) for entry in store.list(prefix)), default=0)
        with tempfile.NamedTemporaryFile(suffix=_SUFFIX) as file:
            for line in chain([asdict(header)], unsent(self.path)):
                file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            while True:
                number += 1
                key = f"{prefix}{number:06d}{_SUFFIX}"
                try:
                    store.create(key, Path(file.name))
                except ConflictError:
                    continue
                self.remove()
                return key


def _number(name: str) -> int:
    text = name.partition(".")[0]
    return int(text) if text.isdigit() else 0


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the line's object; an empty one of a line that was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _acknowledged(path: Path) -> int:
    with path.open("rb") as file:
        return max((int(_parsed(line).get("sent", 0)) for line in file), default=0)


def header_of(path: Path) -> Header:
    """Return what a file's first line says.

    Raises:
        InvalidRecordError: it is none of a spool, or was cut off.
    """
    with path.open("rb") as file:
        found = _parsed(file.readline())
    try:
        return Header(**found)
    except TypeError:
        raise InvalidRecordError(f"{path} is no spool of records for MLflow, or was cut off") from None


def unsent(path: Path) -> Iterator[Record]:
    """Yield a file's records that were not acknowledged."""
    sent = _acknowledged(path)
    with path.open("rb") as file:
        for line in file:
            record = _parsed(line)
            if "op" in record and record["n"] > sent:
                yield record


def in_parts(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Yield ``size`` records at a time."""
    iterator = iter(records)
    while part := list(islice(iterator, size)):
        yield part


def told(records: Iterable[Record]) -> str:
    """Return what records are: ``12 points, 1 file, the status``."""
    counts: Counter[str] = Counter()
    for record in records:
        counts[record["op"]] += (
            len(record.get(record["op"], ())) if record["op"] in {"tags", "params", "metrics"} else 1
        )
    names = {"tags": "tag", "params": "parameter", "metrics": "point", "artifact": "file or folder"}
    parts = [f"{n} {names[op]}{'' if n == 1 else 's'}" for op, n in counts.items() if op in names]
    return ", ".join(parts + ["the status"] * ("finish" in counts)) or "nothing"


def left_local(home: Path, run_id: str = "*", task: str = "*") -> list[Path]:
    """Return the files below ``home``, each task's in order."""
    return sorted((home / FOLDER).glob(f"{run_id}/{task}/*{_SUFFIX}"))


def left_in_store(store: Store, run_id: str | None = None) -> list[str]:
    """Return the keys of what tasks left in the store, each task's in order."""
    prefix = f"{FOLDER}/{run_id}/" if run_id else f"{FOLDER}/"
    return sorted(entry.key for entry in store.list(prefix) if entry.key.endswith(_SUFFIX))


def claim(store: Store, key: str, claimant: str) -> bool:
    """Reserve what lies at ``key`` for one of several tasks that start at once; its own retry gets it again."""
    try:
        store.create(key + _CLAIM, claimant.encode())
    except ConflictError:
        return False
    return True


def discard(store: Store, key: str) -> None:
    """Remove what lies at ``key``, and its reservation."""
    store.delete(key + _CLAIM)  # first, so that a kill here leaves no reservation of nothing
    store.delete(key)
