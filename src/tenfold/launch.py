"""Starting a training stage on several ranks: by torchrun on this machine, or as a TrainJob over many."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tenfold.environment import Environment, allocator
from tenfold.errors import InterruptedTrainingError, LaunchError, StorageError, TrainJobError
from tenfold.trainjob import TrainJobSpec, run_trainjob
from tenfold.work import Work
from tenfold.worker import FAILURE, REASON, REQUEST, RESULT, Request, fetch_folder, send_folder

#: How often torchrun starts the ranks again after one died.
RESTARTS = 3
#: Seconds between looks whether a rank has failed, and for which the others may then take to end by themselves.
_LOOK, _GRACE = 5.0, 15.0


def processes(environment: Environment) -> int:
    """Return how many processes train together on this machine: what is asked for, or one for each GPU."""
    if environment.processes is not None:
        return environment.processes
    if environment.device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def launch(
    task: str, room: str | None, config: str, inputs: Mapping[str, str | Path | None], outputs: Mapping[str, Path],
    work: Work,
) -> Any:  # fmt: skip
    """Run a stage on several ranks, wait for its end, and return what it returned.

    Its ranks get the request, and leave their result, in the work place. A TrainJob's pods share no disk with this one:
    artifacts go through the store.

    Raises:
        LaunchError: the training failed; the message is its own where it left one.
        InterruptedTrainingError: it was told to end and can go on.
    """
    afar, place = work.environment.trainjob is not None, f"{work.own}launch/"
    folders = {name: folder for name, folder in inputs.items() if isinstance(folder, Path)}
    request = Request(
        task=task, room=room, config=config, fingerprint=work.fingerprint, afar=afar,
        parameters={name: value for name, value in inputs.items() if not isinstance(value, Path)},
        artifacts={name: f"{place}inputs/{name}" if afar else str(folder) for name, folder in folders.items()},
        outputs={name: f"{place}outputs/{name}" if afar else str(folder) for name, folder in outputs.items()},
    )  # fmt: skip
    for name in (FAILURE, *([] if afar else [RESULT])):  # of an earlier attempt; a complete TrainJob's result counts
        work.store.delete(place + name)
    for name, folder in folders.items() if afar else ():
        send_folder(work.store, folder, request.artifacts[name])
    work.store.write(place + REQUEST, request.model_dump_json().encode())
    start = time.monotonic()
    if work.environment.trainjob is not None:
        _trainjob(work.environment.trainjob, f"{place}{REQUEST}", work, place)
    else:
        _torchrun(f"{place}{REQUEST}", work, place)
    waited = time.monotonic() - start
    try:
        left = json.loads(work.store.read(place + RESULT))
        result, seconds = left["result"], float(left["seconds"])
    except StorageError:
        raise LaunchError(f"the processes of {task} ended without a result; see their log") from None
    except (KeyError, TypeError, ValueError):
        raise LaunchError(f"{work.store.uri}/{place}{RESULT} is no result; remove it and start again") from None
    for name, folder in outputs.items() if afar else ():
        fetch_folder(work.store, request.outputs[name], folder)
    work.spent.append(seconds - waited)  # the ranks' own time counts, not the wait for them, a queue's for example
    return result


def _torchrun(key: str, work: Work, place: str) -> None:
    count, environment = processes(work.environment), work.environment
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
        f"--max-restarts={RESTARTS}", "-m", "tenfold.worker", key,
    ]  # fmt: skip
    threads = str(max(1, environment.threads // count))
    variables = {
        **os.environ, **allocator(), "TENFOLD_RUN_ID": environment.run_id, "TENFOLD_STORE": environment.store,
        "TENFOLD_OWNER_PID": str(os.getpid()), "TENFOLD_THREADS": threads, "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    work.reporter.note(f"trains with {count} processes")
    with tempfile.TemporaryDirectory() as folder:
        reason = Path(folder) / "reason.json"
        process = subprocess.Popen(command, env={**variables, REASON: str(reason)})
        with _passed_on(process) as told:
            status = _ended(process, work, place)
        last: dict[str, Any] | None = None
        with suppress(OSError, ValueError):  # there is none, or its writer was killed
            last = json.loads(reason.read_text())
    if work.store.exists(place + FAILURE):
        raise _failure(work, place)
    if status == 0:
        return
    if told.is_set():
        raise InterruptedTrainingError("told to end; a checkpoint holds what was done, and the same again goes on")
    if last is not None:
        raise LaunchError(last["message"], again=last["again"])
    raise LaunchError(
        f"the {count} processes of {work.stage} ended with status {status}, {RESTARTS} new starts included; "
        "their log tells why, and the same again goes on from the last checkpoint",
        again=True,
    )


def _ended(process: subprocess.Popen[bytes], work: Work, place: str) -> int:
    """Wait for torchrun, and return its status; where a rank failed, those that wait for it are ended."""
    end = math.inf
    while True:
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() > end:
            process.terminate()
            return process.wait()
        if end == math.inf:
            with suppress(StorageError):
                if work.store.exists(place + FAILURE):
                    end = time.monotonic() + _GRACE


def _failure(work: Work, place: str) -> LaunchError:
    """Return what a rank left as the reason why it ended."""
    try:
        record = json.loads(work.store.read(place + FAILURE))
        return LaunchError(str(record["message"]), record=record)
    except (KeyError, TypeError, ValueError):
        told = f"{work.store.uri}/{place}{FAILURE} cannot be read; see its log"
        return LaunchError(f"a process of {work.stage} failed, and {told}")


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Pass SIGTERM on to the process; give an event that says that it came."""
    told = threading.Event()

    def end(*_: object) -> None:
        told.set()
        process.terminate()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _trainjob(spec: str, key: str, work: Work, place: str) -> None:
    """Run the request as a TrainJob; torchrun takes nodes, ranks and their meeting point from the pods' variables.

    Pods are started again as a whole: a node's own torchrun would count its starts by itself, and ranks of different
    counts never meet.
    """
    command = ["python3", "-m", "torch.distributed.run", "--max-restarts=0", "-m", "tenfold.worker", key]
    environment, job = work.environment, TrainJobSpec.parse(spec)
    told = {
        "TENFOLD_GPUS": str(job.gpus_per_node or ""),  # a pod that gets none would train on its CPUs
        "MLFLOW_EXPERIMENT_ID": environment.experiment_id, "MLFLOW_RUN_ID": environment.mlflow_run,
    }  # fmt: skip
    variables = {**allocator(), "TENFOLD_RUN_ID": environment.run_id, **{k: v for k, v in told.items() if v}}
    try:
        run_trainjob(
            job, work.stage, environment.run_id, command, variables, work.reporter,
            left=lambda: work.store.exists(place + RESULT),
        )  # fmt: skip
    except TrainJobError:
        if work.store.exists(place + FAILURE):  # which says more than the job's condition
            raise _failure(work, place) from None
        raise
