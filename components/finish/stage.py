"""The end of a run: left-over jobs, open runs in MLflow, the report."""

from __future__ import annotations

from pathlib import Path

from tenfold.environment import Environment
from tenfold.errors import TenfoldError
from tenfold.progress import Reporter
from tenfold.progress import count as counted
from tenfold.report.unfinished import render_unfinished
from tenfold.retry import recorded
from tenfold.storage import open_store
from tenfold.tracking import TaskEnd, close_runs, parent_run, tasks_of
from tenfold.trainjob import TrainJobSpec, reap


def run(succeeded: bool, report: Path, environment: Environment, reporter: Reporter) -> None:
    """End the run; what cannot be done is told, and the rest is done all the same.

    Args:
        succeeded: whether all tasks did.
        report: file to write.
        environment: gives the run's id, the store and MLflow.
        reporter: told what was done.

    Raises:
        TenfoldError: the first of what could not be done, behind everything else.
    """
    troubles: list[TenfoldError] = []
    for act in (_reap, _close):
        try:
            act(succeeded, environment, reporter)
        except TenfoldError as error:
            troubles.append(error)
    try:
        report.write_bytes((written(environment) if succeeded else None) or unfinished(environment))
    except TenfoldError as error:
        troubles.append(error)
    for trouble in troubles[1:]:
        if type(trouble) is not type(troubles[0]):  # else MLflow is away, which is told once
            reporter.warn(str(trouble))
    if troubles:
        raise troubles[0]


def _reap(succeeded: bool, environment: Environment, reporter: Reporter) -> None:
    if environment.trainjob is None:
        return
    names = reap(environment.run_id, TrainJobSpec.parse(environment.trainjob).namespace)
    if names:
        reporter.note(f"deleted {counted(len(names), 'TrainJob')}: {', '.join(names)}")


def _close(succeeded: bool, environment: Environment, reporter: Reporter) -> None:
    if succeeded:
        parent_run(environment).finish("FINISHED")
    else:
        close_runs(environment, "FAILED")


def written(environment: Environment) -> bytes | None:
    """Return the report that promote wrote; None where there is none.

    Args:
        environment: gives the run's id and the store.

    Raises:
        TenfoldError: the store is away.
    """
    store, key = open_store(environment.store), f"runs/{environment.run_id}/report.html"
    return store.read(key) if store.exists(key) else None


def unfinished(environment: Environment) -> bytes:
    """Return a page of a run's tasks as they are now; it is kept nowhere, since a run may still go on.

    Args:
        environment: gives the run's id, the store and MLflow.

    Raises:
        TenfoldError: MLflow is away.
    """
    return render_unfinished(environment.run_id, known_tasks(environment)).encode()


def known_tasks(environment: Environment) -> list[TaskEnd]:
    """Return what is known of a run's tasks: MLflow's part, and why preflight failed before it made its run there.

    Raises:
        TenfoldError: MLflow is away.
    """
    tasks = tasks_of(environment)
    said = None if any(task.name == "preflight" for task in tasks) else recorded(environment, "preflight")
    return tasks if said is None else [TaskEnd("preflight", "FAILED", None, said), *tasks]
