"""Upload and submit against a small API server: what is sent, and what is said."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from fake_kfp import NAMESPACE, FakeKubeflow

from tenfold import __version__
from tenfold.environment import Environment
from tenfold.errors import AGAIN, ConfigError, DataError
from tenfold.pipelines.compile import compile_pipeline
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.stages import Images
from tenfold.pipelines.submit import submit
from tenfold.pipelines.upload import PIPELINES, upload
from tenfold.pipelines.watch import RunFailedError, wait
from tenfold.retry import leave

TENFOLD = str(Path(sys.executable).parent / "tenfold")
IMAGES = Images("registry/cpu@sha256:" + "a" * 64, "registry/gpu@sha256:" + "b" * 64)
NAME = "tenfold-semi-supervised"
Call = Callable[..., subprocess.CompletedProcess[str]]


# --- upload ------------------------------------------------------------------------------------------------


def test_upload_compiles_makes_the_pipeline_and_sends_a_version_named_by_its_digest(
    kubeflow: FakeKubeflow, call: Call, compiled: Path
) -> None:
    done = call("upload", "--cpu-image", IMAGES.cpu, "--gpu-image", IMAGES.gpu)
    assert done.returncode == 0, done.stderr
    version = f"{__version__}-{hashlib.sha256(compiled.read_bytes()).hexdigest()[:12]}"
    assert done.stdout == f"{NAME} {version}: uploaded\n"
    ((pipeline_id, held),) = kubeflow.versions.items()
    assert (
        f"{kubeflow.address}/#/pipelines/details/{pipeline_id}/version/{held[0]['pipeline_version_id']}" in done.stderr
    )
    (made,) = kubeflow.bodies("pipeline_service_create_pipeline")
    assert (made["body"]["display_name"], made["body"]["name"]) == (NAME, NAME)
    assert "namespace" not in made["body"]
    (sent,) = kubeflow.bodies("upload_pipeline_version")
    assert sent["query"] == {"name": version, "pipelineid": pipeline_id, "description": f"tenfold {__version__}"}
    assert sent["body"]["content"] == compiled.read_bytes()


def test_the_same_bytes_are_one_version_and_others_a_new_one(
    kubeflow: FakeKubeflow, compiled: Path, tmp_path: Path
) -> None:
    connection = Connection()
    first, again = upload(connection, compiled), upload(connection, compiled)
    assert (first.fresh, again.fresh, again.version, again.link) == (True, False, first.version, first.link)
    other = tmp_path / "other.yaml"
    compile_pipeline(other, Images(IMAGES.cpu, "registry/gpu@sha256:" + "c" * 64))
    assert upload(connection, other).version != first.version
    assert (len(kubeflow.pipelines), kubeflow.count("upload_pipeline_version")) == (1, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "a placeholder that no registry holds: give --cpu-image and --gpu-image"),
        (["--cpu-image", "registry/cpu:1", "--gpu-image", IMAGES.gpu], "registry/cpu:1: not named by digest"),
        (["--pipeline", "semi-supervized"], "did you mean 'semi-supervised'?"),
    ],
)
def test_what_no_cluster_should_run_is_refused_before_anything_is_sent(
    kubeflow: FakeKubeflow, call: Call, options: list[str], said: str
) -> None:
    done = call("upload", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert kubeflow.requests == []


def test_tags_are_taken_when_asked_for_and_a_trainjobs_image_counts_too(
    kubeflow: FakeKubeflow, compiled: Path, tmp_path: Path
) -> None:
    tagged = tmp_path / "tagged.yaml"
    tagged.write_text(compiled.read_text().replace(IMAGES.gpu, "registry/gpu:latest"))
    with pytest.raises(ConfigError, match="registry/gpu:latest: not named by digest"):
        upload(Connection(), tagged)
    assert upload(Connection(), tagged, allow_tags=True).fresh
    spec, *platform = yaml.safe_load_all(compiled.read_text())
    spec["deploymentSpec"]["executors"]["exec-pretrain"]["container"]["env"] = [
        {"name": "TENFOLD_TRAINJOB", "value": '{"image": "registry/train:latest"}'}
    ]
    tagged.write_text(yaml.safe_dump_all([spec, *platform]))
    with pytest.raises(ConfigError, match="registry/train:latest: not named by digest"):
        upload(Connection(), tagged)


def test_a_compiled_file_takes_no_options_for_compiling_not_even_a_zero(call: Call, compiled: Path) -> None:
    done = call("upload", str(compiled), "--gpus-per-node", "0")
    assert done.returncode == 2
    assert "options for compiling go without a file" in done.stderr


@pytest.mark.parametrize("text", ["", "a: [", "pipelineInfo: {name: other}\ndeploymentSpec: {executors: {}}", "- 1"])
def test_a_file_that_is_none_of_the_pipelines_is_refused(kubeflow: FakeKubeflow, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"is no compiled pipeline|not tenfold's"):
        upload(Connection(), path)
    with pytest.raises(ConfigError, match="No such file"):
        upload(Connection(), tmp_path / "absent.yaml")


def test_an_installation_of_many_users_wants_a_namespace_and_gets_it_in_every_call(
    kubeflow: FakeKubeflow, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeflow.multi_user = True
    with pytest.raises(ConfigError, match="for many users: give --namespace, or set KFP_NAMESPACE"):
        Connection()
    upload(Connection(NAMESPACE), compiled)
    (made,) = kubeflow.bodies("pipeline_service_create_pipeline")
    assert made["body"]["namespace"] == NAMESPACE


def test_every_pipeline_of_the_command_line_is_named_as_it_is_compiled(tmp_path: Path) -> None:
    for word, pipeline in PIPELINES.items():
        pipeline.compile(tmp_path / f"{word}.yaml", IMAGES)
        assert yaml.safe_load((tmp_path / f"{word}.yaml").read_text().partition("---")[0])["pipelineInfo"]["name"] == (
            pipeline.name
        )


# --- submit ------------------------------------------------------------------------------------------------

TASKS = {"root-driver": "SUCCEEDED", "executor": "RUNNING"}  # which KFP lists beside the pipeline's own


def test_submit_sends_preset_and_overrides_to_the_newest_version_and_tells_of_each_task(
    kubeflow: FakeKubeflow, call: Call, compiled: Path, uploaded: str, tmp_path: Path
) -> None:
    newer = tmp_path / "newer.yaml"
    compile_pipeline(newer, Images(IMAGES.cpu, "registry/gpu@sha256:" + "c" * 64))
    newest = upload(Connection(), newer).version
    kubeflow.lives = [[
        ("PENDING", {}), ("RUNNING", {**TASKS, "preflight": "RUNNING"}),
        ("RUNNING", {"preflight": "SUCCEEDED", "pretrain": "RUNNING", "executor": "SUCCEEDED"}),
        ("SUCCEEDED", {"pretrain": "SUCCEEDED", "finish": "SUCCEEDED"}),
    ]]  # fmt: skip
    done = call("submit", "--preset", "images", "--set", "data.source=s3://bucket/images", "--set", "seed=3",
                "--name", "nightly", "--experiment", "cells", "--service-account", "runner",
                "--poll-seconds", "0.05")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ((run_id, run),) = kubeflow.runs.items()
    first, link, *told = done.stdout.splitlines()
    assert first == f"run {run_id} of version {newest}"
    assert link == f"{kubeflow.address}/#/runs/details/{run_id}"
    assert [line[9:] for line in told] == [
        "preflight: started", "preflight: done in 0:10", "pretrain: started", "pretrain: done in 0:30",
        "finish: done in 0:10", "the run succeeded",
    ]  # fmt: skip
    ((pipeline_id, versions),) = kubeflow.versions.items()
    (experiment,) = kubeflow.experiments.values()
    assert experiment["display_name"] == "cells"
    assert kubeflow.bodies("run_service_create_run")[0]["body"] == {
        "display_name": "nightly", "experiment_id": experiment["experiment_id"], "service_account": "runner",
        "pipeline_version_reference": {
            "pipeline_id": pipeline_id, "pipeline_version_id": versions[-1]["pipeline_version_id"]
        },
        "runtime_config": {
            "parameters": {"preset": "images", "overrides": "data:\n  source: s3://bucket/images\nseed: 3\n"}
        },
    }  # fmt: skip
    assert run["state"] == "SUCCEEDED"


def test_without_the_cache_a_run_gets_the_versions_text_with_every_task_to_be_run_anew(
    kubeflow: FakeKubeflow, call: Call, compiled: Path, uploaded: str
) -> None:
    done = call("submit", "--no-cache", "--no-wait")
    assert done.returncode == 0, done.stderr
    body = kubeflow.bodies("run_service_create_run")[0]["body"]
    assert "pipeline_version_reference" not in body
    spec, platform = yaml.safe_load_all(compiled.read_text())
    sent = body["pipeline_spec"]
    graphs = [each["dag"]["tasks"] for each in (sent["pipeline_spec"]["root"],
              *sent["pipeline_spec"]["components"].values()) if "dag" in each]  # fmt: skip
    assert sum(len(graph) for graph in graphs) > 15
    assert not [name for graph in graphs for name, task in graph.items() if task.get("cachingOptions")]
    assert sent["platform_spec"] == platform
    assert sent["pipeline_spec"]["deploymentSpec"] == spec["deploymentSpec"]


def test_a_failed_run_names_its_tasks_and_their_errors(kubeflow: FakeKubeflow, call: Call, uploaded: str) -> None:
    kubeflow.lives = [[("RUNNING", {"preflight": "FAILED: no bucket s3://key:hidden@b", "shard": "RUNNING"}),
                   ("FAILED", {"shard": "FAILED"})]]  # fmt: skip
    done = call("submit", "--poll-seconds", "0.05", "--version", uploaded)
    assert done.returncode == 2
    (run_id,) = kubeflow.runs
    assert f"run {run_id} failed; {kubeflow.address}/#/runs/details/{run_id}" in done.stderr
    assert "\n  preflight: no bucket s3://***@b\n  shard: the API gives no reason" in done.stderr
    assert "preflight: failed: no bucket s3://***@b" in done.stdout
    assert "shard: started" in done.stdout


def test_a_tasks_own_error_comes_from_the_store_where_it_can_be_read(
    kubeflow: FakeKubeflow, uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_STORE", (tmp_path / "store").as_uri())
    kubeflow.lives = [[("FAILED", {"list-images": "FAILED: main: Error (exit code 1)"})]]
    connection = Connection()
    run = submit(connection, NAME, {})
    environment = replace(Environment.read(), run_id=run.run_id)
    leave(environment, "list_images", DataError("there is no bucket"))
    with pytest.raises(RunFailedError, match=r"list-images: there is no bucket$"):
        wait(connection, run, lambda text: None, poll_seconds=0.01)


def test_a_run_that_somebody_stops_or_that_fails_as_a_whole_is_told(kubeflow: FakeKubeflow, uploaded: str) -> None:
    connection = Connection()
    kubeflow.lives = [[("CANCELED", {})], [("FAILED: quota exceeded", {})], [("SKIPPED", {})]]
    for said in ("was stopped", "failed; .*\n  quota exceeded", "was skipped"):
        with pytest.raises(RunFailedError, match=f"(?s)run [0-9a-f-]+ {said}"):
            wait(connection, submit(connection, NAME, {}), lambda text: None, poll_seconds=0.01)


def test_no_wait_returns_when_the_run_is_made(kubeflow: FakeKubeflow, call: Call, uploaded: str) -> None:
    done = call("submit", "--no-wait", "--param", "model_name=cells")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert kubeflow.count("run_service_get_run") == 0
    (sent,) = kubeflow.bodies("run_service_create_run")
    assert sent["body"]["runtime_config"]["parameters"] == {"preset": "digits", "overrides": "", "model_name": "cells"}
    assert next(iter(kubeflow.experiments.values()))["display_name"] == "tenfold"


def test_a_preset_that_lacks_what_a_field_of_the_form_brings_is_whole(
    kubeflow: FakeKubeflow, call: Call, uploaded: str
) -> None:
    done = call("submit", "--no-wait", "--preset", "images", "--param", "source=s3://bucket/images")
    assert done.returncode == 0, done.stderr
    (sent,) = kubeflow.bodies("run_service_create_run")
    assert sent["body"]["runtime_config"]["parameters"]["source"] == "s3://bucket/images"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "distil.temperature=1", "--set", "seed=x"], "did you mean 'distill'?"),
        (["--preset", "digit"], "did you mean 'digits'?"),
        (["--set", "data.source=images"], "data.source: 'images' is a path from this folder"),
        (["--preset", "images"], "data.source is not set"),
        (["--param", "seed"], "--param seed: it must be name=value"),
        (["--param", "temperature=-1"], "pretrain.temperature"),
        (["--preset", "images", "--param", "source=images"], "data.source: 'images' is a path from this folder"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_sent(
    kubeflow: FakeKubeflow, call: Call, options: list[str], said: str
) -> None:
    done = call("submit", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert kubeflow.requests == []


def test_what_the_installation_does_not_have_is_told_with_what_it_has(kubeflow: FakeKubeflow, compiled: Path) -> None:
    connection = Connection()
    with pytest.raises(KubeflowError, match="has no pipeline tenfold-semi-supervised; `tenfold upload` brings it"):
        submit(connection, NAME, {})
    version = upload(connection, compiled).version
    with pytest.raises(KubeflowError, match=f"no version 0.0.1-x.*its newest are {version}"):
        submit(connection, NAME, {}, version="0.0.1-x")
    with pytest.raises(ConfigError, match="no parameter tempature; did you mean 'temperature'"):
        submit(connection, NAME, {"tempature": "1"})
    assert kubeflow.runs == {}


def test_the_environments_experiments_are_kfps(
    kubeflow: FakeKubeflow, uploaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection()
    monkeypatch.setenv("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "default")
    submit(connection, NAME, {})
    submit(connection, NAME, {}, experiment="given")
    monkeypatch.setenv("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME", "override")
    submit(connection, NAME, {}, experiment="given")
    submit(connection, NAME, {}, experiment="given")
    assert [each["display_name"] for each in kubeflow.experiments.values()] == ["default", "given", "override"]


def test_a_namespace_is_in_every_call_and_a_foreign_one_is_refused(kubeflow: FakeKubeflow, compiled: Path) -> None:
    kubeflow.multi_user = True
    connection = Connection(NAMESPACE)
    upload(connection, compiled)
    submit(connection, NAME, {})
    (experiment,) = kubeflow.bodies("experiment_service_create_experiment")
    assert experiment["body"] == {"display_name": "tenfold", "namespace": NAMESPACE}
    foreign = Connection("others")
    with pytest.raises(KubeflowError, match="has no pipeline tenfold-semi-supervised for the namespace others"):
        submit(foreign, NAME, {})
    for held in kubeflow.pipelines.values():
        held["namespace"] = ""  # one that all namespaces share
    submit(connection, NAME, {})
    with pytest.raises(KubeflowError, match=r"ada@example\.com may not list runs in the namespace others: .*-view"):
        submit(foreign, NAME, {})


def test_an_outage_while_waiting_is_told_once_and_waited_out(kubeflow: FakeKubeflow, uploaded: str) -> None:
    connection = Connection(limits=(5, 0.2))
    run = submit(connection, NAME, {})
    kubeflow.faults = [("run_service_get_run", how) for how in (503, "reset", "silent", 500)]
    told: list[str] = []
    wait(connection, run, told.append, poll_seconds=0.01)
    assert [line.split("  ")[-1][:45] for line in told] == [
        "could not look at the run: " + kubeflow.address[:18], "Kubeflow Pipelines answers again",
        "preflight: started", "the run succeeded",
    ]  # fmt: skip


@pytest.mark.parametrize(("how", "status"), [(503, AGAIN), (401, 2), (403, 2)])
def test_an_api_that_stays_away_or_lets_nobody_in_ends_the_waiting_not_the_run(
    kubeflow: FakeKubeflow, uploaded: str, how: int, status: int
) -> None:
    connection = Connection()
    run = submit(connection, NAME, {})
    kubeflow.faults = [("run_service_get_run", how)] * 50
    with pytest.raises(KubeflowError, match=f"The run {run.run_id} goes on by itself: `tenfold list`") as caught:
        wait(connection, run, lambda text: None, poll_seconds=0.01, patience_seconds=0.05)
    assert caught.value.exit_code == status


def test_a_version_whose_file_the_api_does_not_show_is_run_all_the_same(kubeflow: FakeKubeflow, uploaded: str) -> None:
    for versions in kubeflow.versions.values():
        del versions[0]["pipeline_spec"]
    connection = Connection()
    told: list[str] = []
    wait(connection, submit(connection, NAME, {"seed": "1"}), told.append, poll_seconds=0.01)
    assert [line[9:] for line in told] == ["preflight: started", "the run succeeded"]


def test_a_run_that_was_deleted_ends_the_waiting(kubeflow: FakeKubeflow, uploaded: str) -> None:
    connection = Connection()
    run = submit(connection, NAME, {})
    del kubeflow.runs[run.run_id]
    with pytest.raises(KubeflowError, match=f"the run {run.run_id} was deleted"):
        wait(connection, run, lambda text: None, poll_seconds=0.01)


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_look_and_to_stop(
    kubeflow: FakeKubeflow, uploaded: str, home: Path
) -> None:
    kubeflow.lives = [[("RUNNING", {"preflight": "RUNNING"})]]
    command = [TENFOLD, "submit", "--poll-seconds", "0.05"]
    # who starts the tests in the background has the interrupt ignored, and that is inherited
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        assert process.stdout is not None
        while "preflight: started" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    ((run_id, run),) = kubeflow.runs.items()
    assert process.returncode == 130
    assert said.strip() == f"the run goes on: `tenfold list` shows it, `tenfold stop {run_id}` stops it"
    assert (run["state"], kubeflow.count("run_service_terminate_run")) == ("RUNNING", 0)
