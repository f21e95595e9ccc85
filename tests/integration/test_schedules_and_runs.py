"""Schedule, list and stop against a small API server: what is sent, and what is said."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import fake_kubernetes
import pytest
import yaml
from fake_kfp import NAMESPACE, FakeKubeflow

from tenfold.errors import ConfigError
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.runs import known_pipelines, list_runs, stop
from tenfold.pipelines.schedule import change, cron, interval, schedule
from tenfold.pipelines.submit import submit
from tenfold.pipelines.upload import upload
from tenfold.trainjob.cluster import connection as to_kubernetes

NAME = "tenfold-semi-supervised"
Call = Callable[..., subprocess.CompletedProcess[str]]


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
