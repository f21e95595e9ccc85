"""MLflow's runs: finding and making them, and sending records to one."""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.environment import Environment
from tenfold.errors import TrackingError
from tenfold.tracking.failures import DeniedError, Explained, InvalidRecordError
from tenfold.tracking.tracker import Record, Recorder, now

RUN_TAG, TASK_TAG = "tenfold.run_id", "tenfold.task"
#: Seconds between attempts at an artifact whose store fails while MLflow answers.
_ARTIFACT_PAUSES = (1.0, 4.0)
#: So many points wait at most in a tracker that nobody queues for.
_WAITING = 900


class MlflowTracker(Recorder):
    """One MLflow run; each call is sent at once, but for metrics, which are sent in batches."""

    def __init__(self, client: Any, run_id: str, *, adopted: bool = True) -> None:
        """Speak to a run.

        Args:
            client: an MlflowClient.
            run_id: of the run.
            adopted: whether the run may hold points already.
        """
        self.client, self.run_id = client, run_id
        self._waiting: list[Record] = []
        self._unsure = adopted
        self._known: dict[str, set[tuple[int, str]]] = {}

    def _record(self, op: str, **values: Any) -> None:
        self._waiting.append({"op": op, **values})
        if op != "metrics" or len(self._waiting) >= _WAITING:
            waiting, self._waiting = self._waiting, []
            for group in groups(waiting):
                self.send(group)

    def send(self, group: Sequence[Record]) -> None:
        """Send the records of one group of :func:`groups`; sending them again changes nothing.

        A server with a database keeps one row for a point of the same name, step, time and value, so a request whose
        answer was lost is repeated as it was. What a killed attempt sent and its successor computes again has another
        time: where that may be, or an answer was lost, a point whose name, step and value are there is left out.

        Raises:
            InvalidRecordError: MLflow will never take them, or the artifact's file is gone; none of them was recorded.
            DeniedError: the caller may not write.
            TrackingError: it did not work, and may when it is tried again.
        """
        first = group[0]
        if first["op"] == "artifact":
            self._send_artifact(Path(first["path"]), first["folder"])
        elif first["op"] == "finish":
            with Explained("closing the MLflow run"):
                self.client.set_terminated(self.run_id, first["status"], end_time=first["time"])
        else:
            self._send_batch(group)

    def _send_batch(self, group: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        tags: dict[str, str] = {}
        params: dict[str, str] = {}
        points = []
        with Explained("recording to MLflow"):
            for record in group:
                tags |= record.get("tags", {})
                params |= record.get("params", {})
                for key, value in record.get("metrics", {}).items():
                    if not self._has(key, record["step"], value):
                        points.append(Metric(key, value, record["time"], record["step"]))
            try:  # the client keeps to the limits of one request
                self.client.log_batch(
                    self.run_id, points, [Param(*each) for each in params.items()],
                    [RunTag(*each) for each in tags.items()],
                )  # fmt: skip
            except Exception:
                self._unsure, self._known = True, {}
                raise

    def _has(self, key: str, step: int, value: float) -> bool:
        if not self._unsure:
            return False
        if key not in self._known:
            points = self.client.get_metric_history(self.run_id, key)
            self._known[key] = {(point.step, _text(point.value)) for point in points}
        return (step, _text(value)) in self._known[key]

    def _send_artifact(self, path: Path, folder: str) -> None:
        """Send a file or folder; where MLflow answers and its store of artifacts does not, the rest goes on without."""
        if not path.exists():
            raise InvalidRecordError(f"{path} is not there any more")
        for pause in (*_ARTIFACT_PAUSES, None):
            try:
                with Explained(f"sending {path.name} to MLflow"):
                    if path.is_dir():
                        self.client.log_artifacts(self.run_id, str(path), folder or None)
                    else:
                        self.client.log_artifact(self.run_id, str(path), folder or None)
                return
            except InvalidRecordError:
                raise
            except TrackingError as error:
                with Explained("asking for the run"):
                    self.client.get_run(self.run_id)
                if pause is None or isinstance(error, DeniedError):
                    raise InvalidRecordError(str(error)) from error
                time.sleep(pause)

    def finish(self, status: str) -> None:
        """See :class:`Tracker`."""
        self._record("finish", status=status, time=now())

    def end_if_open(self, status: str) -> None:
        """Close the run as ``status`` where nothing has closed it."""
        with Explained("closing the MLflow run"):
            if self.client.get_run(self.run_id).info.status == "RUNNING":
                self.client.set_terminated(self.run_id, status)


def groups(records: Sequence[Record]) -> list[list[Record]]:
    """Divide records, in their order, into what one request can take: an artifact, an end, or a batch of the rest."""
    found: list[list[Record]] = []
    for record in records:
        alone = record["op"] in {"artifact", "finish"}
        if alone or not found or found[-1][0]["op"] in {"artifact", "finish"}:
            found.append([record])
        else:
            found[-1].append(record)
    return found


def _text(value: float) -> str:
    """Return the value as MLflow's databases keep it: infinity is the largest number."""
    return repr(max(min(value, sys.float_info.max), -sys.float_info.max))


#: How often MLflow's client repeats a request by itself, in this process.
_repeats = 0


def client(environment: Environment, *, repeats: int = 0, timeout: int = 120) -> Any:
    """Return an MlflowClient for tracking and registry.

    How patient MLflow's requests are is one setting of the process; the environment's ``MLFLOW_HTTP_REQUEST_*`` win.

    Args:
        environment: gives the address.
        repeats: how often MLflow repeats a request that failed; none where the caller tries again itself. The highest
            number that was asked for counts.
        timeout: seconds for an answer.
    """
    global _repeats
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each error that it raises
    from mlflow import environment_variables as settings
    from mlflow.tracking import MlflowClient

    _repeats = max(_repeats, repeats)
    settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = _repeats
    settings.MLFLOW_HTTP_REQUEST_TIMEOUT.default = timeout
    with Explained("opening MLflow"):
        if environment.tracking_uri.startswith("sqlite:///"):
            _make_database(Path(environment.tracking_uri.removeprefix("sqlite:///")))
        return MlflowClient(tracking_uri=environment.tracking_uri, registry_uri=environment.tracking_uri)


def _make_database(path: Path) -> None:
    """Make the database aside if it is not there: one whose tables are there in part MLflow refuses for ever."""
    from mlflow.tracking import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    uri = f"sqlite:///{aside}"
    try:
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another process was first
            path.hardlink_to(aside)
    finally:
        aside.unlink(missing_ok=True)


def _experiment(mlflow: Any, environment: Environment) -> str:
    with Explained("finding the MLflow experiment"):
        found = mlflow.get_experiment_by_name(environment.experiment)
        if found is None:
            local = environment.tracking_uri.startswith("sqlite:///")
            place = (environment.home / "mlartifacts" / environment.experiment).as_uri() if local else None
            return str(mlflow.create_experiment(environment.experiment, artifact_location=place))
        return str(found.experiment_id)


def _find(mlflow: Any, experiment: str, tags: Mapping[str, str]) -> str | None:
    condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs = mlflow.search_runs([experiment], condition, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def parent_run(environment: Environment, name: str | None = None, *, patient: bool = True) -> MlflowTracker:
    """Find or make the pipeline's parent run.

    Args:
        environment: gives the address, the experiment and the pipeline run's id.
        name: shown in the parent run's name.
        patient: False for a check that must answer within seconds.
    """
    mlflow = client(environment, timeout=120 if patient else 3)
    experiment = _experiment(mlflow, environment)
    with Explained("finding the parent run"):
        found = _find(mlflow, experiment, {RUN_TAG: environment.run_id, TASK_TAG: "pipeline"})
        if found is None:
            tags = {RUN_TAG: environment.run_id, TASK_TAG: "pipeline"}
            label = f"{name or 'tenfold'} {environment.run_id}"
            found = str(mlflow.create_run(experiment, tags=tags, run_name=label).info.run_id)
        elif name:
            mlflow.set_tag(found, "mlflow.runName", f"{name} {environment.run_id}")
    return MlflowTracker(mlflow, found)


def task_run(environment: Environment, task: str, *, started: int | None = None, reopen: bool = True) -> MlflowTracker:
    """Find or make the nested run of ``task``; a retry adopts the run that the first try made.

    Args:
        environment: gives the address, the experiment and the pipeline run's id.
        task: the task's name.
        started: when its work began, in milliseconds, for a run that must be made; now if left out.
        reopen: whether a run that is found is marked as running again.
    """
    parent = parent_run(environment)
    mlflow, tags = parent.client, {RUN_TAG: environment.run_id, TASK_TAG: task}
    with Explained("making the nested run"):
        experiment = mlflow.get_run(parent.run_id).info.experiment_id
        found = _find(mlflow, experiment, tags)
        if found is None:
            tags["mlflow.parentRunId"] = parent.run_id
            made = mlflow.create_run(experiment, start_time=started, tags=tags, run_name=task)
            return MlflowTracker(mlflow, str(made.info.run_id), adopted=False)
        if reopen:
            mlflow.update_run(found, status="RUNNING")
    return MlflowTracker(mlflow, found)


def nested_run(environment: Environment, run_id: str, task: str) -> str | None:
    """Return the MLflow run of ``task`` in the pipeline run ``run_id``; None if there is none."""
    mlflow = client(environment)
    with Explained("finding a nested run"):
        found = mlflow.get_experiment_by_name(environment.experiment)
        return _find(mlflow, found.experiment_id, {RUN_TAG: run_id, TASK_TAG: task}) if found else None


def close_runs(environment: Environment, status: str) -> None:
    """Close what a run left open in MLflow, its parent and its tasks, as FAILED or KILLED."""
    mlflow = client(environment, timeout=3)
    with Explained("closing the run"):
        found = mlflow.get_experiment_by_name(environment.experiment)
        if found is None:
            return
        condition = f"tags.`{RUN_TAG}` = '{environment.run_id}' and attributes.status = 'RUNNING'"
        for run in mlflow.search_runs([found.experiment_id], condition):
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
        found = mlflow.get_experiment_by_name(environment.experiment)
        if found is None:
            return []
        condition = f"tags.`{RUN_TAG}` = '{environment.run_id}'"
        runs = mlflow.search_runs([found.experiment_id], condition, order_by=["start_time ASC"])
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
    mlflow = client(environment, timeout=3)
    with Explained("asking what is over"):
        found = mlflow.get_experiment_by_name(environment.experiment)
        runs = mlflow.search_runs([found.experiment_id], f"tags.`{TASK_TAG}` = '{task}'") if found is not None else []
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
    mlflow = client(environment, timeout=3)
    with Explained("reading earlier runs"):
        found = mlflow.get_experiment_by_name(environment.experiment)
        if found is None:
            return {}
        runs = mlflow.search_runs(
            [found.experiment_id],
            "attributes.status = 'FINISHED'",
            max_results=limit,
            order_by=["start_time DESC"],
        )
    tasks: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        if "tenfold.fingerprint" in run.data.tags:
            tasks.setdefault(run.data.tags[TASK_TAG], []).append(dict(run.data.tags))
    return tasks
