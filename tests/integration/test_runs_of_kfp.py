"""Where KFP keeps runs in MLflow by itself: they are adopted, and no second one is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tenfold.environment import Environment
from tenfold.progress import Reporter
from tenfold.storage import open_store
from tenfold.tracking import QueuedTracker, close_runs, nested_run, parent_run, send_left, task_run, tasks_of


class Plugin:
    """Makes runs in MLflow as KFP's plugin does: the pipeline's, a nested pipeline's below it, a task's below that."""

    def __init__(self, address: str, name: str) -> None:
        self.client = MlflowClient(address)
        self.experiment = self.client.create_experiment(f"kfp-{name}")
        self.pipeline = self._make("pipeline of KFP", None)
        self.nested = self._make("exit-handler-1", self.pipeline)

    def _make(self, name: str, above: str | None) -> str:
        tags = {"mlflow.parentRunId": above} if above else {"kfp.pipeline_run_id": "run"}
        return str(self.client.create_run(self.experiment, tags=tags, run_name=name).info.run_id)

    def task(self, name: str) -> str:
        return self._make(name, self.nested)

    def runs(self) -> dict[str, Run]:
        return {run.info.run_id: run for run in self.client.search_runs([self.experiment])}


@pytest.fixture
def plugin(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plugin:
    made = Plugin(mlflow_server, tmp_path.name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", made.experiment)
    monkeypatch.setenv("TENFOLD_RUN_ID", f"run-{tmp_path.name}")
    return made


@pytest.fixture
def pod(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Environment]:
    """Return what makes a task's pod: its environment, in which KFP names the task's run."""

    def make(task: str) -> Environment:
        monkeypatch.setenv("MLFLOW_RUN_ID", plugin.task(task))
        return Environment.read()

    return make


def test_the_pipelines_run_and_the_tasks_are_kfps_and_get_our_tags(
    plugin: Plugin, pod: Callable[[str], Environment]
) -> None:
    environment = pod("preflight")
    assert parent_run(environment, "my run").run_id == plugin.pipeline
    assert task_run(environment, "preflight").run_id == environment.mlflow_run
    second = pod("pretrain")
    assert task_run(second, "pretrain").run_id == second.mlflow_run
    runs = plugin.runs()
    assert set(runs) == {plugin.pipeline, plugin.nested, environment.mlflow_run, second.mlflow_run}
    assert runs[plugin.pipeline].data.tags["tenfold.task"] == "pipeline"
    assert runs[plugin.pipeline].data.tags["mlflow.runName"] == "pipeline of KFP"
    assert runs[str(second.mlflow_run)].data.tags["tenfold.task"] == "pretrain"
    assert nested_run(second, second.run_id, "preflight") == environment.mlflow_run


def test_what_a_stage_records_lands_in_kfps_run(plugin: Plugin, pod: Callable[[str], Environment]) -> None:
    environment = pod("pretrain")
    tracker = QueuedTracker(environment, "pretrain", open_store(environment.store), Reporter("pretrain", None))
    tracker.metrics({"loss": 0.5}, 1)
    tracker.finish("FINISHED")
    run = plugin.runs()[str(environment.mlflow_run)]
    assert (run.data.metrics["loss"], run.info.status) == (0.5, "FINISHED")
    assert tracker.run_id == environment.mlflow_run


def test_what_waited_while_mlflow_was_away_is_sent_to_the_run_of_its_own_task(
    plugin: Plugin, pod: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr("tenfold.tracking.queued.task_run", _away)
        away.setenv("TENFOLD_TRACKING_PATIENCE", "0.2")
        environment = pod("pretrain")
        tracker = QueuedTracker(environment, "pretrain", open_store(environment.store), Reporter("pretrain", None))
        tracker.metrics({"loss": 0.5}, 1)
        tracker.finish("FINISHED")
    other = pod("finetune")
    refused: list[str] = []
    assert send_left(other, open_store(other.store), refused.append, run_id=other.run_id, task="finetune") == 1
    runs = plugin.runs()
    assert refused == []
    assert runs[str(environment.mlflow_run)].data.metrics == {"loss": 0.5}
    assert runs[str(other.mlflow_run)].data.metrics == {}
    assert len(runs) == 4


def _away(*_: object, **__: object) -> None:
    from tenfold.errors import TrackingError

    raise TrackingError("MLflow is away")


def test_the_end_of_a_run_is_told_and_closed_in_kfps_experiment(
    plugin: Plugin, pod: Callable[[str], Environment]
) -> None:
    first = pod("preflight")
    task_run(first, "preflight").finish("FINISHED")
    failing = task_run(pod("pretrain"), "pretrain")
    failing.tags({"tenfold.error": "the loss is not finite"})
    environment = pod("finish")
    parent_run(environment)
    close_runs(environment, "FAILED")
    assert [(end.name, end.status, end.error) for end in tasks_of(environment)] == [
        ("preflight", "FINISHED", ""), ("pretrain", "FAILED", "the loss is not finite"),
    ]  # fmt: skip
    assert plugin.runs()[plugin.pipeline].info.status == "FAILED"
