"""What is the same for every stage: configuration, work place, tracking, lineage, errors.

A KFP component calls :func:`execute`, which loads the stage's module and calls its ``run``.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import psutil
from pydantic import ValidationError

from tenfold import __version__
from tenfold.data.manifest import dataset_digest
from tenfold.environment import Environment
from tenfold.errors import ConfigError, DataError, InterruptedTrainingError, TenfoldError, first_fault, redact
from tenfold.fingerprint import canonical_json, digest, fingerprint, source_digest
from tenfold.progress import Reporter
from tenfold.storage import open_store
from tenfold.tracking import NoTracker, QueuedTracker, Tracker
from tenfold.work import Work

T = TypeVar("T")

LINEAGE = "lineage.json"


def read_lineage(folder: Path) -> dict[str, Any]:
    """Return the lineage that :func:`execute` left beside a stage's output.

    Raises:
        DataError: the folder is gone or was made by something else.
    """
    try:
        lineage: dict[str, Any] = json.loads((folder / LINEAGE).read_text())
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no output of a tenfold stage, or it was deleted; run the pipeline again with --no-cache"
        ) from None
    return lineage


def identities(inputs: Any) -> dict[str, str | None]:
    """Return input name → what its content is called.

    A folder is called by the fingerprint in its lineage, a data set by its digest, other text by itself.
    """
    names: dict[str, str | None] = {}
    for item in fields(inputs):
        value = getattr(inputs, item.name)
        if isinstance(value, Path):
            names[item.name] = str(read_lineage(value)["fingerprint"])
        elif value is not None and item.name in {"dataset", "watched"}:
            names[item.name] = dataset_digest(value)
        else:
            names[item.name] = None if value is None else digest(str(value))
    return names


class Attempt:
    """One try of a task: a context that turns errors into one line, an exit status and a FAILED run.

    A :class:`TenfoldError` ends the process with the error's exit status; anything else is a defect and
    keeps its traceback.
    """

    def __init__(self, stage: str) -> None:
        self.environment = Environment.read()
        self.reporter = Reporter(stage, self.environment.events)
        self.tracker: Tracker = NoTracker()
        self._stage = stage

    def __enter__(self) -> Attempt:
        _end_with(self.environment.owner)
        self.reporter.event("preparing")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        gc.freeze()  # the process ends: looking through all of torch for garbage would take a second
        if not isinstance(error, Exception):
            return
        message = redact(str(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            message = f"{error.filename}: {error.strerror}"
        elif not isinstance(error, TenfoldError):
            traceback.print_exception(error)
            message = f"defect: {type(error).__name__}: {message}"
        self.reporter.failed(message)
        if self.environment.events is not None:  # else the reporter has told it already
            print(f"{self._stage}: {message}", file=sys.stderr)
        try:
            self.tracker.tags({"tenfold.error": message[:4000]})
            self.tracker.finish("KILLED" if isinstance(error, InterruptedTrainingError) else "FAILED")
        except TenfoldError as second:
            self.reporter.warn(str(second))
        sys.exit(error.exit_code if isinstance(error, TenfoldError) else 1)


def execute(
    task: str, config: str, inputs: Mapping[str, str | None], outputs: Mapping[str, str], *, room: str | None = None
) -> Any:
    """Run a stage as a task of the pipeline, and return what its ``run`` returns.

    Reads the surroundings, opens the work place, calls the stage, checks that each output was written, and
    leaves the lineage beside it. The stage's module, and with it torch, is loaded inside its working time;
    MLflow is loaded and spoken to by a thread beside it, and fails no stage that can do without it.

    Args:
        task: the task's name.
        config: its canonical configuration string.
        inputs: fields of the stage's ``Inputs``; artifacts by their local path.
        outputs: fields of the stage's ``Outputs``, local paths all.
        room: folder of the stage below ``components``, where it is not the task's name.
    """
    with Attempt(task) as attempt:
        environment = attempt.environment
        attempt.reporter.started()
        start = time.monotonic()
        # threads that wait by spinning take the cores from the data's threads, and from whatever else runs here
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        gc.disable()  # importing torch makes many objects and no garbage
        module = importlib.import_module(f"tenfold.components.{room or task}.stage")
        gc.enable()
        # only now: two threads that import at once hinder each other more than they gain
        store = open_store(environment.store)
        attempt.tracker = tracker = QueuedTracker(environment, task, store, attempt.reporter)
        given, made = _typed(module.Inputs, inputs), _typed(module.Outputs, outputs)
        try:
            parsed = module.CONFIGS[task].model_validate_json(config)
        except ValidationError as error:
            raise ConfigError(
                f"the configuration string of {task} does not fit this version: {first_fault(error.errors())}"
            ) from None
        code, names = source_digest(), identities(given)
        name = fingerprint(task, config, names, code)
        tracker.tags(
            {"tenfold.fingerprint": name, "tenfold.code": code, "tenfold.version": __version__,
             "tenfold.config": config, "tenfold.inputs": canonical_json(names),
             **({"tenfold.dataset": given.dataset} if hasattr(given, "dataset") else {})}
        )  # fmt: skip
        tracker.params(_flat(json.loads(config)))
        work = Work(task, name, store, environment, attempt.reporter, tracker)
        result = module.run(parsed, given, made, work)
        seconds = time.monotonic() - start + sum(work.spent)
        tracker.metrics({"seconds": seconds})
        tracker.tags({"tenfold.outputs": json.dumps(list(outputs.values()))})
        lineage = {
            "stage": task, "fingerprint": name, "run_id": environment.run_id, "mlflow_run_id": tracker.run_id,
            "code": code, "version": __version__, "config": json.loads(config), "seconds": seconds,
            "dataset": getattr(given, "dataset", None), "inputs": _input_lineages(given),
        }  # fmt: skip
        _seal(made, lineage)
        tracker.finish("FINISHED")
        for entry in list(work.store.list(work.shared)):  # all attempts' checkpoints have done their service
            work.store.delete(entry.key)
        attempt.reporter.finished(seconds)
        return result


def _typed(kind: type[T], values: Mapping[str, str | None]) -> T:
    """Return the dataclass ``kind`` with ``values``, those of its paths as paths."""
    hints = get_type_hints(kind)
    return kind(**{n: Path(v) if v is not None and hints[n] in (Path, Path | None) else v for n, v in values.items()})


def _seal(outputs: Any, lineage: dict[str, Any]) -> None:
    for item in fields(outputs):
        path = getattr(outputs, item.name)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise RuntimeError(f"the stage never wrote its output '{item.name}'")
        if path.is_dir():
            (path / LINEAGE).write_text(json.dumps(lineage, indent=1))


def _input_lineages(inputs: Any) -> dict[str, Any]:
    values = {item.name: getattr(inputs, item.name) for item in fields(inputs)}
    return {name: read_lineage(value) for name, value in values.items() if isinstance(value, Path)}


def _flat(value: Any, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        flat: dict[str, object] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}{key}."))
        return flat
    return {prefix.removesuffix("."): value}


def _end_with(owner: int | None) -> None:
    """End this process when the one that started the local run is gone, however it went."""
    if owner is None:
        return
    try:
        watched = psutil.Process(owner)
    except psutil.NoSuchProcess:
        os._exit(75)

    def watch() -> None:
        while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
        os._exit(75)

    threading.Thread(target=watch, daemon=True, name="owner-watch").start()
