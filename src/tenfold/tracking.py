"""The one place that talks to MLflow tracking.

A pipeline run has one parent MLflow run, found by its tag ``tenfold.run_id``; each task has one nested run,
found by (run id, task) and adopted again on a retry. Addresses and credentials come by the environment.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tenfold.environment import Environment
from tenfold.errors import TrackingError, redact

T = TypeVar("T")
RUN_TAG, TASK_TAG = "tenfold.run_id", "tenfold.task"
_FLUSH_SECONDS = 5.0


class Tracker(Protocol):
    """What a stage may record."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None where nothing is recorded."""

    def tags(self, tags: Mapping[str, object]) -> None:
        """Set tags."""

    def params(self, params: Mapping[str, object]) -> None:
        """Set parameters; a second call may add, never change."""

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add one point to each curve."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Attach a file or a folder."""

    def finish(self, status: str) -> None:
        """Send what is left and close the run as FINISHED or FAILED."""


class NoTracker:
    """Records nothing: for calling a stage as a plain function."""

    run_id: str | None = None

    def tags(self, tags: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""

    def params(self, params: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """See :class:`Tracker`."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`."""

    def finish(self, status: str) -> None:
        """See :class:`Tracker`."""


class MlflowTracker:
    """One MLflow run."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._points: list[Any] = []
        self._sent = time.monotonic()

    def tags(self, tags: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""
        from mlflow.entities import RunTag

        self._send(tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def params(self, params: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""
        from mlflow.entities import Param

        self._send(params=[Param(key, str(value)[:6000]) for key, value in params.items()])

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """See :class:`Tracker`; points are sent in batches."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._points += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if len(self._points) >= 900 or time.monotonic() - self._sent > _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        points, self._points = self._points, []
        self._sent = time.monotonic()
        for start in range(0, len(points), 900):
            self._send(metrics=points[start : start + 900])

    def _send(self, **batch: list[Any]) -> None:
        with _Explained("recording to MLflow"):
            self.client.log_batch(self.run_id, **batch)

    def artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`."""
        with _Explained(f"sending {path.name} to MLflow"):
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder or None)
            else:
                self.client.log_artifact(self.run_id, str(path), folder or None)

    def finish(self, status: str) -> None:
        """See :class:`Tracker`."""
        self._flush()
        with _Explained("closing the MLflow run"):
            self.client.set_terminated(self.run_id, status)


class QueuedTracker:
    """A tracker whose calls return at once; a thread opens the run and sends them in order.

    Importing MLflow and opening a run takes seconds, which pass while the stage works. A failure
    is raised by the next :meth:`finish`, or where :attr:`run_id` is asked for: what was computed by then is
    in the stage's outputs and checkpoints.
    """

    def __init__(self, open_run: Callable[[], Tracker]) -> None:
        self._open_run = open_run
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._opened = threading.Event()
        self._run_id: str | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._send, daemon=True, name="tracker")
        self._thread.start()

    def _send(self) -> None:
        try:
            tracker = _patiently(self._open_run)
            self._run_id = tracker.run_id
            self._opened.set()
            while (call := self._calls.get()) is not None:
                _patiently(partial(call, tracker))
        except Exception as error:  # raised again in the stage's own thread
            self._error = error
            self._opened.set()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    @property
    def run_id(self) -> str | None:
        """The MLflow run; waits until it is open."""
        self._opened.wait()
        self._raise()
        return self._run_id

    def tags(self, tags: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""
        self._calls.put(lambda tracker: tracker.tags(tags))

    def params(self, params: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""
        self._calls.put(lambda tracker: tracker.params(params))

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """See :class:`Tracker`."""
        self._calls.put(lambda tracker: tracker.metrics(metrics, step))

    def artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`; the file must stay as it is until :meth:`finish`."""
        self._calls.put(lambda tracker: tracker.artifact(path, folder))

    def finish(self, status: str) -> None:
        """See :class:`Tracker`; waits until everything is sent."""
        self._calls.put(lambda tracker: tracker.finish(status))
        self._calls.put(None)
        self._thread.join()
        self._raise()


def _patiently(call: Callable[[], T]) -> T:
    """Call, and call again after pauses of up to half a minute in all while MLflow refuses."""
    for pause in (1, 2, 4, 8, 16):
        try:
            return call()
        except TrackingError:
            time.sleep(pause)
    return call()


class _Explained:
    """Turns any failure of MLflow's into one clear line."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, TrackingError):
            reason = redact(str(error)).strip().split("\n")[0][:300]
            address = redact(Environment.read().tracking_uri)
            raise TrackingError(f"{self.doing} failed at {address}: {reason}; check MLFLOW_TRACKING_URI") from error


def client(environment: Environment, *, patient: bool = True) -> Any:
    """Return an MlflowClient for tracking and registry.

    Args:
        environment: gives the address.
        patient: False for checks that must answer within seconds.
    """
    if not patient:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    if environment.tracking_uri.startswith("sqlite:///"):
        Path(environment.tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    with _Explained("opening MLflow"):
        return MlflowClient(tracking_uri=environment.tracking_uri, registry_uri=environment.tracking_uri)


def _experiment(mlflow: Any, environment: Environment) -> str:
    with _Explained("finding the MLflow experiment"):
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
    """Find or make the pipeline's parent run."""
    mlflow = client(environment, patient=patient)
    experiment = _experiment(mlflow, environment)
    with _Explained("finding the parent run"):
        found = _find(mlflow, experiment, {RUN_TAG: environment.run_id, TASK_TAG: "pipeline"})
        if found is None:
            tags = {RUN_TAG: environment.run_id, TASK_TAG: "pipeline"}
            label = f"{name or 'tenfold'} {environment.run_id}"
            found = str(mlflow.create_run(experiment, tags=tags, run_name=label).info.run_id)
        elif name:
            mlflow.set_tag(found, "mlflow.runName", f"{name} {environment.run_id}")
    return MlflowTracker(mlflow, found)


def task_run(environment: Environment, task: str) -> MlflowTracker:
    """Find or make the nested run of ``task``; a retry adopts the run that the first try made."""
    parent = parent_run(environment)
    mlflow, tags = parent.client, {RUN_TAG: environment.run_id, TASK_TAG: task}
    with _Explained("making the nested run"):
        experiment = mlflow.get_run(parent.run_id).info.experiment_id
        found = _find(mlflow, experiment, tags)
        if found is None:
            tags["mlflow.parentRunId"] = parent.run_id
            found = str(mlflow.create_run(experiment, tags=tags, run_name=task).info.run_id)
        else:
            mlflow.update_run(found, status="RUNNING")
    return MlflowTracker(mlflow, found)


def close_runs(environment: Environment, status: str) -> None:
    """Close what a run left open in MLflow, its parent and its tasks, as FAILED or KILLED."""
    mlflow = client(environment, patient=False)
    with _Explained("closing the run"):
        found = mlflow.get_experiment_by_name(environment.experiment)
        if found is None:
            return
        condition = f"tags.`{RUN_TAG}` = '{environment.run_id}' and attributes.status = 'RUNNING'"
        for run in mlflow.search_runs([found.experiment_id], condition):
            mlflow.set_terminated(run.info.run_id, status)


def running_tasks(environment: Environment, task: str) -> set[str]:
    """Return the run ids of the pipeline runs whose ``task`` is at work."""
    mlflow = client(environment, patient=False)
    with _Explained("asking what is at work"):
        found = mlflow.get_experiment_by_name(environment.experiment)
        condition = f"tags.`{TASK_TAG}` = '{task}' and attributes.status = 'RUNNING'"
        runs = mlflow.search_runs([found.experiment_id], condition) if found is not None else []
        return {run.data.tags[RUN_TAG] for run in runs}


def latest_tasks(environment: Environment, limit: int = 200) -> dict[str, list[dict[str, str]]]:
    """Return task → the tags of its finished runs, newest first: what ``tenfold plan`` compares with."""
    mlflow = client(environment, patient=False)
    with _Explained("reading earlier runs"):
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
