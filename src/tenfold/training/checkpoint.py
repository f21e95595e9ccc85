"""Checkpoints in the store: safetensors and JSON, named by step, valid once ``complete.json`` is there.

``complete.json`` is written last and holds the digests of the other files; whatever lacks it was cut off and is passed
over. A run reads the newest valid checkpoint of any run of its fingerprint and writes only under its own name. The run
that ends first puts ``final.json`` there, which names its last checkpoint; others of the fingerprint take it as their
own result. Their order is that of their steps: no clock decides anything.
"""

from __future__ import annotations

import contextlib
import json
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tenfold.errors import AGAIN, ConflictError, TenfoldError
from tenfold.fingerprint import canonical_json, digest
from tenfold.work import FINAL, Work, published

_FILES, _COMPLETE = ("state.safetensors", "state.json"), "complete.json"
_FOLDER = "checkpoints/"
_KEPT = 2
#: So many checkpoints in a row that could not be written end the training.
_MISSED = 3


@dataclass(frozen=True)
class Checkpoint:
    """The state behind ``step`` steps.

    Attributes:
        step: steps done.
        tensors: on the CPU.
        values: whatever JSON holds.
        score: how good the network is, where that was measured; the best one is kept.
        folder: key prefix of its files, where it was read.
    """

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    folder: str = ""


class _Place(NamedTuple):
    """A complete checkpoint: its step and its folder's key."""

    step: int
    folder: str


class Checkpoints:
    """A run's checkpoints: written by a thread of its own, one at a time; the last two and the best are kept.

    Use it in a ``with`` statement: leaving it waits for the last one. With several ranks the first one alone writes.
    """

    def __init__(self, work: Work, *, writes: bool = True) -> None:
        """Look for what is there; what an earlier attempt of this run left half-written is removed."""
        self._work, self._writes = work, writes
        self._own = f"{work.own}{_FOLDER}"
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._missed = 0
        if writes:
            self._remove_halves()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with contextlib.suppress(*([TenfoldError] if error is not None else [])):  # the first error is the one
                self.wait()
        finally:
            self._writer.shutdown()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and return at once, as soon as the one before is written.

        One that could not be written, because the store is away, costs a warning; three in a row end the training.

        Raises:
            StorageError: those before could not be written.
        """
        try:
            self.wait()
            self._missed = 0
        except TenfoldError as error:
            self._missed += 1
            if error.exit_code != AGAIN or self._missed == _MISSED:
                raise
            self._work.reporter.warn(f"a checkpoint could not be written, and training goes on without it: {error}")
        if self._writes:
            self._pending = self._writer.submit(self._write, checkpoint)

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            StorageError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def latest(self) -> Checkpoint | None:
        """Return the published result, or the newest checkpoint of any run of this fingerprint whose digests hold.

        A damaged one is reported and passed over.
        """
        final = self._published()
        places = [*([final] if final else []), *sorted(self._complete(self._work.shared), reverse=True)]
        return next((found for place in places if (found := self._read(place)) is not None), None)

    def publish(self, step: int) -> Checkpoint | None:
        """Make this run's checkpoint of the last step the fingerprint's result; return another's that came before.

        For the rank that writes.

        Raises:
            StorageError: a checkpoint could not be written.
        """
        self.wait()
        own = _Place(step, self._folder(step))
        record = canonical_json({"step": step, "folder": own.folder}).encode()
        key = f"{self._work.shared}{FINAL}"
        with contextlib.suppress(ConflictError):
            self._work.store.create(key, record)
            return None
        other = self._published()
        found = self._read(other) if other is not None and other != own else None
        if found is None:  # it is gone, or damaged
            self._work.store.write(key, record)
        return found

    def _published(self) -> _Place | None:
        found = published(self._work)
        return _Place(*found) if found else None

    def _folder(self, step: int) -> str:
        return f"{self._own}{step:09d}/"

    def _write(self, checkpoint: Checkpoint) -> None:
        folder, store = self._folder(checkpoint.step), self._work.store
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        contents = (save(tensors), canonical_json(checkpoint.values).encode())
        for name, data in zip(_FILES, contents, strict=True):
            store.write(folder + name, data)
        digests = {name: digest(data) for name, data in zip(_FILES, contents, strict=True)}
        record = {"step": checkpoint.step, "sha256": digests, "score": checkpoint.score}
        store.write(folder + _COMPLETE, canonical_json(record).encode())
        self._remove_old()

    def _remove_old(self) -> None:
        places = sorted(self._complete(self._own), reverse=True)
        if len(places) <= _KEPT:
            return
        scored = [(score, -place.step) for place in places if (score := self._score(place)) is not None]
        best = -max(scored)[1] if scored else None
        for place in places[_KEPT:]:
            if place.step != best:
                self._remove(place.folder)

    def _remove(self, folder: str) -> None:
        for name in (_COMPLETE, *_FILES):  # in this order, so that a kill here leaves no valid half
            self._work.store.delete(folder + name)

    def _remove_halves(self) -> None:
        names: dict[str, set[str]] = {}
        for entry in self._work.store.list(self._own):
            folder, _, name = entry.key.rpartition("/")
            names.setdefault(f"{folder}/", set()).add(name)
        for folder, found in names.items():
            if _COMPLETE not in found:
                self._remove(folder)
        self._work.store.sweep(self._own)

    def _complete(self, prefix: str) -> list[_Place]:
        found = []
        for entry in self._work.store.list(prefix):
            folder, _, name = entry.key.rpartition("/")
            step = folder.rpartition("/")[2]
            if name == _COMPLETE and f"/{_FOLDER}" in entry.key and step.isdigit():
                found.append(_Place(int(step), f"{folder}/"))
        return found

    def _record(self, place: _Place) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._work.store.read(place.folder + _COMPLETE))
        return record

    def _score(self, place: _Place) -> float | None:
        """Return how good its network is; None where that was not measured or cannot be read any more."""
        try:
            score = self._record(place)["score"]
        except (TenfoldError, KeyError, TypeError, ValueError):
            return None
        return score if isinstance(score, int | float) and math.isfinite(score) else None

    def _read(self, place: _Place) -> Checkpoint | None:
        where = f"{self._work.store.uri}/{place.folder}"
        try:
            record = self._record(place)
            contents = [self._work.store.read(place.folder + name) for name in _FILES]
            if [digest(data) for data in contents] != [record["sha256"][name] for name in _FILES]:
                self._work.reporter.warn(f"the checkpoint {where} is damaged; trying the one before")
                return None
            values = json.loads(contents[1])
            return Checkpoint(place.step, load(contents[0]), values, record.get("score"), place.folder)
        except (TenfoldError, SafetensorError, KeyError, TypeError, ValueError) as error:
            self._work.reporter.warn(f"the checkpoint {where} cannot be read ({error}); trying another")
            return None
