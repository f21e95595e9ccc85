"""The end of a run: left-over jobs, open runs in MLflow, the report."""

from __future__ import annotations

from pathlib import Path

from tenfold.environment import Environment
from tenfold.errors import TenfoldError
from tenfold.progress import Reporter
from tenfold.progress import count as counted
from tenfold.report.unfinished import render_unfinished
from tenfold.storage import open_store
from tenfold.tracking import close_runs, parent_run, tasks_of
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
        page = page_of(environment, succeeded=succeeded)
        report.write_bytes(page)
        open_store(environment.store).write(_key(environment), page)
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


def page_of(environment: Environment, *, succeeded: bool = True) -> bytes:
    """Return the page that promote wrote; of a run that failed, or of which that page is gone, one of its tasks.

    Args:
        environment: gives the run's id, the store and MLflow.
        succeeded: False where the run is known to have failed.

    Raises:
        TenfoldError: the store or MLflow is away.
    """
    store = open_store(environment.store)
    if succeeded and store.exists(_key(environment)):
        return store.read(_key(environment))
    return render_unfinished(environment.run_id, tasks_of(environment)).encode()


def _key(environment: Environment) -> str:
    return f"runs/{environment.run_id}/report.html"
