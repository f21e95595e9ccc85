"""What MLflow does not have yet, as JSON lines in a local file.

Each attempt of a task has a file of its own, ``<home>/tracking/<run id>/<task>/<number>.jsonl``, and holds a lock on it
as long as its process lives. Its first line is the :class:`Header`; then comes a line for each record, in order, and
``{"sent": n}`` for what MLflow has. Numbers count up; no time decides an order.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenfold.environment import Environment
from tenfold.errors import redact
from tenfold.progress import count
from tenfold.tracking.failures import InvalidRecordError
from tenfold.tracking.tracker import Record, now

FOLDER = "tracking"
SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Header:
    """Whose records a spool holds, and where they belong.

    Attributes:
        run_id: the pipeline run's id.
        task: the task's name.
        experiment: MLflow's experiment.
        address: MLflow's address, without credentials.
        started: when the attempt began, in milliseconds.
        experiment_id: MLflow's experiment where KFP chose it.
        mlflow_run: the task's run where KFP made it.
    """

    run_id: str
    task: str
    experiment: str
    address: str
    started: int
    experiment_id: str | None = None
    mlflow_run: str | None = None

    @classmethod
    def of(cls, environment: Environment, task: str) -> Header:
        """Return the header of an attempt of ``task`` that begins now."""
        return cls(
            environment.run_id, task, environment.experiment, redact(environment.tracking_uri), now(),
            environment.experiment_id, environment.mlflow_run,
        )  # fmt: skip


class Spool:
    """The file of one attempt. Its maker adds records from one thread while another sends and acknowledges them."""

    def __init__(self, path: Path, handle: int, sent: int = 0) -> None:
        """Take an open and locked file; see :meth:`make` and :meth:`abandoned`."""
        self.path = path
        self._handle, self._sent = handle, sent
        self._lock = threading.Lock()
        self._number = self._last = 0
        self._torn = True  # the last line may have been cut off, by a kill or a full disk
        self._position = self._end = 0

    @classmethod
    def make(cls, home: Path, header: Header) -> Spool:
        """Make the file of a new attempt, numbered behind those of its task's earlier ones."""
        folder = home / FOLDER / header.run_id / header.task
        folder.mkdir(parents=True, exist_ok=True)
        number = max((number_of(path.name) for path in folder.iterdir()), default=0)
        # It gets its name when it has its lock and its header, so that nobody takes it for an abandoned one.
        aside = folder / f".making-{uuid.uuid4().hex}"
        handle = os.open(aside, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        with contextlib.suppress(OSError):  # a file system without locks: then nobody else takes the file either
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            os.write(handle, json.dumps(asdict(header)).encode() + b"\n")
            while True:
                number += 1
                path = folder / f"{number:06d}{SUFFIX}"
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
        except OSError:  # locked, or gone
            pass
        os.close(handle)
        return None

    def _write(self, line: dict[str, Any]) -> None:
        data = b"\n" * self._torn + json.dumps(line).encode() + b"\n"
        self._torn = True
        if os.write(self._handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

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
                with contextlib.suppress(OSError):  # after a kill they are sent twice, which does no harm
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


def number_of(name: str) -> int:
    """Return the number in a spool's file name; 0 of another file's."""
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


def told(records: Iterable[Record]) -> str:
    """Return what records are, ``12 points, 1 tag, the status`` for example; nothing of none."""
    counts: Counter[str] = Counter()
    for record in records:
        op = record["op"]
        counts[op] += len(record[op]) if op in {"tags", "params", "metrics"} else 1
    names = {"metrics": "point", "params": "parameter", "tags": "tag", "artifact": "file or folder"}
    parts = [count(counts[op], name) for op, name in names.items() if counts[op]]
    return ", ".join(parts + ["the status"] * ("finish" in counts))


def left_local(home: Path, run_id: str | None = None, task: str | None = None) -> list[Path]:
    """Return the files below ``home``, each task's in order; those of one run or task where it is given."""
    run, which = (glob.escape(name) if name else "*" for name in (run_id, task))
    return sorted((home / FOLDER).glob(f"{run}/{which}/*{SUFFIX}"))
