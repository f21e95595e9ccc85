"""The same pipeline on this machine, by ``kfp.local``: each task a process, results cached by KFP.

SubprocessRunner starts ``python3`` of this environment, so the components import the installed tenfold. The
image's name carries a digest of that source: changed code is a cache miss.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from tenfold.environment import Environment, allocator
from tenfold.errors import TenfoldError
from tenfold.fingerprint import source_digest
from tenfold.owner import end_with
from tenfold.pipelines.catalogue import PIPELINES, SEMI_SUPERVISED
from tenfold.pipelines.cluster import ClusterSettings
from tenfold.pipelines.stages import Images
from tenfold.progress import Reporter
from tenfold.storage import open_store
from tenfold.tracking import close_runs, send_left


class PipelineError(TenfoldError):
    """A stage failed; the message is the stage's own."""


def local_images() -> Images:
    """Return the names that stand for the installed source (kfp.local wants 'python' in an image's name)."""
    name = f"tenfold-python:source-{source_digest()[:16]}"
    return Images(cpu=name, gpu=name)


def run_locally(
    arguments: Mapping[str, str], environment: Environment, *, cache: bool = True, pipeline: str = SEMI_SUPERVISED
) -> None:
    """Run a pipeline to its end.

    Args:
        arguments: the pipeline's parameters.
        environment: home, store, tracking address and run id; handed to every task by the environment.
        cache: False runs every stage anew.
        pipeline: which one, by its name in the catalogue.

    Raises:
        PipelineError: a stage failed.
    """
    from kfp import local

    end_with(environment.owner)  # a run that a command makes does not outlive it
    home = environment.home
    folder = home / "runs" / environment.run_id
    folder.mkdir(parents=True, exist_ok=True)
    temporary = home / "tmp" / environment.run_id
    temporary.mkdir(parents=True, exist_ok=True)
    environment = replace(environment, events=folder / "events.jsonl", owner=os.getpid())
    _close_killed(environment)
    (folder / _OWNER).write_text(json.dumps(_identity(os.getpid())))
    local.init(
        runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(home / "kfp"),
        workspace_root=str(temporary / "workspace"), raise_on_error=True, enable_caching=cache,
    )  # fmt: skip
    closed = True
    try:
        with _inherited(environment, temporary), (folder / "pipeline.log").open("a", buffering=1) as log:
            without = ClusterSettings(retries=0)  # kfp.local would wait a minute for each
            dag = PIPELINES[pipeline](local_images(), cluster=without)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                dag(**arguments)
        _send_waiting(environment)
    except BaseException as error:
        closed = False
        end_children()
        with contextlib.suppress(TenfoldError):  # the stage's own error is the one to tell
            close_runs(environment, "FAILED" if isinstance(error, Exception) else "KILLED")
            closed = True
        if isinstance(error, Exception):
            _send_waiting(environment)
        if isinstance(error, RuntimeError):
            told = failure(folder / "events.jsonl") or f"{error}; see {folder / 'pipeline.log'}"
            raise PipelineError(told) from None
        raise
    finally:
        end_children()
        shutil.rmtree(temporary, ignore_errors=True)
        if closed:  # else the next run closes it
            (folder / _OWNER).unlink(missing_ok=True)


def _send_waiting(environment: Environment) -> None:
    """Send to MLflow what this run's last tasks could not; where it is still away, the next run does."""
    warn = Reporter("tracking", environment.events).warn
    with contextlib.suppress(TenfoldError):
        send_left(environment, open_store(environment.store, patient=False), warn, run_id=environment.run_id)


#: In a run's folder while it works: which process that is.
_OWNER = "owner.json"


def _identity(number: int) -> list[float] | None:
    """Return what tells a process from a later one of the same number; None: there is no such process."""
    try:
        return [number, psutil.Process(number).create_time()]
    except psutil.NoSuchProcess:
        return None


def _close_killed(environment: Environment) -> None:
    """Close in MLflow what runs that were killed without notice left open there, and remove their temporary files."""
    for file in (environment.home / "runs").glob(f"*/{_OWNER}"):
        with contextlib.suppress(OSError, ValueError, TenfoldError):
            owner = json.loads(file.read_text())
            if owner != _identity(int(owner[0])):
                shutil.rmtree(environment.home / "tmp" / file.parent.name, ignore_errors=True)
                close_runs(replace(environment, run_id=file.parent.name), "KILLED")
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _inherited(environment: Environment, temporary: Path) -> Iterator[None]:
    values = {
        "TENFOLD_HOME": str(environment.home), "TENFOLD_STORE": environment.store,
        "TENFOLD_RUN_ID": environment.run_id, "TENFOLD_DEVICE": environment.device,
        "TENFOLD_THREADS": str(environment.threads), "TENFOLD_EVENTS": str(environment.events),
        "TENFOLD_CHECKPOINT_SECONDS": str(environment.checkpoint_seconds),
        "TENFOLD_OWNER_PID": str(environment.owner), "MLFLOW_TRACKING_URI": environment.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": environment.experiment, "TMPDIR": str(temporary),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }  # fmt: skip
    values |= allocator()
    if environment.processes:
        values["TENFOLD_PROCESSES"] = str(environment.processes)
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def failure(events: Path) -> str | None:
    """Return the message of the last stage that failed, the exit task's only if no other did; None if none did."""
    if not events.is_file():
        return None
    found = [json.loads(line) for line in events.read_text().splitlines()]
    failed = [event for event in found if event["kind"] == "failed"]
    last = next((event for event in reversed(failed) if event["stage"] != "finish"), failed[-1] if failed else None)
    return f"{last['stage']}: {last['message']}" if last else None


def end_children() -> None:
    """End every process that this one started, and theirs: a kill of the parent would leave them running."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=3)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
