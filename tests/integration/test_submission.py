"""Upload, submit, schedule, list and stop against a small API server: what is sent, and what is said."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake_kfp import NAMESPACE, TOKEN, FakeKubeflow, serve

from tenfold import __version__
from tenfold.environment import Environment
from tenfold.errors import AGAIN, ConfigError, DataError
from tenfold.pipelines.compile import compile_pipeline
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.runs import known_pipelines, list_runs, stop
from tenfold.pipelines.schedule import change, cron, interval, schedule
from tenfold.pipelines.semi_supervised import Images
from tenfold.pipelines.submit import submit
from tenfold.pipelines.upload import PIPELINES, upload
from tenfold.pipelines.watch import RunFailedError, wait
from tenfold.retry import leave

TENFOLD = str(Path(sys.executable).parent / "tenfold")
IMAGES = Images("registry/cpu@sha256:" + "a" * 64, "registry/gpu@sha256:" + "b" * 64)
NAME = "tenfold-semi-supervised"
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubeflow]:
    for name in [name for name in os.environ if name.startswith(("KF_PIPELINES_", "KFP_", "KUBE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's own settings and the kubeconfig are looked for there
    for made in serve():
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", made.address)
        monkeypatch.setenv("KFP_EXISTING_TOKEN", TOKEN)
        yield made


@pytest.fixture
def call(home: Path) -> Call:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        surroundings = {**os.environ, "COLUMNS": "200", **environment}
        done = subprocess.run(
            [TENFOLD, *arguments], env=surroundings, capture_output=True, text=True, timeout=120, check=False
        )
        assert "Traceback" not in done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(path, IMAGES)
    return path


# --- upload ------------------------------------------------------------------------------------------------


def test_upload_compiles_makes_the_pipeline_and_sends_a_version_named_by_its_digest(
    fake: FakeKubeflow, call: Call, compiled: Path
) -> None:
    done = call("upload", "--cpu-image", IMAGES.cpu, "--gpu-image", IMAGES.gpu)
    assert done.returncode == 0, done.stderr
    version = f"{__version__}-{hashlib.sha256(compiled.read_bytes()).hexdigest()[:12]}"
    assert done.stdout == f"{NAME} {version}: uploaded\n"
    ((pipeline_id, held),) = fake.versions.items()
    assert f"{fake.address}/#/pipelines/details/{pipeline_id}/version/{held[0]['pipeline_version_id']}" in done.stderr
    (made,) = fake.bodies("pipeline_service_create_pipeline")
    assert (made["body"]["display_name"], made["body"]["name"]) == (NAME, NAME)
    assert "namespace" not in made["body"]
    (sent,) = fake.bodies("upload_pipeline_version")
    assert sent["query"] == {"name": version, "pipelineid": pipeline_id, "description": f"tenfold {__version__}"}
    assert sent["body"]["content"] == compiled.read_bytes()


def test_the_same_bytes_are_one_version_and_others_a_new_one(
    fake: FakeKubeflow, compiled: Path, tmp_path: Path
) -> None:
    connection = Connection()
    first, again = upload(connection, compiled), upload(connection, compiled)
    assert (first.fresh, again.fresh, again.version, again.link) == (True, False, first.version, first.link)
    other = tmp_path / "other.yaml"
    compile_pipeline(other, Images(IMAGES.cpu, "registry/gpu@sha256:" + "c" * 64))
    assert upload(connection, other).version != first.version
    assert (len(fake.pipelines), fake.count("upload_pipeline_version")) == (1, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "a placeholder that no registry holds: give --cpu-image and --gpu-image"),
        (["--cpu-image", "registry/cpu:1", "--gpu-image", IMAGES.gpu], "registry/cpu:1: not named by digest"),
        (["--pipeline", "semi-supervized"], "did you mean 'semi-supervised'?"),
    ],
)
def test_what_no_cluster_should_run_is_refused_before_anything_is_sent(
    fake: FakeKubeflow, call: Call, options: list[str], said: str
) -> None:
    done = call("upload", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert fake.requests == []


def test_tags_are_taken_when_asked_for_and_a_trainjobs_image_counts_too(
    fake: FakeKubeflow, compiled: Path, tmp_path: Path
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
def test_a_file_that_is_none_of_the_pipelines_is_refused(fake: FakeKubeflow, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"is no compiled pipeline|not tenfold's"):
        upload(Connection(), path)
    with pytest.raises(ConfigError, match="No such file"):
        upload(Connection(), tmp_path / "absent.yaml")


def test_an_installation_of_many_users_wants_a_namespace_and_gets_it_in_every_call(
    fake: FakeKubeflow, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.multi_user = True
    with pytest.raises(ConfigError, match="for many users: give --namespace, or set KFP_NAMESPACE"):
        Connection()
    upload(Connection(NAMESPACE), compiled)
    (made,) = fake.bodies("pipeline_service_create_pipeline")
    assert made["body"]["namespace"] == NAMESPACE


# --- submit ------------------------------------------------------------------------------------------------

TASKS = {"root-driver": "SUCCEEDED", "executor": "RUNNING"}  # which KFP lists beside the pipeline's own


@pytest.fixture
def uploaded(fake: FakeKubeflow, compiled: Path) -> str:
    return upload(Connection(), compiled).version


def test_submit_sends_preset_and_overrides_to_the_newest_version_and_tells_of_each_task(
    fake: FakeKubeflow, call: Call, compiled: Path, uploaded: str, tmp_path: Path
) -> None:
    newer = tmp_path / "newer.yaml"
    compile_pipeline(newer, Images(IMAGES.cpu, "registry/gpu@sha256:" + "c" * 64))
    newest = upload(Connection(), newer).version
    fake.lives = [[
        ("PENDING", {}), ("RUNNING", {**TASKS, "preflight": "RUNNING"}),
        ("RUNNING", {"preflight": "SUCCEEDED", "pretrain": "RUNNING", "executor": "SUCCEEDED"}),
        ("SUCCEEDED", {"pretrain": "SUCCEEDED", "finish": "SUCCEEDED"}),
    ]]  # fmt: skip
    done = call("submit", "--preset", "images", "--set", "data.source=s3://bucket/images", "--set", "seed=3",
                "--name", "nightly", "--experiment", "cells", "--service-account", "runner",
                "--poll-seconds", "0.05")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ((run_id, run),) = fake.runs.items()
    first, link, *told = done.stdout.splitlines()
    assert first == f"run {run_id} of version {newest}"
    assert link == f"{fake.address}/#/runs/details/{run_id}"
    assert [line[9:] for line in told] == [
        "preflight: started", "preflight: done in 0:10", "pretrain: started", "pretrain: done in 0:30",
        "finish: done in 0:10", "the run succeeded",
    ]  # fmt: skip
    ((pipeline_id, versions),) = fake.versions.items()
    (experiment,) = fake.experiments.values()
    assert experiment["display_name"] == "cells"
    assert fake.bodies("run_service_create_run")[0]["body"] == {
        "display_name": "nightly", "experiment_id": experiment["experiment_id"], "service_account": "runner",
        "pipeline_version_reference": {
            "pipeline_id": pipeline_id, "pipeline_version_id": versions[-1]["pipeline_version_id"]
        },
        "runtime_config": {
            "parameters": {"preset": "images", "overrides": "data:\n  source: s3://bucket/images\nseed: 3\n"}
        },
    }  # fmt: skip
    assert run["state"] == "SUCCEEDED"


def test_a_failed_run_names_its_tasks_and_their_errors(fake: FakeKubeflow, call: Call, uploaded: str) -> None:
    fake.lives = [[("RUNNING", {"preflight": "FAILED: no bucket s3://key:hidden@b", "shard": "RUNNING"}),
                   ("FAILED", {"shard": "FAILED"})]]  # fmt: skip
    done = call("submit", "--poll-seconds", "0.05", "--version", uploaded)
    assert done.returncode == 2
    (run_id,) = fake.runs
    assert f"run {run_id} failed; {fake.address}/#/runs/details/{run_id}" in done.stderr
    assert "\n  preflight: no bucket s3://***@b\n  shard: the API gives no reason" in done.stderr
    assert "preflight: failed: no bucket s3://***@b" in done.stdout
    assert "shard: started" in done.stdout


def test_a_tasks_own_error_comes_from_the_store_where_it_can_be_read(
    fake: FakeKubeflow, uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_STORE", (tmp_path / "store").as_uri())
    fake.lives = [[("FAILED", {"list-images": "FAILED: main: Error (exit code 1)"})]]
    connection = Connection()
    run = submit(connection, NAME, {})
    environment = replace(Environment.read(), run_id=run.run_id)
    leave(environment, "list_images", DataError("there is no bucket"))
    with pytest.raises(RunFailedError, match=r"list-images: there is no bucket$"):
        wait(connection, run, lambda text: None, poll_seconds=0.01)


def test_a_run_that_somebody_stops_or_that_fails_as_a_whole_is_told(fake: FakeKubeflow, uploaded: str) -> None:
    connection = Connection()
    fake.lives = [[("CANCELED", {})], [("FAILED: quota exceeded", {})], [("SKIPPED", {})]]
    for said in ("was stopped", "failed; .*\n  quota exceeded", "was skipped"):
        with pytest.raises(RunFailedError, match=f"(?s)run [0-9a-f-]+ {said}"):
            wait(connection, submit(connection, NAME, {}), lambda text: None, poll_seconds=0.01)


def test_no_wait_returns_when_the_run_is_made(fake: FakeKubeflow, call: Call, uploaded: str) -> None:
    done = call("submit", "--no-wait", "--param", "model_name=cells")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert fake.count("run_service_get_run") == 0
    (sent,) = fake.bodies("run_service_create_run")
    assert sent["body"]["runtime_config"]["parameters"] == {"preset": "digits", "overrides": "", "model_name": "cells"}
    assert next(iter(fake.experiments.values()))["display_name"] == "tenfold"


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
    fake: FakeKubeflow, call: Call, options: list[str], said: str
) -> None:
    done = call("submit", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert fake.requests == []


def test_what_the_installation_does_not_have_is_told_with_what_it_has(fake: FakeKubeflow, compiled: Path) -> None:
    connection = Connection()
    with pytest.raises(KubeflowError, match="has no pipeline tenfold-semi-supervised; `tenfold upload` brings it"):
        submit(connection, NAME, {})
    version = upload(connection, compiled).version
    with pytest.raises(KubeflowError, match=f"no version 0.0.1-x.*its newest are {version}"):
        submit(connection, NAME, {}, version="0.0.1-x")
    with pytest.raises(ConfigError, match="no parameter tempature; did you mean 'temperature'"):
        submit(connection, NAME, {"tempature": "1"})
    assert fake.runs == {}


def test_the_environments_experiments_are_kfps(
    fake: FakeKubeflow, uploaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection()
    monkeypatch.setenv("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "default")
    submit(connection, NAME, {})
    submit(connection, NAME, {}, experiment="given")
    monkeypatch.setenv("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME", "override")
    submit(connection, NAME, {}, experiment="given")
    submit(connection, NAME, {}, experiment="given")
    assert [each["display_name"] for each in fake.experiments.values()] == ["default", "given", "override"]


def test_a_namespace_is_in_every_call_and_a_foreign_one_is_refused(fake: FakeKubeflow, compiled: Path) -> None:
    fake.multi_user = True
    connection = Connection(NAMESPACE)
    upload(connection, compiled)
    submit(connection, NAME, {})
    (experiment,) = fake.bodies("experiment_service_create_experiment")
    assert experiment["body"] == {"display_name": "tenfold", "namespace": NAMESPACE}
    foreign = Connection("others")
    with pytest.raises(KubeflowError, match="has no pipeline tenfold-semi-supervised for the namespace others"):
        submit(foreign, NAME, {})
    for held in fake.pipelines.values():
        held["namespace"] = ""  # one that all namespaces share
    submit(connection, NAME, {})
    with pytest.raises(KubeflowError, match=r"ada@example\.com may not list runs in the namespace others: .*-view"):
        submit(foreign, NAME, {})


def test_an_outage_while_waiting_is_told_once_and_waited_out(fake: FakeKubeflow, uploaded: str) -> None:
    connection = Connection(limits=(5, 0.2))
    run = submit(connection, NAME, {})
    fake.faults = [("run_service_get_run", how) for how in (503, "reset", "silent", 500)]
    told: list[str] = []
    wait(connection, run, told.append, poll_seconds=0.01)
    assert [line.split("  ")[-1][:45] for line in told] == [
        "could not look at the run: " + fake.address[:18], "Kubeflow Pipelines answers again",
        "preflight: started", "the run succeeded",
    ]  # fmt: skip


@pytest.mark.parametrize(("how", "status"), [(503, AGAIN), (401, 2), (403, 2)])
def test_an_api_that_stays_away_or_lets_nobody_in_ends_the_waiting_not_the_run(
    fake: FakeKubeflow, uploaded: str, how: int, status: int
) -> None:
    connection = Connection()
    run = submit(connection, NAME, {})
    fake.faults = [("run_service_get_run", how)] * 50
    with pytest.raises(KubeflowError, match=f"The run {run.run_id} goes on by itself: `tenfold list`") as caught:
        wait(connection, run, lambda text: None, poll_seconds=0.01, patience_seconds=0.05)
    assert caught.value.exit_code == status


def test_a_version_whose_file_the_api_keeps_to_itself_is_run_all_the_same(fake: FakeKubeflow, uploaded: str) -> None:
    for versions in fake.versions.values():
        del versions[0]["pipeline_spec"]
    connection = Connection()
    told: list[str] = []
    wait(connection, submit(connection, NAME, {"seed": "1"}), told.append, poll_seconds=0.01)
    assert [line[9:] for line in told] == ["preflight: started", "the run succeeded"]


def test_a_run_that_was_deleted_ends_the_waiting(fake: FakeKubeflow, uploaded: str) -> None:
    connection = Connection()
    run = submit(connection, NAME, {})
    del fake.runs[run.run_id]
    with pytest.raises(KubeflowError, match=f"the run {run.run_id} was deleted"):
        wait(connection, run, lambda text: None, poll_seconds=0.01)


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_look_and_to_stop(
    fake: FakeKubeflow, uploaded: str, home: Path
) -> None:
    fake.lives = [[("RUNNING", {"preflight": "RUNNING"})]]
    command = [TENFOLD, "submit", "--poll-seconds", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "preflight: started" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    ((run_id, run),) = fake.runs.items()
    assert process.returncode == 130
    assert said.strip() == f"the run goes on: `tenfold list` shows it, `tenfold stop {run_id}` stops it"
    assert (run["state"], fake.count("run_service_terminate_run")) == ("RUNNING", 0)


# --- schedule ----------------------------------------------------------------------------------------------


def test_a_schedule_names_no_version_so_that_each_run_takes_the_newest(
    fake: FakeKubeflow, call: Call, uploaded: str
) -> None:
    done = call("schedule", "--cron", "0 3 * * 1", "--name", "weekly", "--experiment", "cells", "--set", "seed=3",
                "--service-account", "runner")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"schedule weekly: cron 0 0 3 * * 1, the newest version of {NAME}\n"
    (pipeline_id,) = fake.pipelines
    (experiment,) = fake.experiments
    assert fake.bodies("recurring_run_service_create_recurring_run")[0]["body"] == {
        "display_name": "weekly", "experiment_id": experiment, "service_account": "runner", "max_concurrency": "1",
        "no_catchup": True, "mode": "ENABLE", "pipeline_version_reference": {"pipeline_id": pipeline_id},
        "runtime_config": {"parameters": {"preset": "digits", "overrides": "seed: 3\n"}},
        "trigger": {"cron_schedule": {"cron": "0 0 3 * * 1"}},
    }  # fmt: skip


def test_a_name_that_exists_is_refused_unless_it_is_to_be_replaced(fake: FakeKubeflow, uploaded: str) -> None:
    connection = Connection()
    assert schedule(connection, NAME, "nightly", {}, every=86400) is False
    with pytest.raises(ConfigError, match="a schedule nightly already: give --replace"):
        schedule(connection, NAME, "nightly", {}, every=3600)
    schedule(connection, NAME, "other", {}, every=60)
    assert schedule(connection, NAME, "nightly", {"seed": "1"}, every=3600, replace=True) is True
    held = {each["display_name"]: each["trigger"]["periodic_schedule"] for each in fake.schedules.values()}
    assert held == {"other": {"interval_second": "60"}, "nightly": {"interval_second": "3600"}}
    assert fake.requests[-2:] == [
        "recurring_run_service_create_recurring_run", "recurring_run_service_delete_recurring_run"
    ], "a schedule is there all the time"  # fmt: skip


def test_a_schedule_is_paused_enabled_and_deleted_by_name(fake: FakeKubeflow, call: Call, uploaded: str) -> None:
    connection = Connection()
    schedule(connection, NAME, NAME, {}, every=86400)
    ((identity, held),) = fake.schedules.items()
    assert call("schedule", "--pause").stdout == f"schedule {NAME}: paused\n"
    assert (held["mode"], held["recurring_run_id"]) == ("DISABLE", identity)
    change(connection, NAME, NAME, "enable")
    assert held["mode"] == "ENABLE"
    with pytest.raises(KubeflowError, match=f"no schedule tenfold-semi; did you mean '{NAME}'"):
        change(connection, NAME, "tenfold-semi", "delete")
    assert call("schedule", "--delete", "--name", NAME).stdout == f"schedule {NAME}: deleted\n"
    assert fake.schedules == {}


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
    fake: FakeKubeflow, call: Call, options: list[str], said: str
) -> None:
    done = call("schedule", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert fake.requests == []


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
    fake: FakeKubeflow, call: Call, uploaded: str
) -> None:
    connection = Connection()
    fake.lives = [[("SUCCEEDED", {})], [("RUNNING", {})]]
    for number in range(120):
        run = submit(connection, NAME, {}, name=f"run {number}")
        if number < 2:
            fake.run_service_get_run(run.run_id)
    foreign = next(iter(fake.runs.values()))
    fake.runs["foreign"] = {**foreign, "run_id": "foreign", "pipeline_version_reference": {"pipeline_id": "another"}}
    done = call("list", "--limit", "130", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == [f"run {number}" for number in reversed(range(120))]
    assert set(rows[-1]) == {"id", "name", "pipeline", "state", "created", "seconds", "link"}
    assert (rows[-1]["state"], rows[-2]["state"], rows[0]["state"]) == ("SUCCEEDED", "RUNNING", "PENDING")
    assert (rows[-1]["seconds"], rows[-1]["pipeline"]) == (10, NAME)
    assert rows[-1]["link"] == f"{fake.address}/#/runs/details/{rows[-1]['id']}"
    head, first, *others = call("list", "--limit", "3").stdout.splitlines()
    assert head.split() == ["state", "created", "time", "name", "id", "link"]
    assert first.startswith("PENDING  2026-01-01 ")
    assert first.endswith(rows[0]["link"])
    assert len(others) == 2


def test_list_shows_schedules_and_says_when_there_is_nothing(fake: FakeKubeflow, call: Call, compiled: Path) -> None:
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


def test_list_in_a_namespace_shows_its_runs_of_shared_pipelines_too(fake: FakeKubeflow, compiled: Path) -> None:
    fake.multi_user = True
    connection = Connection(NAMESPACE)
    upload(connection, compiled)
    for held in fake.pipelines.values():
        held["namespace"] = ""
    submit(connection, NAME, {}, name="shared")
    fake.pipelines, shared = {}, fake.pipelines
    upload(connection, compiled)
    fake.pipelines |= shared
    submit(connection, NAME, {}, name="own")
    assert [row["name"] for row in list_runs(connection, known_pipelines(connection), 9)] == ["own", "shared"]


def test_stop_ends_the_run_and_deletes_its_trainjobs(
    fake: FakeKubeflow, call: Call, uploaded: str, tmp_path: Path
) -> None:
    fake.lives = [[("RUNNING", {})]]
    run = submit(Connection(), NAME, {})
    for kubernetes in fake_kubernetes.serve():
        for number, label in enumerate((run.run_id, "another-run")):
            body = {"metadata": {"name": f"pretrain-{number}", "labels": {"tenfold.dev/run-id": label}}}
            kubernetes.jobs[f"pretrain-{number}"] = fake_kubernetes.Job(body, ["running"])
        config = str(kubernetes.kubeconfig(tmp_path / "config"))
        done = call("stop", run.run_id, "--namespace", fake_kubernetes.NAMESPACE, KUBECONFIG=config)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"run {run.run_id} is being stopped", "deleted 1 TrainJob in the namespace team: pretrain-0"
        ]  # fmt: skip
        assert kubernetes.count("delete") == 1
    assert fake.count("run_service_terminate_run") == 1


def test_stop_without_kubernetes_says_that_trainjobs_were_not_looked_at(
    fake: FakeKubeflow, call: Call, uploaded: str
) -> None:
    fake.lives = [[("RUNNING", {})]]
    run = submit(Connection(), NAME, {})
    done = call("stop", run.run_id)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"run {run.run_id} is being stopped"
    assert second.startswith("its TrainJobs were not looked at, those that are left end at their deadline (no Kubern")
    fake.run_service_get_run(run.run_id)
    fake.run_service_get_run(run.run_id)
    told: list[str] = []
    stop(Connection(), run.run_id, "team", told.append)
    assert told[0] == f"run {run.run_id} has ended already: canceled"
    absent = call("stop", "no-such-run")
    assert absent.returncode == 2
    assert f"{fake.address} has no run no-such-run; `tenfold list` shows" in absent.stderr


# --- what goes wrong -----------------------------------------------------------------------------------------

FORBIDDEN = (
    "Failed to authorize with API: PermissionDenied: User 'ada@example.com' is not authorized with reason:  (request: "
    "&ResourceAttributes{Namespace:team,Verb:create,Group:pipelines.kubeflow.org,Version:v1beta1,Resource:pipelines,"
    "Subresource:,Name:,}): Unauthorized access"
)
PROXY = (
    'services "ml-pipeline:http" is forbidden: User "ada" cannot get resource "services/proxy" in API group "" in the '
    'namespace "kubeflow"'
)


@pytest.mark.parametrize(
    ("how", "said", "status"),
    [
        (401, r"missing or has expired \(HTTP 401.*log in again: renew KFP_EXISTING_TOKEN", 2),
        ((403, FORBIDDEN), "ada@example.com may not create pipelines in the namespace team: ask .*pipelines-edit", 2),
        ((403, PROXY), "ada may not get services/proxy in the namespace kubeflow", 2),
        (403, "ask for Kubeflow's role kubeflow-pipelines-edit", 2),
        (409, "has one of that name already", 2),
        (400, r"refused it \(HTTP 400: 400 by the test\)", 2),
        (429, "the same again may work", AGAIN),
        (500, r"failed \(HTTP 500: 500 by the test\); the same again may work", AGAIN),
        (503, r"failed \(HTTP 503.*may work", AGAIN),
        ("html", "an answer that is not Kubeflow Pipelines'", 2),
        ("text", "an answer that is not Kubeflow Pipelines'", 2),
        ("list", "an answer that is not Kubeflow Pipelines'", 2),
        ("binary", "an answer that is not Kubeflow Pipelines'", 2),
        ("empty", "an answer without an id", 2),
        ("reset", "broke the connection off", AGAIN),
        ("silent", "did not answer in time", AGAIN),
        ("login", "sends its callers elsewhere.*not logged in", 2),
    ],
)
@pytest.mark.parametrize("name", ["pipeline_service_create_pipeline", "upload_pipeline_version"])
def test_a_refusal_or_an_outage_is_one_line_with_its_cure(
    fake: FakeKubeflow, compiled: Path, name: str, how: Any, said: str, status: int
) -> None:
    fake.faults = [(name, how)]
    connection = Connection(limits=(5, 0.5))
    with pytest.raises(KubeflowError, match=said) as caught:
        upload(connection, compiled)
    assert caught.value.exit_code == status
    assert "\n" not in str(caught.value)
    assert fake.address in str(caught.value)
    assert fake.count(name) == 1, "nothing is sent twice in silence"


@pytest.mark.parametrize("how", ["html", "binary", "silent", "reset", "login", 500])
def test_an_endpoint_that_is_something_else_is_told_at_once(fake: FakeKubeflow, how: Any) -> None:
    fake.faults = [("healthz_service_get_healthz", how)]
    with pytest.raises(KubeflowError, match=f"could not connect: {fake.address}"):
        Connection(limits=(5, 0.5))
    assert fake.requests == ["healthz_service_get_healthz"]


def test_a_lost_answer_of_a_call_that_makes_something_says_that_it_may_be_made(
    fake: FakeKubeflow, compiled: Path
) -> None:
    fake.faults = [("upload_pipeline_version", "reset")]
    with pytest.raises(KubeflowError, match="whether it was done is not known"):
        upload(Connection(), compiled)


def test_an_address_with_nothing_behind_it_is_told_with_what_to_check(
    fake: FakeKubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, said, status in (
        ("http://127.0.0.1:9", r"takes no connection \(.*refused.*KF_PIPELINES_ENDPOINT.*port-forward", AGAIN),
        ("http://no-such-host.invalid", "there is no host of that name", 2),
        ("http://[::", "no address", 2),
        (fake.address.replace("http://", "https://"), "does not speak TLS", 2),
        (fake.address.removesuffix("/pipeline"), "has no such path.*ends in /pipeline", 2),
    ):
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", address)
        with pytest.raises(KubeflowError, match=said) as caught:
            Connection()
        assert caught.value.exit_code == status, address


def test_a_certificate_of_ones_own_is_taken_when_its_authority_is_given(
    fake: FakeKubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", fake.speak_tls(certificate, key))
    with pytest.raises(KubeflowError, match=r"certificate was not accepted.*--ca-file"):
        Connection(limits=(5, 5))
    assert Connection(ca_file=certificate, limits=(5, 5)).namespace == ""
    with pytest.raises(ConfigError, match="--ca-file: there is no file"):
        Connection(ca_file=tmp_path / "absent.pem")


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for loopback that signs itself, and its key."""
    made = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(made, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def test_without_an_address_and_a_cluster_the_setting_is_named(
    fake: FakeKubeflow, call: Call, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    done = call("upload", str(compiled))
    assert done.returncode == 2
    assert "set KF_PIPELINES_ENDPOINT to the address of its API" in done.stderr
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)


def test_secrets_of_the_address_and_the_environment_are_in_no_output(
    fake: FakeKubeflow, call: Call, compiled: Path
) -> None:
    address = fake.address.replace("http://", "http://ada:hidden@hidden-too@")
    secrets = {"AWS_SECRET_ACCESS_KEY": "hidden-key", "KF_PIPELINES_APP_OAUTH2_CLIENT_SECRET": "hidden-oauth"}
    done = call("upload", str(compiled), KF_PIPELINES_ENDPOINT=address, **secrets)
    assert done.returncode == 0, done.stderr
    token = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"  # the fake repeats it in its refusal
    refused = call("upload", str(compiled), KF_PIPELINES_ENDPOINT=address, KFP_EXISTING_TOKEN=token, **secrets)
    assert refused.returncode == 2
    assert "missing or has expired" in refused.stderr
    for output in (done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert "hidden" not in output
        assert token not in output


def test_without_an_address_the_kubeconfigs_cluster_is_gone_through(
    fake: FakeKubeflow, call: Call, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    monkeypatch.delenv("KFP_EXISTING_TOKEN")
    server = fake.address.removesuffix("/pipeline")
    contexts = {"right": TOKEN, "wrong": "another-token"}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "wrong",
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": name, "user": {"token": token}} for name, token in contexts.items()],
        "contexts": [{"name": name, "context": {"cluster": "fake", "user": name}} for name in contexts],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    done = call("upload", str(compiled), "--kube-context", "right")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(path.startswith("/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/") for path in fake.paths)
    refused = call("upload", str(compiled))
    assert refused.returncode == 2
    assert "another-token" not in refused.stderr
    unknown = call("upload", str(compiled), "--kube-context", "absent")
    assert unknown.returncode == 2
    assert "absent" in unknown.stderr


def test_a_token_file_is_read_anew_for_every_call(
    fake: FakeKubeflow, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("KFP_EXISTING_TOKEN")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    with pytest.raises(ConfigError, match="which cannot be read"):
        Connection()
    file.write_text(TOKEN)
    connection = Connection()
    file.write_text("an-old-token")
    with pytest.raises(KubeflowError, match="missing or has expired") as caught:
        upload(connection, compiled)
    assert "an-old-token" not in str(caught.value)
    file.write_text(TOKEN)
    assert upload(connection, compiled).fresh


def test_every_pipeline_of_the_command_line_is_named_as_it_is_compiled(tmp_path: Path) -> None:
    for word, pipeline in PIPELINES.items():
        pipeline.compile(tmp_path / f"{word}.yaml", IMAGES)
        assert yaml.safe_load((tmp_path / f"{word}.yaml").read_text().partition("---")[0])["pipelineInfo"]["name"] == (
            pipeline.name
        )
