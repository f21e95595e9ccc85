"""TrainJobs against a small API server: what is sent, and what becomes of a launcher whatever happens to the job."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_kubernetes import NAMESPACE, TOKEN, FakeKubernetes, serve

from tenfold.errors import ConfigError, TrainJobError
from tenfold.launch import launch as launch_stage
from tenfold.progress import Reporter
from tenfold.trainjob import TrainJobSpec, reap, run_trainjob
from tenfold.trainjob.spec import job_name, manifest
from tenfold.work import Work

RUN = "0b8f2c1e-7a55-4d0c-9c3e-2f6f1f3b9a10"
IMAGE = "registry/tenfold-gpu@sha256:" + "a" * 64
COMMAND = ["python3", "-m", "tenfold.train", "--stage", "self_train"]
SPEC = TrainJobSpec(image=IMAGE, nodes=2, gpus_per_node=4, deadline_seconds=3600)
FAST = {"poll_seconds": 0.02, "patience_seconds": 20.0, "margin_seconds": 30.0}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    for made in serve():
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path / "kubeconfig")))
        yield made


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[str]]:
    """What the launcher has reported."""
    return lambda: [
        event.get("text", "") for event in map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    ]


@pytest.fixture
def launch(tmp_path: Path, fake: FakeKubernetes) -> Callable[..., None]:
    def run(spec: TrainJobSpec = SPEC, stage: str = "self_train", run_id: str = RUN, **pace: Any) -> None:
        reporter = Reporter(stage, tmp_path / "events.jsonl")
        run_trainjob(spec, stage, run_id, COMMAND, {"TENFOLD_RUN_ID": run_id}, reporter, **{**FAST, **pace})

    return run


# --- what is sent --------------------------------------------------------------------------------------


def test_the_job_carries_image_nodes_resources_labels_deadline_and_command(
    fake: FakeKubernetes, launch: Callable[..., None]
) -> None:
    launch(SPEC.model_copy(update={"cpus_per_node": "16", "memory_per_node": "64Gi", "queue": "gpus",
                                   "service_account": "trainer"}))  # fmt: skip
    (job,) = fake.sent
    assert job["metadata"]["name"] == f"self-train-{RUN}"[:33] + job["metadata"]["name"][33:]
    assert job["metadata"]["labels"] == {
        "tenfold.dev/run-id": RUN, "tenfold.dev/stage": "self_train", "kueue.x-k8s.io/queue-name": "gpus"
    }  # fmt: skip
    trainer = job["spec"]["trainer"]
    amounts = {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}
    assert trainer["resourcesPerNode"] == {"limits": amounts, "requests": amounts}
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (IMAGE, 2, 4)
    assert trainer["command"] == COMMAND
    assert job["spec"]["activeDeadlineSeconds"] == 3600
    assert (job["spec"]["runtimeRef"]["kind"], job["spec"]["runtimeRef"]["name"]) == (
        "ClusterTrainingRuntime", "torch-distributed"
    )  # fmt: skip
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    assert node["template"]["spec"]["template"]["spec"] == {"serviceAccountName": "trainer"}


def test_addresses_and_credentials_go_by_reference_and_no_secret_is_sent(
    fake: FakeKubernetes, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:password@mlflow")
    launch()
    env = {each["name"]: each for each in fake.sent[0]["spec"]["trainer"]["env"]}
    assert env["TENFOLD_RUN_ID"] == {"name": "TENFOLD_RUN_ID", "value": RUN}
    for name, optional in (("TENFOLD_STORE", False), ("MLFLOW_TRACKING_URI", False), ("AWS_ENDPOINT_URL", True),
                           ("MLFLOW_EXPERIMENT_NAME", True), ("AWS_DEFAULT_REGION", True)):  # fmt: skip
        reference = {"name": "tenfold-env", "key": name, "optional": optional}
        assert env[name] == {"name": name, "valueFrom": {"configMapKeyRef": reference}}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert env[name]["valueFrom"] == {"secretKeyRef": {"name": "tenfold-s3", "key": name, "optional": True}}
    text = json.dumps(fake.sent)
    assert not [secret for secret in ("a-very-secret-key", "password", TOKEN) if secret in text]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"trainer": {"image": IMAGE, "numNodez": 2}}, "numNodez"),
        ({"trainer": {"image": IMAGE, "numNodes": "2"}}, "is not of type 'integer'"),
        ({"activeDeadlineSeconds": 0}, "less than the minimum"),
        ({"runtimeRef": {}}, "'name' is a required property"),
    ],
)
def test_the_fake_server_refuses_what_the_real_one_refuses(
    change: dict[str, Any], why: str, fake: FakeKubernetes
) -> None:
    body = manifest(SPEC, "pretrain", RUN, COMMAND, {}, "ClusterTrainingRuntime")
    assert fake.refusal(body) is None
    status, message = fake.refusal({**body, "spec": {**body["spec"], **change}}) or (0, "")
    assert status in (400, 422)
    assert why in message


@pytest.mark.parametrize(("gpus", "told"), [(4, ["4"]), (0, [])])
def test_the_pods_are_told_how_many_gpus_they_must_see(
    gpus: int, told: list[str], fake: FakeKubernetes, make_work: Callable[..., Work]
) -> None:
    work = make_work("pretrain")
    spec = SPEC.model_copy(update={"gpus_per_node": gpus})
    work = replace(work, environment=replace(work.environment, trainjob=spec.to_json()))
    work.store.write(f"{work.own}launch/result.json", b'{"result": null, "seconds": 1.0}')
    launch_stage("pretrain", None, "{}", {}, {}, work)
    (body,) = fake.sent
    assert [each["value"] for each in body["spec"]["trainer"]["env"] if each["name"] == "TENFOLD_GPUS"] == told


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "PET_NNODES", "TENFOLD_TRAINJOB"])
def test_what_may_not_go_by_value_is_refused_before_anything_is_sent(name: str, fake: FakeKubernetes) -> None:
    with pytest.raises(ValueError, match=name):
        run_trainjob(SPEC, "pretrain", RUN, COMMAND, {name: "x"}, Reporter("pretrain"), **FAST)
    assert fake.sent == []


def test_without_gpus_a_node_is_one_process_on_cpus(fake: FakeKubernetes, launch: Callable[..., None]) -> None:
    launch(TrainJobSpec(image=IMAGE, nodes=3, gpus_per_node=0, deadline_seconds=60))
    trainer = fake.sent[0]["spec"]["trainer"]
    assert "resourcesPerNode" not in trainer
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 1)


@pytest.mark.parametrize("run_id", [RUN, "local-20260101", "Run_1", "r" * 80, "r" * 79 + "s"])
def test_the_name_is_a_dns_label_that_leaves_room_for_its_pods(
    run_id: str, fake: FakeKubernetes, launch: Callable[..., None]
) -> None:
    fake.lives = [["complete"]]
    launch(SPEC.model_copy(update={"nodes": 99_999}) if run_id == RUN else SPEC, run_id=run_id)
    names = {job_name(stage, each) for stage in ("self_train", "pretrain") for each in (RUN, run_id, run_id + "x")}
    assert len(names) == (4 if run_id == RUN else 6)
    assert fake.sent[0]["metadata"]["name"] in names  # the server has checked its form and its pods'


def test_the_spec_reads_from_json_and_refuses_what_it_does_not_know() -> None:
    assert TrainJobSpec.parse(SPEC.to_json()) == SPEC
    assert TrainJobSpec.parse('{"image": "i", "nodes": 1, "gpus_per_node": 0, "deadline_seconds": 1, '
                              '"cpus_per_node": 8}').cpus_per_node == "8"  # fmt: skip
    for bad, named in (('{"image": "i", "nodes": "2", "gpus_per_node": 0, "deadline_seconds": 1}', "nodes"),
                       (SPEC.to_json()[:-1] + ', "gpu": 1}', "gpu"), ("none", "JSON")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"TENFOLD_TRAINJOB .*{named}"):
            TrainJobSpec.parse(bad)


# --- how a job ends ------------------------------------------------------------------------------------


def test_a_complete_job_returns_and_its_log_was_shown(
    fake: FakeKubernetes, launch: Callable[..., None], notes: Callable[[], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    fake.lives = [["pending", "pending", "running", "running", "running", "complete"]]
    launch()
    assert capfd.readouterr().err.splitlines().count("pretrain: done in 0:01") == 1
    assert any("made, 2 nodes of 4 GPUs" in note for note in notes())
    assert any("all 2 pods run" in note for note in notes())
    assert fake.count("delete") == 0


def test_a_second_launch_takes_the_complete_jobs_result_at_once(
    fake: FakeKubernetes, launch: Callable[..., None]
) -> None:
    launch()
    reads, looks = fake.count("get"), fake.count("list", "pods")
    launch()
    assert (fake.count("create"), fake.count("get"), fake.count("delete")) == (1, reads + 1, 0)
    assert fake.count("list", "pods") == looks  # nor is its log shown again


def test_a_failed_job_says_why_and_a_second_launch_makes_it_again(
    fake: FakeKubernetes, launch: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    fake.lives, fake.deletion_reads = [["running", "failed"], ["running", "complete"]], 3
    with pytest.raises(TrainJobError) as caught:
        launch()
    name = job_name("self_train", RUN)
    assert f"{NAMESPACE}/{name} failed: FailedJobs: jobset failed due to one or more job failures" in str(caught.value)
    assert f"kubectl logs -n {NAMESPACE} -l jobset.sigs.k8s.io/jobset-name={name}," in str(caught.value)
    assert caught.value.exit_code == 75
    assert "pretrain: started" in capfd.readouterr().err
    assert fake.count("delete") == 0
    launch()
    assert (fake.count("create"), fake.count("delete")) == (2, 1)


def test_a_complete_job_whose_result_is_gone_is_made_again(
    fake: FakeKubernetes, launch: Callable[..., None], notes: Callable[[], list[str]]
) -> None:
    launch()
    launch(left=lambda: False)
    assert (fake.count("create"), fake.count("delete")) == (2, 1)
    assert any("is complete, and its result is gone; it is deleted and made again" in note for note in notes())


def test_a_job_that_fails_at_once_is_not_made_again_by_the_same_launch(
    fake: FakeKubernetes, launch: Callable[..., None]
) -> None:
    fake.lives = [["failed"]]
    with pytest.raises(TrainJobError, match="failed: FailedJobs"):
        launch()
    assert (fake.count("create"), fake.count("delete")) == (1, 0)


def test_a_job_that_vanishes_is_an_error_and_a_second_launch_makes_it_again(
    fake: FakeKubernetes, launch: Callable[..., None]
) -> None:
    fake.lives = [["running", "running", "gone"], ["complete"]]
    with pytest.raises(TrainJobError, match=r"is gone: it was deleted while it was waited for"):
        launch()
    launch()
    assert fake.count("create") == 2


def test_a_job_that_never_starts_is_reported_and_given_up_but_left(
    fake: FakeKubernetes, launch: Callable[..., None], notes: Callable[[], list[str]]
) -> None:
    fake.lives = [["pending"]]
    spec = SPEC.model_copy(update={"deadline_seconds": 1})
    with pytest.raises(TrainJobError, match=r"was never started.*Insufficient.*kubectl delete trainjob") as caught:
        launch(spec, margin_seconds=-0.5, note_seconds=0.2)
    assert f"tenfold.dev/run-id={RUN}" in str(caught.value)
    assert 1 <= len([note for note in notes() if "Unschedulable: 0/3 nodes are available" in note]) <= 3
    assert fake.count("delete") == 0
    assert list(fake.jobs) == [job_name("self_train", RUN)]


def test_a_queues_suspension_is_reported(
    fake: FakeKubernetes, launch: Callable[..., None], notes: Callable[[], list[str]]
) -> None:
    fake.lives = [[*["suspended"] * 10, "running", "suspended", "running", "complete"]]
    launch(note_seconds=0.0)
    assert any("waits for 0:00: Suspended is True (Suspended: TrainJob is suspended)" in note for note in notes())
    assert len([note for note in notes() if "all 2 pods run" in note]) == 2


# --- what is missing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "resource", "rule"),
    [
        ("get", "trainjobs", "the verb get on trainjobs.*verbs: .create, get, list, delete."),
        ("create", "trainjobs", "the verb create on trainjobs"),
        ("get", "trainingruntimes", "the verb get on trainingruntimes"),
        ("get", "clustertrainingruntimes", "The cluster role .* lacks the verb get on clustertrainingruntimes"),
    ],
)
def test_a_missing_right_is_told_at_once_with_its_rule(
    verb: str, resource: str, rule: str, fake: FakeKubernetes, launch: Callable[..., None]
) -> None:
    fake.forbidden = {(verb, resource)}
    with pytest.raises(TrainJobError, match=f'{rule}|apiGroups: .."trainer.kubeflow.org"') as caught:
        launch()
    assert "system:serviceaccount:team:pipeline-runner" in str(caught.value)
    assert caught.value.exit_code == 2
    assert fake.count(verb, resource) == 1


def test_a_refusal_of_a_webhook_is_not_called_a_missing_right(
    fake: FakeKubernetes, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.trainjob.spec._RESERVED", ())
    with pytest.raises(TrainJobError, match=r"denied the request: spec.trainer.env") as caught:
        run_trainjob(SPEC, "pretrain", RUN, COMMAND, {"PET_NNODES": "2"}, Reporter("pretrain"), **FAST)
    assert "lacks the verb" not in str(caught.value)


def test_a_runtime_that_is_not_there_is_named_at_once(fake: FakeKubernetes, launch: Callable[..., None]) -> None:
    with pytest.raises(TrainJobError, match=r"no ClusterTrainingRuntime of that name.*--runtime") as caught:
        launch(SPEC.model_copy(update={"runtime": "torch-special"}))
    assert "'torch-special'" in str(caught.value)
    assert fake.count("get", "clustertrainingruntimes") == 1


def test_a_cluster_without_trainer_is_told_at_once(fake: FakeKubernetes, launch: Callable[..., None]) -> None:
    fake.installed = False
    with pytest.raises(TrainJobError, match=r"trainjobs\.trainer\.kubeflow\.org is not installed"):
        launch()
    assert fake.count("get") == 1


def test_without_any_cluster_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no Kubernetes cluster"):
        reap(RUN)


# --- what passes ---------------------------------------------------------------------------------------


def test_an_api_server_that_fails_resets_and_cuts_answers_for_a_while_is_waited_for(
    fake: FakeKubernetes, launch: Callable[..., None], notes: Callable[[], list[str]]
) -> None:
    fake.lives = [["pending", "running", "running", "complete"]]
    faults: list[int | str] = [500, 503, "reset", "cut", 429, "reset"]
    fake.faults = [("get", "trainjobs", fault) for fault in faults]
    fake.faults += [("create", "trainjobs", 500), ("get", "clustertrainingruntimes", 503), ("list", "pods", 500)]
    launch()
    assert fake.faults == []
    assert fake.count("create") == 2
    assert len(fake.sent) == 1
    assert len([note for note in notes() if "does not answer (get trainjobs: 500 etcdserver" in note]) == 1


def test_an_api_server_that_stays_away_is_an_error_after_the_patience_is_over(
    fake: FakeKubernetes, launch: Callable[..., None]
) -> None:
    fake.faults = [("get", "trainjobs", 503)] * 10_000
    with pytest.raises(TrainJobError, match=r"did not answer for 0 s .*goes on by itself") as caught:
        launch(patience_seconds=0.3)
    assert caught.value.exit_code == 75


def test_a_creation_whose_answer_was_lost_is_not_repeated(fake: FakeKubernetes, launch: Callable[..., None]) -> None:
    fake.lost_answers = 1
    launch()
    assert len(fake.sent) == 1
    assert fake.count("delete") == 0


def test_a_broken_log_is_noted_once_and_goes_on_behind_the_last_line(
    fake: FakeKubernetes, launch: Callable[..., None], notes: Callable[[], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    fake.lives, fake.log_breaks = [["pending", *["running"] * 30, "complete"]], 3
    launch()
    lines = capfd.readouterr().err.splitlines()
    assert [lines.count(line) for line in fake.log] == [1, 1]
    assert len([note for note in notes() if "broke off" in note]) == 1
    assert fake.since[0] is None
    assert fake.since[1] is not None
    assert len(fake.since) >= 4


@pytest.mark.parametrize("resource", ["pods", "pods/log"])
def test_without_the_right_to_see_pods_the_job_is_waited_for_all_the_same(
    resource: str, fake: FakeKubernetes, launch: Callable[..., None], notes: Callable[[], list[str]]
) -> None:
    fake.lives = [["pending", *["running"] * 10, "complete"]]
    fake.forbidden = {("list" if resource == "pods" else "get", resource)}
    launch()
    assert [each for each in notes() if "all 2 pods run" in each]  # the job's status tells it too
    assert fake.count("get", "pods/log") == (1 if resource == "pods/log" else 0)
    assert len([note for note in notes() if f"on {resource}; give it the rule apiGroups: [" in note]) == 1


def test_a_launcher_that_is_killed_leaves_its_job_and_the_next_one_attaches_to_it(
    fake: FakeKubernetes, tmp_path: Path
) -> None:
    fake.lives = [["pending", "running"]]
    program = tmp_path / "launcher.py"
    program.write_text(
        "from tenfold.progress import Reporter\n"
        "from tenfold.trainjob import TrainJobSpec, run_trainjob\n"
        f"spec = TrainJobSpec.parse({SPEC.to_json()!r})\n"
        f"run_trainjob(spec, 'pretrain', {RUN!r}, ['true'], {{}}, Reporter('pretrain'), poll_seconds=0.05)\n"
    )
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen([sys.executable, str(program)], stderr=log)
        end = time.monotonic() + 60
        while fake.stage.get(job_name("pretrain", RUN)) != "running":
            assert first.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert first.returncode == -signal.SIGKILL
        second = subprocess.Popen([sys.executable, str(program)], stderr=log)
        while "attached to it" not in (tmp_path / "log").read_text():
            assert second.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        with fake.lock:
            fake.jobs[job_name("pretrain", RUN)].life = ["complete"]
        assert second.wait(30) == 0
    assert (fake.count("create"), fake.count("delete")) == (1, 0)


def test_reaping_deletes_the_jobs_of_a_run_and_of_no_other(fake: FakeKubernetes, launch: Callable[..., None]) -> None:
    for stage, run_id in (("pretrain", RUN), ("distill", RUN), ("pretrain", "another")):
        launch(stage=stage, run_id=run_id)
    fake.deletion_reads = 0
    assert sorted(reap(RUN)) == sorted([job_name("pretrain", RUN), job_name("distill", RUN)])
    assert list(fake.jobs) == [job_name("pretrain", "another")]
    assert reap("Run of an odd name") == []
