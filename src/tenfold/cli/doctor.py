"""What ``tenfold doctor`` looks at."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from tenfold.environment import Environment
from tenfold.errors import TenfoldError, redact
from tenfold.storage import free_bytes, open_store


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and the cure if it is not ``ok``."""

    what: str
    ok: bool
    found: str
    cure: str = ""


def examine(environment: Environment) -> list[Finding]:
    """Look at everything that a run needs."""
    checks: list[Callable[[Environment], Finding]] = [
        _python,
        _packages,
        _disk,
        _store,
        _mlflow,
        _views,
        _device,
    ]
    return [check(environment) for check in checks]


def _python(environment: Environment) -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", (3, 11) <= sys.version_info[:2] < (3, 14), found, "install Python 3.11, 3.12 or 3.13")


def _packages(environment: Environment) -> Finding:
    names = ("torch", "torchvision", "kfp", "mlflow", "boto3", "scikit-learn")
    missing, found = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    cure = f"missing: {', '.join(missing)}; pip install -c docker/constraints.txt -e ."
    return Finding("packages", not missing, ", ".join(found), cure)


def _disk(environment: Environment) -> Finding:
    free = free_bytes(environment.home)
    cure = f"free some space, or set TENFOLD_HOME to another disk than {environment.home}"
    return Finding("disk", free > 2e9, f"{free / 1e9:.1f} GB free at {environment.home}", cure)


def _store(environment: Environment) -> Finding:
    key = f"doctor/{uuid.uuid4().hex}"
    try:
        store = open_store(environment.store, patient=False)
        store.create(key, b"doctor")
        store.delete(key)
    except TenfoldError as error:
        return Finding("store", False, str(error), "set TENFOLD_STORE to a folder or bucket that you may write to")
    return Finding("store", True, store.uri)


def _mlflow(environment: Environment) -> Finding:
    from tenfold.tracking import latest_tasks

    try:
        latest_tasks(environment, limit=1)
    except TenfoldError as error:
        return Finding("MLflow", False, str(error), "start the server, or unset MLFLOW_TRACKING_URI for a local file")
    return Finding("MLflow", True, redact(environment.tracking_uri))


def _views(environment: Environment) -> Finding:
    from tenfold.augment.spec import resolve_backend

    backend = resolve_backend("auto")
    if backend == "torchvision":
        return Finding("views", True, "torchvision (DALI is not installed; it is faster, on Linux)")
    try:
        import nvidia.dali.fn
    except (ImportError, OSError) as error:
        cure = "reinstall nvidia-dali-cuda130, or run with --set augment.backend=torchvision"
        return Finding("views", False, str(error), cure)
    return Finding("views", True, f"DALI {nvidia.dali.__version__}")


def _device(environment: Environment) -> Finding:
    from tenfold.training.device import prepare

    try:
        device = prepare(environment)
    except TenfoldError as error:
        return Finding("device", False, str(error), "set TENFOLD_DEVICE to cpu or auto, or mend the GPU's driver")
    return Finding("device", True, f"{device.type}, {environment.threads} threads of {os.cpu_count()} cores")
