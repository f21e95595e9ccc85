"""Runs that are on a cluster: which there are, and how one is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from tenfold.errors import TenfoldError
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.upload import PIPELINES, find_all
from tenfold.pipelines.watch import ENDED
from tenfold.progress import count
from tenfold.trainjob import reap
from tenfold.trainjob.cluster import address


def known_pipelines(connection: Connection) -> dict[str, str]:
    """Return the names of tenfold's uploaded pipelines by their ids."""
    return {found: each.name for each in PIPELINES.values() for found in find_all(connection, each.name)}


def list_runs(connection: Connection, pipelines: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
    """Return the runs of some pipelines, the newest first.

    Args:
        connection: to the installation.
        pipelines: names by id.
        limit: at most so many.

    Returns:
        For each its ``id``, ``name``, ``pipeline``, ``state``, ``created``, ``seconds`` and ``link``; seconds are until
        now where it has not ended, and None where it has not started.
    """
    rows: list[dict[str, Any]] = []
    for run in _runs(connection) if pipelines else ():
        if len(rows) == limit:
            break
        reference = run.pipeline_version_reference
        if reference is None or reference.pipeline_id not in pipelines:
            continue
        rows.append(
            {
                "id": run.run_id, "name": run.display_name, "pipeline": pipelines[reference.pipeline_id],
                "state": run.state, "created": run.created_at.isoformat() if run.created_at else None,
                "seconds": _seconds(run), "link": connection.link("runs", run.run_id),
            }
        )  # fmt: skip
    return rows


def stop(connection: Connection, run_id: str, namespace: str, tell: Callable[[str], None]) -> None:
    """Stop a run, and delete the TrainJobs that it left.

    Args:
        connection: to the installation.
        run_id: of the run; one that has ended is looked after for its TrainJobs alone.
        namespace: of the TrainJobs, which are found by their label through the Kubernetes API: in the connection's
            context of the kubeconfig, else where :func:`tenfold.trainjob.cluster.connection` leads.
        tell: is given a line for what was done.

    Raises:
        KubeflowError: there is no such run; or the API refused or is away.
    """
    group = connection.client.runs
    missing = f"{connection.where} has no run {run_id}; `tenfold list` shows those that there are"
    run = connection.call("look at the run", group.run_service_get_run, run_id=run_id, missing=missing)
    if run.state in ENDED:
        tell(f"run {run_id} has ended already: {run.state.lower()}")
    else:
        connection.call(
            "stop the run", group.run_service_terminate_run, run_id=run_id, missing=missing, changes=True
        )  # fmt: skip
        tell(f"run {run_id} is being stopped")
    where = f"the namespace {namespace}"
    try:
        where += f" of {address(connection.kube_context)}"  # the run's address may be another cluster's
        names = reap(run_id, namespace, connection.kube_context)
    except TenfoldError as error:
        tell(f"its TrainJobs in {where} were not looked at, those that are left end at their deadline ({error})")
        return
    tell(f"deleted {count(len(names), 'TrainJob')} in {where}{': ' if names else ''}{', '.join(names)}")


def _runs(connection: Connection) -> Iterator[Any]:
    where: dict[str, Any] = {"namespace": connection.namespace} if connection.namespace else {}
    token: str | None = ""
    while token is not None:
        page = connection.call(
            "list the runs", connection.client.runs.run_service_list_runs, page_size=100, page_token=token,
            sort_by="created_at desc", **where, missing=f"there is no namespace {connection.namespace}",
        )  # fmt: skip
        yield from page.runs or []
        token = page.next_page_token or None


def _seconds(run: Any) -> float | None:
    if run.created_at is None:
        return None
    finished = run.finished_at
    ended = finished if finished is not None and finished.year > 1970 else datetime.now(UTC)
    return max(0.0, float((ended - run.created_at).total_seconds()))
