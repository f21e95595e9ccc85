"""Checkpoints in the store: safetensors and JSON, named by step, valid once ``complete.json`` is there.

``complete.json`` is written last and holds the digests of the other files; whatever lacks it was cut off
and is passed over. A stage reads the newest valid checkpoint of any run of its fingerprint and writes only
under its own run's name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tenfold.errors import TenfoldError
from tenfold.fingerprint import canonical_json, digest
from tenfold.work import Work

_FILES = ("state.safetensors", "state.json")
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state behind ``step`` steps."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def _folder(work: Work, step: int) -> str:
    return f"{work.own}checkpoints/{step:09d}/"


def save_checkpoint(work: Work, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then remove all but the newest two of this run."""
    folder = _folder(work, checkpoint.step)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    contents = (save(contiguous), canonical_json(checkpoint.values).encode())
    for name, data in zip(_FILES, contents, strict=True):
        work.store.write(folder + name, data)
    digests = {name: digest(data) for name, data in zip(_FILES, contents, strict=True)}
    work.store.write(folder + "complete.json", canonical_json({"step": checkpoint.step, "sha256": digests}).encode())
    steps = sorted(_steps(work, work.own), reverse=True)
    for _, old in steps[_KEPT:]:
        _remove(work, old)


def _steps(work: Work, prefix: str) -> list[tuple[int, str]]:
    """Return (step, folder) of the complete checkpoints below ``prefix``."""
    found = []
    for entry in work.store.list(prefix):
        folder, _, name = entry.key.rpartition("/")
        step = folder.rpartition("/")[2]
        if name == "complete.json" and "/checkpoints/" in entry.key and step.isdigit():
            found.append((int(step), folder + "/"))
    return found


def latest_checkpoint(work: Work) -> Checkpoint | None:
    """Return the newest checkpoint of any run of this fingerprint whose digests hold; None if there is none.

    A damaged one is reported and passed over.
    """
    for step, folder in sorted(_steps(work, work.shared), reverse=True):
        try:
            recorded = json.loads(work.store.read(folder + "complete.json"))["sha256"]
            contents = [work.store.read(folder + name) for name in _FILES]
            if [digest(data) for data in contents] != [recorded[name] for name in _FILES]:
                work.reporter.warn(f"the checkpoint {work.store.uri}/{folder} is damaged; trying the one before")
                continue
            return Checkpoint(step, load(contents[0]), json.loads(contents[1]))
        except (TenfoldError, SafetensorError, KeyError, TypeError, ValueError) as error:
            work.reporter.warn(f"the checkpoint {work.store.uri}/{folder} cannot be read ({error}); trying another")
    return None


def _remove(work: Work, folder: str) -> None:
    work.store.delete(folder + "complete.json")  # first, so that a kill here leaves no valid half
    for name in _FILES:
        work.store.delete(folder + name)
