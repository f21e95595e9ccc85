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
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold import __version__
from tenfold.data.manifest import dataset_digest
from tenfold.environment import Environment
from tenfold.errors import DataError, InterruptedTrainingError, TenfoldError, redact
from tenfold.fingerprint import canonical_json, digest, fingerprint, source_digest
from tenfold.launch import launch, processes
from tenfold.owner import end_with
from tenfold.progress import Reporter
from tenfold.retry import leave, standing
from tenfold.storage import open_store
from tenfold.tracking import NoTracker, QueuedTracker, Tracker, ended_tasks
from tenfold.work import FINAL, Work, published
from tenfold.worker import perform

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
            f"{folder} is no output of a tenfold stage, or it was deleted; run the pipeline again with --no-cache "
            "(`tenfold run`, or `tenfold submit` on a cluster)"
        ) from None
    return lineage


def identities(inputs: Mapping[str, str | Path | None]) -> dict[str, str | None]:
    """Return input name → what its content is called.

    A folder is called by the fingerprint in its lineage, a data set by its digest, other text by itself.
    """
    names: dict[str, str | None] = {}
    for name, value in inputs.items():
        if isinstance(value, Path):
            names[name] = str(read_lineage(value)["fingerprint"])
        elif value is not None and name in {"dataset", "watched"}:
            names[name] = dataset_digest(value)
        else:
            names[name] = None if value is None else digest(value)
    return names


class Attempt:
    """One try of a task: a context that turns errors into one line, an exit status and a FAILED run.

    A :class:`TenfoldError` ends the process with the error's exit status; anything else is a defect and
    keeps its traceback. A further try of a task that failed for good stops at once where the cause still stands.

    Args:
        stage: the task's name.
        part: of its work, where several tasks of that name share it.
    """

    def __init__(self, stage: str, part: str = "") -> None:
        try:
            self.environment = Environment.read()
        except TenfoldError as error:
            print(f"{stage}: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        self.reporter = Reporter(stage, self.environment.events)
        self.tracker: Tracker = NoTracker()
        self._stage, self._task = stage, f"{stage}/{part}" if part else stage

    def __enter__(self) -> Attempt:
        end_with(self.environment.owner)
        message = standing(self.environment, self._task)
        if message is not None:
            self._tell(f"{message} (as in the try before; no other was made)")
            sys.exit(TenfoldError.exit_code)
        self.reporter.event("preparing")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        gc.freeze()  # the process ends: looking through all of torch for garbage would take a second
        if not isinstance(error, Exception):
            return
        message = redact(str(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        elif not isinstance(error, TenfoldError):
            traceback.print_exception(error)
            message = f"defect: {type(error).__name__}: {message}"
        self._tell(message)
        if isinstance(error, TenfoldError):
            leave(self.environment, self._task, error)
        try:
            self.tracker.tags({"tenfold.error": message[:4000]})
            self.tracker.finish("KILLED" if isinstance(error, InterruptedTrainingError) else "FAILED")
        except TenfoldError as second:
            self.reporter.warn(str(second))
        sys.exit(error.exit_code if isinstance(error, TenfoldError) else 1)

    def _tell(self, message: str) -> None:
        self.reporter.failed(message)
        if self.environment.events is not None:  # else the reporter has told it already
            print(f"{self._stage}: {message}", file=sys.stderr)


def execute(
    task: str, config: str, inputs: Mapping[str, Any], outputs: Mapping[str, str], *,
    room: str | None = None, trains: bool = False,
) -> Any:  # fmt: skip
    """Run a stage as a task of the pipeline, and return what its ``run`` returns.

    Reads the surroundings, opens the work place, runs the stage, checks that each output was written, and leaves the
    lineage beside it. The stage's module, and with it torch, is loaded inside its working time; MLflow is loaded and
    spoken to by a thread beside it, and fails no stage that can do without it.

    Args:
        task: the task's name.
        config: its canonical configuration string.
        inputs: fields of the stage's ``Inputs``: text, a local :class:`Path` for an artifact, or None.
        outputs: fields of the stage's ``Outputs``, local paths all.
        room: folder of the stage below ``components``, where it is not the task's name.
        trains: that it may run on several ranks: processes of this machine, or a TrainJob's pods.
    """
    with Attempt(task) as attempt:
        environment = attempt.environment
        attempt.reporter.started()
        start = time.monotonic()
        # threads that wait by spinning take the cores from the data's threads, and from whatever else runs here
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        gc.disable()  # importing torch makes many objects and no garbage
        spread = trains and (environment.trainjob is not None or processes(environment) > 1)
        if not spread:
            importlib.import_module(f"tenfold.components.{room or task}.stage")
        gc.enable()
        # only now: two threads that import at once hinder each other more than they gain
        store = open_store(environment.store)
        attempt.tracker = tracker = QueuedTracker(environment, task, store, attempt.reporter)
        code, names = source_digest(), identities(inputs)
        name = fingerprint(task, config, names, code)
        dataset = inputs.get("dataset")
        tracker.tags(
            {"tenfold.fingerprint": name, "tenfold.code": code, "tenfold.version": __version__,
             "tenfold.config": config, "tenfold.inputs": canonical_json(names),
             **({"tenfold.dataset": dataset} if dataset is not None else {})}
        )  # fmt: skip
        tracker.params(_flat(json.loads(config)))
        work = Work(task, name, store, environment, attempt.reporter, tracker)
        made = {key: Path(value) for key, value in outputs.items()}
        result = (launch if spread else perform)(task, room, config, inputs, made, work)
        seconds = time.monotonic() - start + sum(work.spent)
        tracker.metrics({"seconds": seconds})
        tracker.tags({"tenfold.outputs": json.dumps(list(outputs.values()))})
        lineage = {
            "stage": task, "fingerprint": name, "run_id": environment.run_id, "mlflow_run_id": tracker.run_id,
            "code": code, "version": __version__, "config": json.loads(config), "seconds": seconds,
            "dataset": dataset, "inputs": _input_lineages(inputs),
        }  # fmt: skip
        _seal(made, lineage)
        tracker.finish("FINISHED")
        _clean(work, result=True)
        for made_before in _input_lineages(inputs).values():  # what was read here has arrived, and can be read again
            _clean(replace(work, stage=made_before["stage"], fingerprint=made_before["fingerprint"]), result=False)
        attempt.reporter.finished(seconds)
        return result


def _clean(work: Work, *, result: bool) -> None:
    """Remove the checkpoints that have done their service: this run's, and those of runs that are over.

    While another run is at work on the same stage, the published result stays for it; one that MLflow does not know
    to be over counts as at work.

    Args:
        work: a stage that is done.
        result: keep the published result: a cluster stores outputs behind the stage's end, and may fail to. Whoever
            reads them knows that they are safe, and removes it.
    """
    entries = list(work.store.list(work.shared))
    runs = {entry.key.removeprefix(work.shared).rpartition("/")[0].partition("/")[0] for entry in entries}
    busy = runs - {work.environment.run_id, ""}
    if busy:
        try:
            busy -= ended_tasks(work.environment, work.stage)
        except TenfoldError as error:
            work.reporter.warn(f"{error}; checkpoints of other runs stay in {work.store.uri}/{work.shared}")
    kept = tuple(f"{work.shared}{run}/" for run in busy)
    final = published(work) if busy or result else None
    if final is not None:
        kept += (f"{work.shared}{FINAL}", final[1])
    for entry in entries:
        if not entry.key.startswith(kept):
            work.store.delete(entry.key)
    for run in runs - busy - {""}:
        work.store.sweep(f"{work.shared}{run}/")


def _seal(outputs: Mapping[str, Path], lineage: dict[str, Any]) -> None:
    for name, path in outputs.items():
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise RuntimeError(f"the stage never wrote its output '{name}'")
        if path.is_dir():
            (path / LINEAGE).write_text(json.dumps(lineage, indent=1))


def _input_lineages(inputs: Mapping[str, str | Path | None]) -> dict[str, Any]:
    return {name: read_lineage(value) for name, value in inputs.items() if isinstance(value, Path)}


def _flat(value: Any, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        flat: dict[str, object] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}{key}."))
        return flat
    return {prefix.removesuffix("."): value}
