"""The exit task: whatever became of a run, MLflow, the report and the cluster say so, and nothing is left running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kubernetes import FakeKubernetes, serve
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.components.finish.stage import run
from tenfold.environment import Environment
from tenfold.errors import ConfigError, DataError, TenfoldError
from tenfold.progress import Reporter
from tenfold.retry import leave
from tenfold.storage import open_store
from tenfold.tracking import parent_run, task_run
from tenfold.trainjob import TrainJobSpec, run_trainjob
from tenfold.trainjob.spec import job_name

SPEC = TrainJobSpec(image="registry/tenfold-gpu@sha256:" + "a" * 64, nodes=1, gpus_per_node=1, deadline_seconds=3600)


@pytest.fixture
def environment(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("TENFOLD_RUN_ID", f"run-{tmp_path.name}")
    return Environment.read()


@pytest.fixture
def end(tmp_path: Path) -> Callable[..., str]:
    """Return what runs the exit task and returns the page that it wrote."""

    def finish(*, succeeded: bool) -> str:
        run(succeeded, tmp_path / "report", Environment.read(), Reporter("finish", tmp_path / "events.jsonl"))
        return (tmp_path / "report").read_text()

    return finish


def status_of(environment: Environment, task: str) -> str:
    client = MlflowClient(environment.tracking_uri)
    experiment = client.get_experiment_by_name(environment.experiment)
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`tenfold.task` = '{task}'")
    return str(found.info.status)


def test_a_run_that_failed_is_closed_and_its_page_names_the_task_and_its_error(
    environment: Environment, end: Callable[..., str]
) -> None:
    parent_run(environment, "my run")
    task_run(environment, "preflight").finish("FINISHED")
    pretrain = task_run(environment, "pretrain")
    pretrain.tags({"tenfold.error": "the loss is not finite at step 3 <script>"})
    page = end(succeeded=False)
    assert status_of(environment, "pipeline") == status_of(environment, "pretrain") == "FAILED"
    assert status_of(environment, "preflight") == "FINISHED"
    assert "the loss is not finite at step 3 &lt;script&gt;" in page
    assert environment.run_id in page


def test_a_run_that_failed_before_mlflow_was_found_has_a_page_too(end: Callable[..., str]) -> None:
    assert "did not come to its end" in end(succeeded=False)


def test_a_run_that_succeeded_is_finished_and_keeps_the_report_that_promotion_wrote(
    environment: Environment, end: Callable[..., str]
) -> None:
    parent_run(environment, "my run")
    open_store(environment.store).write(f"runs/{environment.run_id}/report.html", b"<html>the ladder</html>")
    assert end(succeeded=True) == "<html>the ladder</html>"
    assert status_of(environment, "pipeline") == "FINISHED"


def test_where_mlflow_is_away_the_page_cannot_be_made_and_the_task_fails_by_one_message(
    end: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # else as patient as any test of this process was
    with pytest.raises(TenfoldError, match="MLFLOW_TRACKING_URI"):
        end(succeeded=False)


def test_the_report_of_a_run_that_was_cut_off_is_made_on_demand(environment: Environment, home: Path) -> None:
    parent_run(environment)
    task_run(environment, "pretrain").tags({"tenfold.error": "told to end"})
    told = CliRunner().invoke(app, ["report", environment.run_id])
    assert told.exit_code == 0, told.output
    page = Path(told.output.strip())
    assert page == home / "runs" / environment.run_id / "unfinished.html"
    assert "told to end" in page.read_text()
    store = open_store(environment.store)
    assert not store.exists(f"runs/{environment.run_id}/report.html"), "who only looks writes nothing there"
    store.write(f"runs/{environment.run_id}/report.html", b"<html>the ladder</html>")
    report = Path(CliRunner().invoke(app, ["report", environment.run_id]).output.strip())
    assert report.read_text() == "<html>the ladder</html>", "what the run came to takes the place of what it stood at"


def test_the_page_of_a_run_at_work_gives_way_to_its_report(environment: Environment) -> None:
    parent_run(environment)
    CliRunner().invoke(app, ["report", environment.run_id])
    open_store(environment.store).write(f"runs/{environment.run_id}/report.html", b"<html>the ladder</html>")
    told = CliRunner().invoke(app, ["report", environment.run_id])
    assert Path(told.output.strip()).read_text() == "<html>the ladder</html>"


def test_a_store_that_may_only_be_read_is_enough_for_the_page(
    environment: Environment, end: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent_run(environment)
    task_run(environment, "pretrain").tags({"tenfold.error": "told to end"})
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / "runs").write_text("no folder, so that nothing can be written below")
    monkeypatch.setenv("TENFOLD_STORE", (tmp_path / "sealed").as_uri())
    assert "told to end" in end(succeeded=False)
    told = CliRunner().invoke(app, ["report", environment.run_id])
    assert told.exit_code == 0, told.exception


def test_a_run_that_preflight_refused_says_why_on_its_page_and_on_demand(
    environment: Environment, end: Callable[..., str]
) -> None:
    leave(environment, "preflight", ConfigError("there is no class b"))
    assert "there is no class b" in end(succeeded=False)
    told = CliRunner().invoke(app, ["report", environment.run_id])
    assert "there is no class b" in Path(told.output.strip()).read_text()


@pytest.mark.parametrize("run_id", ["/etc/x", "../other", "*", "a**b", "o'brien", "", "größe", "a b", "a\n"])
def test_what_is_no_id_of_a_run_is_refused(
    run_id: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = CliRunner().invoke(app, ["report", "--", run_id])
    assert isinstance(told.exception, ConfigError), told.exception
    if run_id:  # else one is made
        monkeypatch.setenv("TENFOLD_RUN_ID", run_id)
        with pytest.raises(ConfigError, match="TENFOLD_RUN_ID is"):
            Environment.read()


def test_the_report_of_a_run_that_nobody_knows_is_refused(environment: Environment) -> None:
    told = CliRunner().invoke(app, ["report", "never-was"])
    assert isinstance(told.exception, DataError)
    assert "knows a run never-was" in str(told.exception)


# --- left-over TrainJobs -------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    for made in serve():
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setenv("TENFOLD_TRAINJOB", SPEC.to_json())
        yield made


def test_jobs_that_the_run_left_are_deleted_and_those_of_other_runs_are_not(
    environment: Environment, cluster: FakeKubernetes, end: Callable[..., str], tmp_path: Path
) -> None:
    for run_id in (environment.run_id, "another"):
        run_trainjob(
            SPEC, "pretrain", run_id, ["python3"], {}, Reporter("pretrain", tmp_path / "log"), poll_seconds=0.01
        )
    cluster.deletion_reads = 0
    parent_run(environment)
    end(succeeded=False)
    assert list(cluster.jobs) == [job_name("pretrain", "another")]


def test_without_the_right_to_delete_jobs_the_rest_is_done_all_the_same(
    environment: Environment, cluster: FakeKubernetes, end: Callable[..., str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    parent_run(environment)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(TenfoldError, match="no Kubernetes cluster"):
        end(succeeded=False)
    assert status_of(environment, "pipeline") == "FAILED"
    assert "did not come to its end" in (tmp_path / "report").read_text()
