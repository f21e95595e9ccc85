"""What the compiled pipeline promises: golden bytes, caching flags, references, descriptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tenfold.config import STAGES
from tenfold.errors import ConfigError
from tenfold.pipelines.cluster import ClusterSettings
from tenfold.pipelines.compile import PLACEHOLDER, compile_pipeline
from tenfold.trainjob import TrainJobSpec
from tenfold.trainjob.spec import manifest

GOLDEN = Path(__file__).parents[2] / "pipelines" / "compiled" / "semi_supervised.yaml"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(path)
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    return dict(next(yaml.safe_load_all(compiled.read_text())))


def dags(spec: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return each graph's tasks and inputs: the pipeline itself, the nested one, and the loop in it."""
    found = {name: c for name, c in spec["components"].items() if "dag" in c} | {"root": spec["root"]}
    return {name: (c["dag"]["tasks"], c["inputDefinitions"]["parameters"]) for name, c in found.items()}


def tasks(spec: dict[str, Any]) -> dict[str, Any]:
    """Return every task by name; those of components, and the graphs that are tasks themselves."""
    return {name: task for graph, _ in dags(spec).values() for name, task in graph.items()}


def test_the_compiled_pipeline_is_the_golden_one(compiled: Path) -> None:
    assert compiled.read_text() == GOLDEN.read_text(), "run `make compiled` and look at the difference"


def test_every_stage_is_a_task_and_nothing_else_is(spec: dict[str, Any]) -> None:
    made = {name for name, task in tasks(spec).items() if task["componentRef"]["name"].removeprefix("comp-") == name}
    assert made - {"sharding", "for-loop-1", "exit-handler-1"} == {
        name.replace("_", "-") for name in ("preflight", "list_images", "pack", *STAGES, "finish")
    }


def test_caching_is_off_exactly_for_what_looks_at_the_outside_world(spec: dict[str, Any]) -> None:
    uncached = {name for name, task in tasks(spec).items() if not task.get("cachingOptions", {}).get("enableCache")}
    assert uncached - {"for-loop-1", "exit-handler-1"} == {
        "preflight", "sharding", "list-images", "pack", "shard", "promote", "finish",
    }  # fmt: skip


def test_the_exit_task_runs_behind_all_others_however_they_end(spec: dict[str, Any]) -> None:
    graph = spec["root"]["dag"]["tasks"]
    assert set(graph) == {"exit-handler-1", "finish"}
    assert graph["finish"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert graph["finish"]["dependentTasks"] == ["exit-handler-1"]


def test_every_reference_to_a_component_executor_task_and_output_resolves(spec: dict[str, Any]) -> None:
    executors, components = spec["deploymentSpec"]["executors"], spec["components"]
    for name, component in components.items():
        assert component.get("executorLabel") in executors or component["dag"]["tasks"], name
    for graph, form in dags(spec).values():
        for name, task in graph.items():
            assert task["componentRef"]["name"] in components, name
            inputs = task.get("inputs", {})
            for kind in ("parameters", "artifacts"):
                for value in inputs.get(kind, {}).values():
                    if "taskOutputParameter" in value or "taskOutputArtifact" in value:
                        source = value.get("taskOutputParameter") or value["taskOutputArtifact"]
                        assert source["producerTask"] in task["dependentTasks"], name
                        producer = components[graph[source["producerTask"]]["componentRef"]["name"]]
                        key = source.get("outputParameterKey") or source["outputArtifactKey"]
                        assert key in producer["outputDefinitions"][kind], (name, key)
                    elif "componentInputParameter" in value:
                        assert value["componentInputParameter"] in form


def test_every_parameter_of_the_form_has_a_description_and_a_default(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert list(parameters)
    for name, parameter in parameters.items():
        assert parameter.get("description"), name
        assert "defaultValue" in parameter, name


def test_no_task_sets_environment_variables_and_none_installs_anything(spec: dict[str, Any]) -> None:
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert "env" not in container, name
        assert "pip install" not in " ".join([*container["command"], *container.get("args", [])]), name


def test_images_are_named_by_digest(spec: dict[str, Any]) -> None:
    images = {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}
    assert len(images) == 2
    assert all("@sha256:" in image for image in images)


def test_data_goes_by_pointer_the_dataset_is_a_parameter(spec: dict[str, Any]) -> None:
    for stage in ("augment", "pretrain", "finetune", "distill", "evaluate"):
        definition = spec["components"][f"comp-{stage}"]["inputDefinitions"]["parameters"]
        assert definition["dataset"]["parameterType"] == "STRING"


# --- pods ----------------------------------------------------------------------------------------------

SMALL = {"preflight", "list-images", "shard", "promote", "finish"}
TRAINING = {"pretrain", "baseline", "finetune", "self-train", "distill"}
WITH_GPU = {"augment", "pseudo-label", "evaluate"} | TRAINING


def platform_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return task → what its pod is told beside the container."""
    _, platform = yaml.safe_load_all(path.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor for name, executor in executors.items()}


def containers(path: Path) -> dict[str, dict[str, Any]]:
    """Return task → its container."""
    spec = next(yaml.safe_load_all(path.read_text()))
    executors = spec["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


def test_every_task_learns_run_id_addresses_and_credentials_from_its_pod(compiled: Path) -> None:
    executors = platform_of(compiled)
    assert set(executors) == {*SMALL, "pack", *WITH_GPU}
    for name, executor in executors.items():
        field, *others = executor["fieldPathAsEnv"]
        assert field == {"name": "TENFOLD_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}, name
        also = {"preflight": ["TENFOLD_NEEDS"]} | {each: ["TENFOLD_GPUS"] for each in WITH_GPU}
        assert [each["name"] for each in others] == also.get(name, [])
        told = {pair["envVar"] for entry in executor["configMapAsEnv"] for pair in entry["keyToEnv"]}
        assert {"TENFOLD_STORE", "MLFLOW_TRACKING_URI"} <= told
        (secret,) = executor["secretAsEnv"]
        assert secret["secretName"] == "tenfold-s3"
        assert secret["optional"] is True


def test_every_task_runs_as_a_user_without_rights_and_writes_below_tmp_alone(compiled: Path) -> None:
    for name, executor in platform_of(compiled).items():
        assert executor["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}, name
        mounts = {mount["mountPath"]: mount for mount in executor["emptyDirMounts"]}
        assert mounts["/tmp"]["sizeLimit"], name
        assert set(mounts) <= {"/tmp", "/dev/shm"}


def test_every_task_has_a_time_limit_and_bounded_tries(compiled: Path, spec: dict[str, Any]) -> None:
    assert all(int(executor["activeDeadlineSeconds"]) >= 3600 for executor in platform_of(compiled).values())
    retried = {
        name: task["retryPolicy"] for graph, _ in dags(spec).values() for name, task in graph.items()
        if task["componentRef"]["name"].removeprefix("comp-") in {*SMALL, "pack", *WITH_GPU}
    }  # fmt: skip
    assert set(retried) == {*SMALL, "pack", *WITH_GPU}
    for name, policy in retried.items():
        assert policy == {
            "maxRetryCount": 3, "backoffDuration": "60s", "backoffFactor": 2.0, "backoffMaxDuration": "3600s"
        }, name  # fmt: skip


def test_gpus_shared_memory_and_tolerations_are_of_the_tasks_that_compute_and_of_no_other(compiled: Path) -> None:
    for name, container in containers(compiled).items():
        executor, resources = platform_of(compiled)[name], container["resources"]
        shared = [mount for mount in executor["emptyDirMounts"] if mount["mountPath"] == "/dev/shm"]
        if name in WITH_GPU:
            assert resources["accelerator"]["resourceCount"] == "1", name
            assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
            assert [(mount["medium"], bool(mount["sizeLimit"])) for mount in shared] == [("Memory", True)]
            assert executor["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
            assert executor["podMetadata"]["annotations"] == {"tenfold.dev/gpus": "1"}
        else:
            assert "accelerator" not in resources, name
            assert shared == []
            assert "tolerations" not in executor
        assert resources["cpuRequest"] > 0
        assert resources["memoryLimit"] == resources["memoryRequest"] > 0
        assert "cpuLimit" not in resources, "idle cores may be used"


def test_settings_of_the_cluster_reach_the_pods(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "train: {gpus: 8, cpu: 64, memory: 500Gi, hours: 12, shm: 64Gi}\nuser: 1000650000\nretries: 0\n"
        "accelerator: amd.com/gpu\ntolerations: [{key: gpus, operator: Equal, value: only}]\n"
        "node_selector: {pool: gpus, big: true, size: 2}\ninfer: {gpus: 0, shm: null}\ndays_kept: 1\n"
    )
    compile_pipeline(tmp_path / "pipeline.yaml", cluster=ClusterSettings.read(file))
    executors, made = platform_of(tmp_path / "pipeline.yaml"), containers(tmp_path / "pipeline.yaml")
    train = executors["pretrain"]
    assert made["pretrain"]["resources"]["accelerator"] == {
        "type": "amd.com/gpu", "count": "8", "resourceType": "amd.com/gpu", "resourceCount": "8"
    }  # fmt: skip
    assert made["pretrain"]["resources"]["cpuRequest"] == 64
    assert train["activeDeadlineSeconds"] == "43200"
    assert train["tolerations"] == [{"key": "gpus", "operator": "Equal", "value": "only", "effect": "NoSchedule"}]
    assert train["nodeSelector"]["labels"] == {"pool": "gpus", "big": "true", "size": "2"}
    assert train["securityContext"]["runAsUser"] == "1000650000"
    assert "accelerator" not in made["evaluate"]["resources"]
    assert "nodeSelector" not in executors["evaluate"]
    _, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    assert platform["platforms"]["kubernetes"]["pipelineConfig"]["resourceTtlOnCompletion"] == 86400


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trian: {gpus: 8}", "trian: Extra inputs are not permitted"),
        ("train: {memory: lots}", "train.memory: .*'lots' is no amount"),
        ("train: {hours: 0}", "train.hours: Input should be greater than or equal to 0.01"),
        ("train: {hours: .inf}", "train.hours: Input should be less than"),
        ("days_kept: .inf", "days_kept: Input should be less than"),
        ("retries: 99999999999", "retries: Input should be less than"),
        ("user: 99999999999999999999999", "user: Input should be less than"),
        ("backoff_seconds: 9999999999999999999", "backoff_seconds: Input should be less than"),
        ("train: {memory: 100m}", "train.memory: .*'100m' is thousandths of a byte"),
        ("accelerator: ''", "accelerator: String should match"),
        ("node_selector: {zone: größer}", "node_selector.zone: String should match"),
        ("node_selector: {zone: null}", "node_selector.zone: Input should be a valid string"),
        ("tolerations: [{key: gpus, value: only}]", "tolerations.0: .*a value with operator Equal"),
        ("[]", "Input should be a valid dictionary"),
        ("user: 0", "user: Input should be greater than or equal to 1"),
        ("train: [", "is no YAML"),
    ],
)
def test_settings_that_describe_no_cluster_are_refused_by_name(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"--cluster {tmp_path}/cluster.yaml.*{told}"):
        ClusterSettings.read(tmp_path / "cluster.yaml")


def test_the_accelerator_of_the_cluster_is_that_of_its_trainjobs(tmp_path: Path) -> None:
    job = TrainJobSpec(image=PLACEHOLDER.gpu, nodes=1, gpus_per_node=8, deadline_seconds=3600)
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(path, trainjob=job, cluster=ClusterSettings(accelerator="amd.com/gpu"))
    (variable,) = containers(path)["pretrain"]["env"]
    body = manifest(TrainJobSpec.parse(variable["value"]), "pretrain", "run", ["python3"], {}, "TrainingRuntime")
    assert body["spec"]["trainer"]["resourcesPerNode"]["limits"] == {"amd.com/gpu": "8"}


def test_a_file_of_settings_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        ClusterSettings.read(tmp_path / "none.yaml")


def test_with_a_trainjob_the_training_tasks_are_small_cpu_pods_that_know_the_job(
    compiled: Path, tmp_path: Path
) -> None:
    wanted = TrainJobSpec(
        image=PLACEHOLDER.gpu, nodes=4, gpus_per_node=8, deadline_seconds=36000, queue="gpus"
    )  # fmt: skip
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(path, trainjob=wanted)
    made, before = containers(path), containers(compiled)
    assert {name for name in made if made[name] != before[name]} == TRAINING | {"finish"}
    assert made["finish"]["env"] == made["pretrain"]["env"], "the exit task looks for jobs that were left"
    for name in TRAINING:
        executor, container = platform_of(path)[name], made[name]
        assert container["image"] == PLACEHOLDER.cpu
        (variable,) = container["env"]
        assert variable["name"] == "TENFOLD_TRAINJOB"
        assert TrainJobSpec.parse(variable["value"]) == wanted
        assert container["resources"] == before["promote"]["resources"]
        assert container["command"] == before[name]["command"]
        assert int(executor["activeDeadlineSeconds"]) == 2 * 36000 + 3600, "as long in a queue as at work"
        promote = platform_of(path)["promote"]
        assert {**executor, "activeDeadlineSeconds": 0} == {**promote, "activeDeadlineSeconds": 0}
    needs = platform_of(path)["preflight"]["podMetadata"]["annotations"]["tenfold.dev/needs"]
    assert {"gpus": 8, "pods": 4, "queue": "gpus"} in json.loads(needs)["demands"]
    launched, alone = (next(yaml.safe_load_all(each.read_text())) for each in (path, compiled))
    for each in (launched, alone):
        del each["deploymentSpec"]
    assert launched == alone
