"""Upload, submit, schedule, list and stop against a small API server: what is sent, and what is said."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import fake_kubernetes
import pytest
import yaml
from fake_kfp import NAMESPACE, FakeKubeflow

from tenfold import __version__
from tenfold.environment import Environment
from tenfold.errors import AGAIN, ConfigError, DataError
from tenfold.pipelines.compile import compile_pipeline
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.runs import known_pipelines, list_runs, stop
from tenfold.pipelines.schedule import change, cron, interval, schedule
from tenfold.pipelines.stages import Images
from tenfold.pipelines.submit import submit
from tenfold.pipelines.upload import PIPELINES, upload
from tenfold.pipelines.watch import RunFailedError, wait
from tenfold.retry import leave
from tenfold.trainjob.cluster import connection as to_kubernetes

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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "distil.temperature=1", "--set", "seed=x"], "did you mean 'distill'?"),
        (["--preset", "digit"], "did you mean 'digits'?"),
        (["--set", "data.source=images"], "data.source: 'images' is a path from this folder"),
        (["--preset", "images"], "data.source is not set"),
        (["--param", "seed"], "--param seed: it must be name=value"),
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


# --- schedule ----------------------------------------------------------------------------------------------


def test_a_schedule_names_no_version_so_that_each_run_takes_the_newest(
    kubeflow: FakeKubeflow, call: Call, uploaded: str
) -> None:
    done = call("schedule", "--cron", "0 3 * * 1", "--name", "weekly", "--experiment", "cells", "--set", "seed=3",
                "--service-account", "runner")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"schedule weekly: cron 0 0 3 * * 1, the newest version of {NAME}\n"
    (pipeline_id,) = kubeflow.pipelines
    (experiment,) = kubeflow.experiments
    assert kubeflow.bodies("recurring_run_service_create_recurring_run")[0]["body"] == {
        "display_name": "weekly", "experiment_id": experiment, "service_account": "runner", "max_concurrency": "1",
        "no_catchup": True, "mode": "ENABLE", "pipeline_version_reference": {"pipeline_id": pipeline_id},
        "runtime_config": {"parameters": {"preset": "digits", "overrides": "seed: 3\n"}},
        "trigger": {"cron_schedule": {"cron": "0 0 3 * * 1"}},
    }  # fmt: skip


def test_a_name_that_exists_is_refused_unless_it_is_to_be_replaced(kubeflow: FakeKubeflow, uploaded: str) -> None:
    connection = Connection()
    assert schedule(connection, NAME, "nightly", {}, every=86400) is False
    with pytest.raises(ConfigError, match="a schedule nightly already: give --replace"):
        schedule(connection, NAME, "nightly", {}, every=3600)
    schedule(connection, NAME, "other", {}, every=60)
    assert schedule(connection, NAME, "nightly", {"seed": "1"}, every=3600, replace=True) is True
    held = {each["display_name"]: each["trigger"]["periodic_schedule"] for each in kubeflow.schedules.values()}
    assert held == {"other": {"interval_second": "60"}, "nightly": {"interval_second": "3600"}}
    assert kubeflow.requests[-2:] == [
        "recurring_run_service_create_recurring_run", "recurring_run_service_delete_recurring_run"
    ], "a schedule is there all the time"  # fmt: skip


def test_a_schedule_is_paused_enabled_and_deleted_by_name(kubeflow: FakeKubeflow, call: Call, uploaded: str) -> None:
    connection = Connection()
    schedule(connection, NAME, NAME, {}, every=86400)
    ((identity, held),) = kubeflow.schedules.items()
    assert call("schedule", "--pause").stdout == f"schedule {NAME}: paused\n"
    assert (held["mode"], held["recurring_run_id"]) == ("DISABLE", identity)
    change(connection, NAME, NAME, "enable")
    assert held["mode"] == "ENABLE"
    with pytest.raises(KubeflowError, match=f"no schedule tenfold-semi; did you mean '{NAME}'"):
        change(connection, NAME, "tenfold-semi", "delete")
    assert call("schedule", "--delete", "--name", NAME).stdout == f"schedule {NAME}: deleted\n"
    assert kubeflow.schedules == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give one of --every, --cron, --pause, --enable and --delete"),
        (["--every", "1d", "--delete"], "give one of --every"),
        (["--delete", "--set", "seed=1"], "--delete takes a --name, and no configuration"),
        (["--every", "soon"], "--every soon: it must be a number with m, h, d or w"),
        (["--cron", "0 3 * *"], "--cron '0 3 * *': it must have the fields minute"),
        (["--every", "1d", "--set", "seed=x"], "seed:"),
    ],
)
def test_a_wrong_schedule_is_refused_before_anything_is_sent(
    kubeflow: FakeKubeflow, call: Call, options: list[str], said: str
) -> None:
    done = call("schedule", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert kubeflow.requests == []


def test_cron_gets_the_seconds_that_kubeflow_wants_first() -> None:
    assert cron("30 4 1,15 * MON-FRI") == "0 30 4 1,15 * MON-FRI"
    assert cron("0 */10 * * * ?") == "0 */10 * * * ?"
    assert cron("@daily") == "@daily"
    assert [interval(text) for text in ("90s", "5m", "6h", "1d", "2w")] == [90, 300, 21600, 86400, 1209600]
    for wrong in ("", "59s", "1.5h", "-1d", "1"):
        with pytest.raises(ConfigError):
            interval(wrong)


# --- list and stop -----------------------------------------------------------------------------------------


def test_list_shows_the_newest_runs_of_the_pipelines_first_over_all_pages(
    kubeflow: FakeKubeflow, call: Call, uploaded: str
) -> None:
    connection = Connection()
    kubeflow.lives = [[("SUCCEEDED", {})], [("RUNNING", {})]]
    for number in range(120):
        run = submit(connection, NAME, {}, name=f"run {number}")
        if number < 2:
            kubeflow.run_service_get_run(run.run_id)
    foreign = next(iter(kubeflow.runs.values()))
    kubeflow.runs["foreign"] = {
        **foreign,
        "run_id": "foreign",
        "pipeline_version_reference": {"pipeline_id": "another"},
    }
    done = call("list", "--limit", "130", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == [f"run {number}" for number in reversed(range(120))]
    assert set(rows[-1]) == {"id", "name", "pipeline", "state", "created", "seconds", "link"}
    assert (rows[-1]["state"], rows[-2]["state"], rows[0]["state"]) == ("SUCCEEDED", "RUNNING", "PENDING")
    assert (rows[-1]["seconds"], rows[-1]["pipeline"]) == (10, NAME)
    assert rows[-1]["link"] == f"{kubeflow.address}/#/runs/details/{rows[-1]['id']}"
    head, first, *others = call("list", "--limit", "3").stdout.splitlines()
    assert head.split() == ["state", "created", "time", "name", "id", "link"]
    assert first.startswith("PENDING  2026-01-01 ")
    assert first.endswith(rows[0]["link"])
    assert len(others) == 2


def test_list_shows_schedules_and_says_when_there_are_none(kubeflow: FakeKubeflow, call: Call, compiled: Path) -> None:
    empty = call("list")
    assert (empty.returncode, empty.stdout) == (0, "")
    assert "no runs of tenfold's pipelines" in empty.stderr
    connection = Connection()
    upload(connection, compiled)
    schedule(connection, NAME, "daily", {}, every=86400)
    schedule(connection, NAME, "odd", {}, every=90)
    schedule(connection, NAME, "monday", {}, cron_expression="0 0 3 * * 1")
    change(connection, NAME, "odd", "disable")
    done = call("list", "--schedules")
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    assert [[cell.strip() for cell in row if cell][:3] for row in rows] == [
        ["state", "when", "name"], ["enabled", "cron 0 0 3 * * 1", "monday"], ["paused", "every 90s", "odd"],
        ["enabled", "every 1d", "daily"],
    ]  # fmt: skip


def test_list_in_a_namespace_shows_its_runs_of_shared_pipelines_too(kubeflow: FakeKubeflow, compiled: Path) -> None:
    kubeflow.multi_user = True
    connection = Connection(NAMESPACE)
    upload(connection, compiled)
    for held in kubeflow.pipelines.values():
        held["namespace"] = ""
    submit(connection, NAME, {}, name="shared")
    kubeflow.pipelines, shared = {}, kubeflow.pipelines
    upload(connection, compiled)
    kubeflow.pipelines |= shared
    submit(connection, NAME, {}, name="own")
    assert [row["name"] for row in list_runs(connection, known_pipelines(connection), 9)] == ["own", "shared"]


def test_stop_ends_the_run_and_deletes_its_trainjobs(
    kubeflow: FakeKubeflow, call: Call, uploaded: str, tmp_path: Path
) -> None:
    kubeflow.lives = [[("RUNNING", {})]]
    run = submit(Connection(), NAME, {})
    for kubernetes in fake_kubernetes.serve():
        for number, label in enumerate((run.run_id, "another-run")):
            body = {"metadata": {"name": f"pretrain-{number}", "labels": {"tenfold.dev/run-id": label}}}
            kubernetes.jobs[f"pretrain-{number}"] = fake_kubernetes.Job(body, ["running"])
        config = str(kubernetes.kubeconfig(tmp_path / "config"))
        done = call("stop", run.run_id, "--namespace", fake_kubernetes.NAMESPACE, KUBECONFIG=config)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"run {run.run_id} is being stopped",
            f"deleted 1 TrainJob in the namespace team of {kubernetes.address}: pretrain-0",
        ]
        assert kubernetes.count("delete") == 1
    assert kubeflow.count("run_service_terminate_run") == 1


def test_stop_looks_for_trainjobs_in_the_context_that_was_named_and_says_which_cluster_that_is(
    kubeflow: FakeKubeflow, call: Call, uploaded: str, tmp_path: Path
) -> None:
    run = submit(Connection(), NAME, {})
    with contextlib.ExitStack() as stack:
        made = contextlib.contextmanager(fake_kubernetes.serve)
        current, other = stack.enter_context(made()), stack.enter_context(made())
        body = {"metadata": {"name": "pretrain-0", "labels": {"tenfold.dev/run-id": run.run_id}}}
        for cluster in (current, other):
            cluster.jobs["pretrain-0"] = fake_kubernetes.Job(body, ["running"])
        path = current.kubeconfig(tmp_path / "config")
        config = yaml.safe_load(path.read_text())
        config["clusters"].append({"name": "other", "cluster": {"server": other.address}})
        context = {"cluster": "other", "user": "launcher", "namespace": "own"}
        config["contexts"].append({"name": "other", "context": context})
        path.write_text(yaml.safe_dump(config))
        options = ("--namespace", fake_kubernetes.NAMESPACE, "--kube-context")
        done = call("stop", run.run_id, *options, "other", KUBECONFIG=str(path))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == (
            f"deleted 1 TrainJob in the namespace team of {other.address}: pretrain-0"
        )
        assert (current.count("delete"), other.count("delete")) == (0, 1)
        absent = call("stop", run.run_id, *options, "none", KUBECONFIG=str(path))
        assert "were not looked at" in absent.stdout
        assert "none" in absent.stdout.splitlines()[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(path))
            assert [to_kubernetes(None, name)[1] for name in (None, "other")] == [fake_kubernetes.NAMESPACE, "own"]


def test_stop_without_kubernetes_says_that_trainjobs_were_not_looked_at(
    kubeflow: FakeKubeflow, call: Call, uploaded: str
) -> None:
    kubeflow.lives = [[("RUNNING", {})]]
    run = submit(Connection(), NAME, {})
    done = call("stop", run.run_id)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"run {run.run_id} is being stopped"
    assert second.startswith(
        "its TrainJobs in the namespace kubeflow were not looked at, those that are left end at their deadline (no Kub"
    )
    kubeflow.run_service_get_run(run.run_id)
    kubeflow.run_service_get_run(run.run_id)
    told: list[str] = []
    stop(Connection(), run.run_id, "team", told.append)
    assert told[0] == f"run {run.run_id} has ended already: canceled"
    absent = call("stop", "no-such-run")
    assert absent.returncode == 2
    assert f"{kubeflow.address} has no run no-such-run; `tenfold list` shows" in absent.stderr
