"""Names for content: canonical JSON, digests of configuration, and the digest of tenfold's own source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tenfold

#: What decides results is code; documents and compiled pipelines do not.
_SOURCE_SUFFIXES = {".py", ".yaml", ".j2"}
_NO_CODE = {"compiled", "presets"}


def canonical_json(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(data: bytes | str) -> str:
    """Return the sha256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def fingerprint(stage: str, config: str, inputs: Mapping[str, str | None], code: str) -> str:
    """Return the name of a stage's result: the sha256 over everything that decides it.

    Args:
        stage: the task's name.
        config: its canonical configuration string.
        inputs: name → content identity of each input (a dataset's digest, a model's fingerprint).
        code: digest of tenfold's source.
    """
    return digest(canonical_json({"stage": stage, "config": config, "inputs": dict(inputs), "code": code}))


@cache
def folder_digest(folder: Path) -> str:
    """Return the digest of the Python files in ``folder``."""
    return digest("".join(f"{path.name}\0{digest(path.read_bytes())}\0" for path in sorted(folder.glob("*.py"))))


@cache
def source_digest() -> str:
    """Return the digest of the installed tenfold source, links followed, compiled pipelines left out."""
    root = Path(tenfold.__file__).parent
    hasher = hashlib.sha256()
    folders = [root, root / "components", root / "pipelines"]
    seen: set[Path] = set()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            real = path.resolve()
            # a preset acts through the resolved configuration alone
            if path.suffix not in _SOURCE_SUFFIXES or real in seen or _NO_CODE & {*path.relative_to(root).parts}:
                continue
            seen.add(real)
            hasher.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
