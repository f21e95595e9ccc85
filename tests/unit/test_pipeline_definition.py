"""What the compiled pipeline promises: golden bytes, caching flags, references, descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tenfold.config import STAGES
from tenfold.pipelines.compile import PLACEHOLDER, compile_pipeline
from tenfold.pipelines.semi_supervised import UNCACHED
from tenfold.trainjob import TrainJobSpec

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
    assert made - {"sharding", "for-loop-1"} == {
        name.replace("_", "-") for name in ("preflight", "list_images", "pack", *STAGES)
    }


def test_caching_is_off_exactly_for_what_looks_at_the_outside_world(spec: dict[str, Any]) -> None:
    uncached = {name for name, task in tasks(spec).items() if not task.get("cachingOptions", {}).get("enableCache")}
    assert uncached - {"for-loop-1"} == set(UNCACHED)


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


def test_every_task_learns_run_id_addresses_and_credentials_from_its_pod(compiled: Path) -> None:
    _, platform = yaml.safe_load_all(compiled.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) == len(STAGES) + 3  # preflight, list_images and pack
    for name, executor in executors.items():
        (field,) = executor["fieldPathAsEnv"]
        assert field == {"name": "TENFOLD_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}, name
        told = {pair["envVar"] for entry in executor["configMapAsEnv"] for pair in entry["keyToEnv"]}
        assert {"TENFOLD_STORE", "MLFLOW_TRACKING_URI"} <= told
        (secret,) = executor["secretAsEnv"]
        assert secret["secretName"] == "tenfold-s3"
        assert secret["optional"] is True


def test_with_a_trainjob_the_training_tasks_are_small_cpu_pods_that_know_the_job(
    compiled: Path, tmp_path: Path
) -> None:
    wanted = TrainJobSpec(image=PLACEHOLDER.gpu, nodes=4, gpus_per_node=8, deadline_seconds=3600, queue="gpus")
    compile_pipeline(tmp_path / "pipeline.yaml", trainjob=wanted)
    launched, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    alone, same_platform = yaml.safe_load_all(compiled.read_text())
    assert platform == same_platform  # run id, addresses and credentials reach a launcher as they do a training
    executors, before = (each["deploymentSpec"]["executors"] for each in (launched, alone))
    training = {f"exec-{name}" for name in ("pretrain", "baseline", "finetune", "self-train", "distill")}
    assert {name for name in executors if executors[name] != before[name]} == training
    for name in training:
        container = executors[name]["container"]
        assert container["image"] == PLACEHOLDER.cpu
        (variable,) = container["env"]
        assert variable["name"] == "TENFOLD_TRAINJOB"
        assert TrainJobSpec.parse(variable["value"]) == wanted
        assert set(container["resources"]) >= {"cpuLimit", "cpuRequest", "memoryLimit", "memoryRequest"}
        assert "accelerator" not in container["resources"]
        assert container["command"] == before[name]["container"]["command"]
    for each in (launched, alone):
        del each["deploymentSpec"]
    assert launched == alone
