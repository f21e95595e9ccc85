"""A stage's own work: in the process of its task, or in each of the processes that torchrun starts for it.

``python -m torch.distributed.run … -m tenfold.worker KEY`` runs a stage on several ranks. KEY names a :class:`Request`
in the store. The first rank reports, tracks and writes; it leaves :data:`RESULT` beside the request, and a rank that
cannot go on leaves :data:`FAILURE`. torchrun starts all ranks again when one dies: they go on from the last checkpoint.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tenfold.environment import Environment
from tenfold.errors import ConfigError, InterruptedTrainingError, TenfoldError, first_fault, redact
from tenfold.fingerprint import canonical_json
from tenfold.owner import end_with
from tenfold.progress import Reporter
from tenfold.storage import Store, open_store
from tenfold.tracking import NoTracker, QueuedTracker, Tracker
from tenfold.work import Work

REQUEST, RESULT, FAILURE = "request.json", "result.json", "failure.json"


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
    key = sys.argv[1]
    place = key.removesuffix(REQUEST)
    environment = Environment.read()
    end_with(environment.owner)
    store = open_store(environment.store)
    try:
        request = Request.model_validate_json(store.read(key))
    except ValidationError as error:
        message = f"{store.uri}/{key} is no request that this version can read: {first_fault(error.errors())}"
        store.write(place + FAILURE, canonical_json({"message": message}).encode())
        sys.exit(ConfigError.exit_code)
    # torchrun reports any other status with a traceback of its own; a TrainJob must not count as complete
    failed = TenfoldError.exit_code if request.afar else 0
    if store.exists(place + FAILURE):  # torchrun starts everything again, and what failed would fail again
        sys.exit(failed)
    first = os.environ.get("RANK", "0") == "0"
    reporter = Reporter(request.task, environment.events, quiet=not first)
    tracker: Tracker = QueuedTracker(environment, request.task, store, reporter) if first else NoTracker()
    work = Work(request.task, request.fingerprint, store, environment, reporter, tracker)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            result = _run(request, work, Path(scratch))
            if first:
                tracker.finish("FINISHED")
                store.write(place + RESULT, canonical_json({"result": result, "spent": sum(work.spent)}).encode())
    except Exception as error:
        status = error.exit_code if isinstance(error, TenfoldError) else 1
        if not isinstance(error, TenfoldError):
            traceback.print_exc()
        elif not isinstance(error, InterruptedTrainingError):
            store.write(place + FAILURE, canonical_json({"message": redact(str(error))}).encode())
            status = failed
        sys.stderr.flush()
        os._exit(status)  # other ranks may wait for this one for ever: torchrun ends them


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
