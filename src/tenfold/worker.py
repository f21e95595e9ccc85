"""A stage's own work: in the process of its task, or in each of the processes that torchrun starts for it.

``python -m torch.distributed.run … -m tenfold.worker KEY`` runs a stage on several ranks. KEY names a :class:`Request`
in the store. The first rank reports, tracks and writes; it leaves :data:`RESULT` beside the request, and a rank that
cannot go on leaves :data:`FAILURE`. torchrun starts all ranks again when one dies: they go on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tenfold.environment import Environment
from tenfold.errors import (
    AGAIN,
    ConfigError,
    InterruptedTrainingError,
    StorageError,
    TenfoldError,
    first_fault,
    redact,
)
from tenfold.fingerprint import canonical_json
from tenfold.owner import end_with
from tenfold.progress import Reporter
from tenfold.retry import record_of
from tenfold.storage import Store, open_store
from tenfold.tracking import NoTracker, QueuedTracker
from tenfold.work import Work

REQUEST, RESULT, FAILURE = "request.json", "result.json", "failure.json"
#: Variable that names a local file for the reason of a rank that ended.
REASON = "TENFOLD_REASON"


class Request(BaseModel):
    """What the ranks are to do.

    Attributes:
        task: the task's name.
        room: folder of the stage below ``components``, where it is not the task's name.
        config: the canonical configuration string.
        fingerprint: of the result.
        parameters: fields of the stage's inputs that are text.
        artifacts: fields of the inputs that are folders.
        outputs: fields of the stage's outputs.
        afar: folders are key prefixes in the store; else they are local paths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    room: str | None
    config: str
    fingerprint: str
    parameters: dict[str, str | None]
    artifacts: dict[str, str]
    outputs: dict[str, str]
    afar: bool = False


def perform(
    task: str, room: str | None, config: str, inputs: Mapping[str, str | Path | None], outputs: Mapping[str, Path],
    work: Work,
) -> Any:  # fmt: skip
    """Load the stage, and torch with it, and run it; return what its ``run`` returns.

    Raises:
        ConfigError: the configuration string does not fit this version.
    """
    module = importlib.import_module(f"tenfold.components.{room or task}.stage")
    try:
        parsed = module.CONFIGS[task].model_validate_json(config)
    except ValidationError as error:
        raise ConfigError(
            f"the configuration string of {task} does not fit this version: {first_fault(error.errors())}"
        ) from None
    return module.run(parsed, module.Inputs(**inputs), module.Outputs(**outputs), work)


def send_folder(store: Store, folder: Path, prefix: str) -> None:
    """Copy a folder's files into the store below ``prefix``."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.write(f"{prefix}/{path.relative_to(folder).as_posix()}", path)


def fetch_folder(store: Store, prefix: str, folder: Path) -> None:
    """Copy what is below ``prefix`` into a folder; a launcher's pod need not have the memory for a large network."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as aside:
        for entry in store.list(f"{prefix}/"):
            path = folder / entry.key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched = store.fetch(entry.key, Path(aside))
            if fetched.is_relative_to(aside):
                fetched.replace(path)
            else:  # a store of files gives its own
                shutil.copyfile(fetched, path)


def main() -> None:
    """Run the request that the only argument names, as one rank of torchrun's."""
    try:
        environment = Environment.read()
        end_with(environment.owner)
        key, store = sys.argv[1], open_store(environment.store)
        request = _read(store, key)
        failed = store.exists(key.removesuffix(REQUEST) + FAILURE)
    except TenfoldError as error:
        print(redact(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    if failed:  # torchrun starts everything again, and what failed would fail again
        sys.exit(_failed(request))
    _work(request, key.removesuffix(REQUEST), store, environment)


def _read(store: Store, key: str) -> Request:
    try:
        return Request.model_validate_json(store.read(key))
    except ValidationError as error:
        message = f"{store.uri}/{key} is no request that this version can read: {first_fault(error.errors())}"
        fault = ConfigError(message)
        _fail(store, key.removesuffix(REQUEST), fault)
        raise fault from None


def _fail(store: Store, place: str, error: TenfoldError) -> None:
    store.write(place + FAILURE, canonical_json(record_of(error)).encode())


def _tell_launcher(error: Exception) -> None:
    """Leave the first rank's reason where the launcher on the same machine finds it, whatever the store does.

    A rank that lost another one says nothing: its error is that one's.
    """
    place = os.environ.get(REASON)
    if place is None or "gloo" in str(error) or type(error).__name__.startswith("Dist"):
        return
    defect = "" if isinstance(error, TenfoldError) else f"defect: {type(error).__name__}: "
    status = error.exit_code if isinstance(error, TenfoldError) else 1
    with contextlib.suppress(OSError), Path(place).open("x") as file:
        json.dump({"message": redact(f"{defect}{error}"), "again": status == AGAIN}, file)


def _failed(request: Request) -> int:
    """Return the status of a rank that left its failure.

    torchrun reports any but 0 with a traceback of its own, and here the launcher ends the other ranks; a TrainJob must
    not count as complete.
    """
    return TenfoldError.exit_code if request.afar else 0


def _work(request: Request, place: str, store: Store, environment: Environment) -> None:
    """Do this rank's part; the process ends where it fails."""
    start, first = time.monotonic(), os.environ.get("RANK", "0") == "0"
    if request.afar:  # here the launcher has given each process its share
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        environment = replace(environment, threads=max(1, environment.threads // ranks))
    reporter = Reporter(request.task, environment.events, quiet=not first)
    queue = QueuedTracker(environment, request.task, store, reporter) if first else None
    work = Work(request.task, request.fingerprint, store, environment, reporter, queue or NoTracker())
    try:
        with tempfile.TemporaryDirectory() as scratch:
            result = _run(request, work, Path(scratch))
            if queue is not None:
                queue.hand_over("FINISHED")
                seconds = time.monotonic() - start + sum(work.spent)
                store.write(place + RESULT, canonical_json({"result": result, "seconds": seconds}).encode())
    except Exception as error:
        status = error.exit_code if isinstance(error, TenfoldError) else 1
        _tell_launcher(error)
        if not isinstance(error, TenfoldError):
            traceback.print_exc()
        elif request.afar:  # a pod's log is read by people; here the launcher tells it
            print(f"{request.task}: {redact(str(error))}", file=sys.stderr)
        if isinstance(error, TenfoldError) and status != AGAIN:
            with contextlib.suppress(StorageError):
                _fail(store, place, error)
                status = _failed(request)
        if queue is not None:
            queue.hand_over("KILLED" if isinstance(error, InterruptedTrainingError) else "FAILED")
        sys.stderr.flush()
        os._exit(status)  # other ranks may wait for this one for ever: torchrun ends them, or the launcher


def _run(request: Request, work: Work, scratch: Path) -> Any:
    from tenfold.training.group import process_group

    artifacts = {name: Path(place) for name, place in request.artifacts.items()}
    outputs = {name: Path(place) for name, place in request.outputs.items()}
    if request.afar:
        artifacts = {name: scratch / "inputs" / name for name in request.artifacts}
        outputs = {name: scratch / "outputs" / name for name in request.outputs}
        for name, folder in artifacts.items():
            fetch_folder(work.store, request.artifacts[name], folder)
    with process_group(work.environment):
        inputs = {**request.parameters, **artifacts}
        result = perform(request.task, request.room, request.config, inputs, outputs, work)
    if request.afar and not work.reporter.quiet:
        for name, folder in outputs.items():
            send_folder(work.store, folder, request.outputs[name])
    return result


if __name__ == "__main__":
    main()
