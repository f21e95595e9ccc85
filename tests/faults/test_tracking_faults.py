"""An MLflow that is away, slow to answer or unwilling while stages work (FAULTS.md F26)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import Door, Server

from tenfold.augment.spec import ViewSpec
from tenfold.components.preflight.stage import Request
from tenfold.components.preflight.stage import run as preflight
from tenfold.components.promote.stage import _mlflow_run
from tenfold.config import BaselineConfig, EvalViewConfig, PromoteConfig, ResNetConfig, ViewConfig
from tenfold.data.manifest import Dataset
from tenfold.environment import Environment
from tenfold.errors import TrackingError
from tenfold.execution import execute, read_lineage
from tenfold.fingerprint import canonical_json
from tenfold.progress import Reporter
from tenfold.storage import FileStore, open_store
from tenfold.tracking import QueuedTracker, parent_run, send_left

STEPS = 8
CONFIG = canonical_json(
    BaselineConfig(steps=STEPS, batch_size=8, network=ResNetConfig(depth=10, width=0.125)).model_dump()
)
VIEWS = {
    "views": ViewSpec(backend="torchvision", image_size=16, view=ViewConfig(crop=None, flip=0)).encoded(),
    "evaluation": ViewSpec(backend="torchvision", image_size=16, evaluation=EvalViewConfig()).encoded(),
}
TRUE_PROGRESS = Reporter.progress


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_mlflow: Callable[[Path, int], subprocess.Popen[bytes]]
) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("mlflow"), start_mlflow)
    yield made
    made.stop()


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    made = Door(server.port)
    yield made
    made.shut()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, door: Door, tmp_path: Path) -> None:
    """A pipeline run of the test's own, behind the door."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a test before may have asked for more
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("TENFOLD_RUN_ID", f"run-{tmp_path.name}")


@pytest.fixture
def client(server: Server) -> MlflowClient:
    address = f"http://127.0.0.1:{server.port}"
    return MlflowClient(address, address)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[], None]]], None]:
    """Let things happen behind steps of the next training: ``at({3: door.shut})``."""

    def arrange(acts: dict[int, Callable[[], None]]) -> None:
        def progress(self: Reporter, phase: str, done: int, *rest: Any, **figures: float) -> None:
            TRUE_PROGRESS(self, phase, done, *rest, **figures)
            if phase == "training" and done in acts:
                acts.pop(done)()

        monkeypatch.setattr(Reporter, "progress", progress)

    return arrange


def train(dataset: Dataset, output: Path) -> dict[str, Any]:
    """Run the baseline as a task, to its end; returns its lineage."""
    inputs = {"dataset": dataset.uri, "encoder": None, **VIEWS}
    execute("baseline", CONFIG, inputs, {"classifier": str(output)}, room="finetune")
    return read_lineage(output)


def tracker(task: str = "task", **change: Any) -> QueuedTracker:
    environment = replace(Environment.read(), **change)
    return QueuedTracker(environment, task, open_store(environment.store), Reporter(task))


def all_nested(client: MlflowClient, task: str) -> list[Any]:
    experiments = client.search_experiments(filter_string=f"name = '{Environment.read().experiment}'")
    return list(client.search_runs([e.experiment_id for e in experiments], f"tags.`tenfold.task` = '{task}'"))


def nested(client: MlflowClient, task: str) -> Any:
    """Return the one MLflow run of the task."""
    (run,) = all_nested(client, task)
    return run


def steps(client: MlflowClient, run: Any, key: str = "loss") -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, key))


def assert_whole(client: MlflowClient, run: Any) -> None:
    """Assert that MLflow has everything of the training, once."""
    assert run.info.status == "FINISHED"
    assert run.data.params["network.depth"] == "10"
    assert run.data.tags["tenfold.fingerprint"]
    for key in ("loss", "learning_rate", "gradient_norm"):
        assert steps(client, run, key) == list(range(1, STEPS + 1)), key
    assert len(client.get_metric_history(run.info.run_id, "seconds")) == 1
    assert "classifier/model.safetensors" in [a.path for a in client.list_artifacts(run.info.run_id, "classifier")]


def waiting(home: Path) -> list[str]:
    """Return what waits for MLflow, in the store and beside it."""
    found = [path for root in (home / "store" / "tracking", home / "tracking") for path in root.rglob("*.jsonl*")]
    return sorted(path.relative_to(home).as_posix() for path in found)


# --- in the middle and at the start -------------------------------------------------------------------


def test_a_server_that_is_stopped_and_started_again_in_the_middle_of_a_training_gets_each_point_once(
    monkeypatch: pytest.MonkeyPatch, server: Server, client: MlflowClient, digits: Dataset, home: Path, tmp_path: Path,
    at: Callable[[dict[int, Callable[[], None]]], None],
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    parent_run(Environment.read())
    started: list[float] = []

    def start() -> None:
        started.append(time.time() * 1000)
        server.start()

    at({3: server.stop, 7: start})
    lineage = train(digits, tmp_path / "classifier")
    run = nested(client, "baseline")
    assert_whole(client, run)
    assert lineage["mlflow_run_id"] == run.info.run_id
    made = {point.step: point.timestamp for point in client.get_metric_history(run.info.run_id, "loss")}
    assert made[5] <= started[0], "a point has the time of its making, not of its sending"
    assert waiting(home) == []


def test_an_mlflow_that_is_away_when_the_stage_starts_gets_all_when_it_comes(
    door: Door, client: MlflowClient, digits: Dataset, home: Path, tmp_path: Path,
    at: Callable[[dict[int, Callable[[], None]]], None],
) -> None:  # fmt: skip
    parent = parent_run(Environment.read())
    door.shut()
    at({5: door.open})
    lineage = train(digits, tmp_path / "classifier")
    run = nested(client, "baseline")
    assert_whole(client, run)
    assert lineage["mlflow_run_id"] == run.info.run_id
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert waiting(home) == []


def test_an_overloaded_server_is_asked_again(door: Door, client: MlflowClient) -> None:
    told = tracker()
    assert told.run_id is not None
    door.answer = 503
    told.metrics({"loss": 1.0}, 1)
    time.sleep(7)  # until the thread has tried
    door.answer = None
    told.metrics({"loss": 0.5}, 2)
    told.finish("FINISHED")
    run = nested(client, "task")
    assert run.info.status == "FINISHED"
    assert steps(client, run) == [1, 2]


def test_requests_whose_answers_are_lost_are_sent_again_and_count_once(door: Door, client: MlflowClient) -> None:
    door.lose = {"create": 2, "log-batch": 2, "update": 1}  # of the experiment or parent run, and of the nested one
    told = tracker()
    for step in range(1, 1501):  # more than a request may take
        told.metrics({"loss": 1 / step}, step)
    told.params({f"p{number}": number for number in range(250)})
    told.tags({f"t{number}": number for number in range(250)})
    told.finish("FINISHED")
    assert not any(door.lose.values()), "the answers were lost"
    run = nested(client, "task")
    assert run.info.status == "FINISHED"
    assert steps(client, run) == list(range(1, 1501))
    assert len(run.data.params) == 250
    assert {f"t{number}" for number in range(250)} <= run.data.tags.keys()


# --- at the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("since", ["start", "middle"])
def test_what_an_absent_mlflow_did_not_get_waits_in_the_store_until_the_next_task_of_the_run_sends_it(
    monkeypatch: pytest.MonkeyPatch, door: Door, client: MlflowClient, digits: Dataset, home: Path, tmp_path: Path,
    at: Callable[[dict[int, Callable[[], None]]], None], capfd: pytest.CaptureFixture[str], since: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("TENFOLD_TRACKING_PATIENCE", "1")
    run_id = Environment.read().run_id

    def shut_when_some_has_come() -> None:
        end = time.monotonic() + 60
        while not any("tenfold.code" in run.data.tags for run in all_nested(client, "baseline")):
            assert time.monotonic() < end
            time.sleep(0.1)
        door.shut()

    parent_run(Environment.read())
    if since == "start":
        door.shut()
    else:
        at({3: shut_when_some_has_come})
    lineage = train(digits, tmp_path / "classifier")
    left = f"store/tracking/{run_id}/baseline/000001.jsonl"
    assert waiting(home) == [left]
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert "1 file or folder, the status: this waits at" in warning
    assert left in warning
    assert (lineage["mlflow_run_id"] is None) == (since == "start")
    monkeypatch.delenv("TENFOLD_TRACKING_PATIENCE")
    door.open()
    following = tracker("following")
    following.metrics({"loss": 1.0}, 1)
    following.finish("FINISHED")
    run = nested(client, "baseline")
    assert_whole(client, run)
    assert steps(client, nested(client, "following")) == [1]
    assert waiting(home) == []
    assert _mlflow_run(lineage, Environment.read()) == run.info.run_id


def test_the_next_run_s_preflight_sends_what_a_killed_sender_sent_and_did_not_remove_and_it_counts_once(
    door: Door, client: MlflowClient, home: Path
) -> None:
    parent_run(Environment.read())
    door.shut()
    told = tracker(tracking_patience=0.5)
    told.metrics({"loss": 1.0}, 1)
    told.metrics({"loss": 0.5}, 2)
    told.finish("KILLED")
    door.open()
    environment = Environment.read()

    class Killed(BaseException):
        pass

    class Mortal(FileStore):
        def delete(self, key: str) -> None:
            raise Killed

    with pytest.raises(Killed):
        send_left(environment, Mortal(home / "store"), pytest.fail)
    run = nested(client, "task")
    assert steps(client, run) == [1, 2]
    assert len(waiting(home)) == 1
    preflight(Request("digits", "", {}), replace(environment, run_id="next"))
    assert waiting(home) == []
    again = nested(client, "task")
    assert steps(client, again) == [1, 2]
    assert (again.info.status, again.info.end_time) == ("KILLED", run.info.end_time)


def test_records_for_another_mlflow_are_not_sent_to_this_one(door: Door, client: MlflowClient, home: Path) -> None:
    other = tracker(tracking_uri="http://127.0.0.1:9", tracking_patience=0.5)
    other.metrics({"loss": 1.0}, 1)
    other.finish("FINISHED")
    assert send_left(Environment.read(), FileStore(home / "store"), pytest.fail) == 0
    assert len(waiting(home)) == 1
    assert client.get_experiment_by_name(Environment.read().experiment) is None


# --- a kill -------------------------------------------------------------------------------------------

#: Trains as a task and kills itself behind the fifth step; argv: configuration, inputs, output.
_DOOMED = """
import json, os, signal, sys
from tenfold.execution import execute
from tenfold.progress import Reporter

true = Reporter.progress
def progress(self, phase, done, *rest, **figures):
    if phase == "training" and done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    true(self, phase, done, *rest, **figures)
Reporter.progress = progress
execute("baseline", sys.argv[1], json.loads(sys.argv[2]), {"classifier": sys.argv[3]}, room="finetune")
"""


def test_what_a_killed_attempt_could_not_send_is_sent_by_the_next_one_and_steps_done_twice_count_once(
    monkeypatch: pytest.MonkeyPatch, door: Door, client: MlflowClient, digits: Dataset, home: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    parent_run(Environment.read())
    door.shut()
    monkeypatch.setenv("TENFOLD_CHECKPOINT_SECONDS", "0")
    inputs = json.dumps({"dataset": digits.uri, "encoder": None, **VIEWS})
    command = [sys.executable, "-c", _DOOMED, CONFIG, inputs, str(tmp_path / "classifier")]
    killed = subprocess.run(command, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (left,) = waiting(home)
    assert left == f"tracking/{Environment.read().run_id}/baseline/000001.jsonl"
    recorded = Counter((home / left).read_text().count(f'"step": {step},') for step in range(1, 6))
    assert recorded == {1: 5}, "the steps before the kill are on disk, the last of them behind the last checkpoint"
    door.open()
    train(digits, tmp_path / "classifier")
    # that of step 4 was being written, by a thread of its own
    assert re.search("goes on from the checkpoint of step [34] of 8", capfd.readouterr().err)
    assert_whole(client, nested(client, "baseline"))
    assert waiting(home) == []


# --- refusals -----------------------------------------------------------------------------------------


def test_denied_access_ends_the_sending_not_the_stage_and_what_waits_is_sent_when_access_is_back(
    door: Door, client: MlflowClient, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = tracker(tracking_patience=10)
    assert told.run_id is not None
    door.answer = 403
    told.metrics({"loss": 1.0}, 1)
    told.finish("FINISHED")
    assert len(waiting(home)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "warning: recording to MLflow failed" in line, "it was not taken for an absence that may pass"
    assert nested(client, "task").info.status == "RUNNING"
    door.answer = None
    assert send_left(Environment.read(), FileStore(home / "store"), pytest.fail) == 1
    assert nested(client, "task").info.status == "FINISHED"
    assert steps(client, nested(client, "task")) == [1]


def test_what_mlflow_refuses_is_told_once_and_passed_over(
    door: Door, client: MlflowClient, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = tracker()
    first.params({"seed": 0})
    first.finish("FAILED")
    capfd.readouterr()
    again = tracker()
    again.metrics({"loss": 1.0}, 1)
    again.params({"seed": 1})
    again.metrics({"loss": 0.5}, 2)
    again.artifact(tmp_path / "gone.json")
    again.finish("FINISHED")
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert "Changing param values is not allowed" in warnings[0]
    assert "refused 2 records in all" in warnings[1]
    run = nested(client, "task")
    assert steps(client, run) == [1, 2]
    assert (run.data.params, run.info.status) == ({"seed": "0"}, "FINISHED")
    assert waiting(home) == []


def test_a_failing_store_of_artifacts_holds_up_neither_points_nor_the_status(
    door: Door, client: MlflowClient, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figure.png").write_bytes(b"png")
    door.answer, door.about = 500, "mlflow-artifacts"
    told = tracker()
    told.artifact(tmp_path / "figure.png")
    told.metrics({"loss": 1.0}, 1)
    told.finish("FINISHED")
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert "figure.png" in warning
    run = nested(client, "task")
    assert (run.info.status, steps(client, run)) == ("FINISHED", [1])
    assert waiting(home) == []


def test_a_run_that_is_deleted_in_mlflow_ends_in_a_warning(
    door: Door, client: MlflowClient, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = tracker()
    run_id = told.run_id
    client.delete_run(run_id)
    told.metrics({"loss": 1.0}, 1)
    told.finish("FINISHED")
    assert "must be in the 'active' state" in capfd.readouterr().err
    assert waiting(home) == []


# --- what cannot do without ---------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["away", "denied"])
def test_preflight_refuses_where_mlflow_is_away_or_denies_access(door: Door, fault: str) -> None:
    if fault == "away":
        door.shut()
    else:
        door.answer = 403
    with pytest.raises(TrackingError, match="check MLFLOW_TRACKING_URI"):
        preflight(Request("digits", "", {}), Environment.read())


def test_promotion_fails_with_one_clear_line_where_mlflow_is_away(
    door: Door, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student, encoder, evaluation = tmp_path / "student", tmp_path / "encoder", tmp_path / "evaluation"
    for folder in (student, encoder, evaluation):
        folder.mkdir()
        (folder / "lineage.json").write_text(json.dumps({"fingerprint": "f" * 64}))
    (student / "model.safetensors").write_bytes(b"weights")
    (evaluation / "evaluation.json").write_text('{"dataset": "file:///d", "served": {"made_by": null}}')
    predictions = {"test_split": "s" * 64, "view": "v", "classes": ["a"], "truth": [0], "predicted": [0]}
    (evaluation / "predictions.json").write_text(json.dumps(predictions))
    door.shut()
    inputs = {"student": student, "encoder": encoder, "evaluation": evaluation}
    outputs = {"report": str(tmp_path / "report.html"), "verdict": str(tmp_path / "verdict.md")}
    with pytest.raises(SystemExit) as ended:
        execute("promote", canonical_json(PromoteConfig().model_dump()), inputs, outputs)
    assert ended.value.code == 2
    told = capfd.readouterr().err
    assert "searching 'tenfold-student' in MLflow's registry failed" in told
    assert "Traceback" not in told
    assert len(waiting(home)) == 1, "the failure itself waits to be recorded"
