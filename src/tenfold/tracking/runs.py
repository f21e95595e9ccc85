"""MLflow's runs: finding, making and closing them.

Where KFP keeps runs in MLflow by itself, each task is told its run (``MLFLOW_RUN_ID``), nested in the pipeline run's:
those are adopted, and get our tags. Else they are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenfold.environment import Environment
from tenfold.tracking.client import client
from tenfold.tracking.failures import Explained
from tenfold.tracking.sender import MlflowTracker

RUN_TAG, TASK_TAG = "tenfold.run_id", "tenfold.task"
_PARENT_TAG = "mlflow.parentRunId"
#: Seconds for an answer where a person or a whole run waits for it; a server that just started may need some.
_HASTE = 15


def _experiment(mlflow: Any, environment: Environment) -> str | None:
    """Return the id of the environment's experiment, which is KFP's where KFP names one; None if there is none."""
    if environment.experiment_id is not None:
        return environment.experiment_id
    found = mlflow.get_experiment_by_name(environment.experiment)
    return None if found is None else str(found.experiment_id)


def _made_experiment(mlflow: Any, environment: Environment) -> str:
    with Explained("finding the MLflow experiment"):
        found = _experiment(mlflow, environment)
        if found is None:
            local = environment.tracking_uri.startswith("sqlite:///")
            place = (environment.home / "mlartifacts" / environment.experiment).as_uri() if local else None
            return str(mlflow.create_experiment(environment.experiment, artifact_location=place))
        return found


def _find(mlflow: Any, experiment: str, tags: Mapping[str, str]) -> str | None:
    condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs = mlflow.search_runs([experiment], condition, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def parent_run(environment: Environment, name: str | None = None, *, patient: bool = True) -> MlflowTracker:
    """Find or make the pipeline's parent run; where KFP made one, that is it.

    Args:
        environment: gives the address, the experiment, the pipeline run's id, and the task's run where KFP made it.
        name: shown in the parent run's name.
        patient: False for a check that must answer within seconds.
    """
    mlflow = client(environment, timeout=120 if patient else _HASTE)
    tags = {RUN_TAG: environment.run_id, TASK_TAG: "pipeline"}
    if environment.mlflow_run is not None:
        with Explained("finding KFP's run of the pipeline"):
            return MlflowTracker(mlflow, _tagged(mlflow, _above(mlflow, environment.mlflow_run), tags))
    experiment = _made_experiment(mlflow, environment)
    with Explained("finding the parent run"):
        found = _find(mlflow, experiment, tags)
        if found is None:
            label = f"{name or 'tenfold'} {environment.run_id}"
            found = str(mlflow.create_run(experiment, tags=tags, run_name=label).info.run_id)
        elif name:
            mlflow.set_tag(found, "mlflow.runName", f"{name} {environment.run_id}")
    return MlflowTracker(mlflow, found)


def _above(mlflow: Any, run_id: str) -> str:
    """Return the run at the top: a task of a nested pipeline or a loop lies below that one's run."""
    seen = {run_id}
    while (above := mlflow.get_run(run_id).data.tags.get(_PARENT_TAG)) is not None and above not in seen:
        seen.add(above)
        run_id = above
    return run_id


def _tagged(mlflow: Any, run_id: str, tags: Mapping[str, str]) -> str:
    """Give the run the tags that it lacks, and return its id."""
    there = mlflow.get_run(run_id).data.tags
    for key, value in tags.items():
        if there.get(key) != value:
            mlflow.set_tag(run_id, key, value)
    return run_id


def task_run(environment: Environment, task: str, *, started: int | None = None, reopen: bool = True) -> MlflowTracker:
    """Find or make the nested run of ``task``; a retry adopts the run that the first try made, and KFP's is adopted.

    Args:
        environment: gives the address, the experiment, the pipeline run's id, and the task's run where KFP made it.
        task: the task's name.
        started: when its work began, in milliseconds, for a run that must be made; now if left out.
        reopen: whether a run that is found is marked as running again.
    """
    parent = parent_run(environment)
    mlflow, tags = parent.client, {RUN_TAG: environment.run_id, TASK_TAG: task}
    with Explained("making the nested run"):
        if environment.mlflow_run is not None and environment.mlflow_run != parent.run_id:
            found: str | None = _tagged(mlflow, environment.mlflow_run, tags)
        else:
            experiment = mlflow.get_run(parent.run_id).info.experiment_id
            found = _find(mlflow, experiment, tags)
        if found is None:
            tags[_PARENT_TAG] = parent.run_id
            made = mlflow.create_run(experiment, start_time=started, tags=tags, run_name=task)
            return MlflowTracker(mlflow, str(made.info.run_id), adopted=False)
        if reopen:
            mlflow.update_run(found, status="RUNNING")
    return MlflowTracker(mlflow, found)


def nested_run(environment: Environment, run_id: str, task: str) -> str | None:
    """Return the MLflow run of ``task`` in the pipeline run ``run_id``; None if there is none."""
    mlflow = client(environment)
    with Explained("finding a nested run"):
        experiment = _experiment(mlflow, environment)
        return _find(mlflow, experiment, {RUN_TAG: run_id, TASK_TAG: task}) if experiment else None


def close_runs(environment: Environment, status: str) -> None:
    """Close what a run left open in MLflow, its parent and its tasks, as FAILED or KILLED."""
    mlflow = client(environment, timeout=_HASTE)
    with Explained("closing the run"):
        experiment = _experiment(mlflow, environment)
        if experiment is None:
            return
        condition = f"tags.`{RUN_TAG}` = '{environment.run_id}' and attributes.status = 'RUNNING'"
        for run in mlflow.search_runs([experiment], condition):
            mlflow.set_terminated(run.info.run_id, status)


@dataclass(frozen=True)
class TaskEnd:
    """What MLflow knows of a task: its name, MLflow's status, how long it took, and what it said when it failed."""

    name: str
    status: str
    seconds: float | None
    error: str


def tasks_of(environment: Environment) -> list[TaskEnd]:
    """Return the tasks of this pipeline run, in the order in which they began."""
    mlflow = client(environment)
    with Explained("reading the run's tasks"):
        experiment = _experiment(mlflow, environment)
        if experiment is None:
            return []
        condition = f"tags.`{RUN_TAG}` = '{environment.run_id}'"
        runs = mlflow.search_runs([experiment], condition, order_by=["start_time ASC"])
    ends = []
    for run in runs:
        task, tags = run.data.tags.get(TASK_TAG, ""), run.data.tags
        if task != "pipeline":
            took = None if run.info.end_time is None else (run.info.end_time - run.info.start_time) / 1000
            ends.append(TaskEnd(task, str(run.info.status), took, tags.get("tenfold.error", "")))
    return ends


def ended_tasks(environment: Environment, task: str) -> set[str]:
    """Return the run ids of the pipeline runs whose ``task`` is known to be over.

    One that MLflow does not know may have begun just now: what is recorded reaches MLflow behind the work.
    """
    mlflow = client(environment, timeout=_HASTE)
    with Explained("asking what is over"):
        experiment = _experiment(mlflow, environment)
        runs = mlflow.search_runs([experiment], f"tags.`{TASK_TAG}` = '{task}'") if experiment is not None else []
    at_work = {run.data.tags[RUN_TAG] for run in runs if run.info.status == "RUNNING"}
    return {run.data.tags[RUN_TAG] for run in runs} - at_work


def at_work(environment: Environment) -> tuple[set[str], set[str]]:
    """Return the pipeline runs that MLflow has as running, in any experiment, and the fingerprints of their tasks."""
    mlflow = client(environment)
    with Explained("asking which runs are at work"):
        experiments = [str(each.experiment_id) for each in _pages(mlflow.search_experiments)]
        running = _pages(mlflow.search_runs, experiments, "attributes.status = 'RUNNING'")
        names = {run.data.tags[RUN_TAG] for run in running if RUN_TAG in run.data.tags}
        tasks = [
            task
            for name in sorted(names)
            for task in _pages(mlflow.search_runs, experiments, f"tags.`{RUN_TAG}` = '{name}'")
        ]
    return names, {
        tags["tenfold.fingerprint"] for tags in (t.data.tags for t in tasks) if "tenfold.fingerprint" in tags
    }


def _pages(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Yield everything that a search of MLflow finds."""
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def latest_tasks(environment: Environment, limit: int = 200) -> dict[str, list[dict[str, str]]]:
    """Return task → the tags of its finished runs, newest first: what ``tenfold plan`` compares with."""
    mlflow = client(environment, timeout=_HASTE)
    with Explained("reading earlier runs"):
        experiment = _experiment(mlflow, environment)
        if experiment is None:
            return {}
        runs = mlflow.search_runs(
            [experiment],
            "attributes.status = 'FINISHED'",
            max_results=limit,
            order_by=["start_time DESC"],
        )
    tasks: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        if "tenfold.fingerprint" in run.data.tags:
            tasks.setdefault(run.data.tags[TASK_TAG], []).append(dict(run.data.tags))
    return tasks
