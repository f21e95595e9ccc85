"""What the compiled retraining pipeline promises beside what both have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.pipelines.compile import compile_pipeline

GOLDEN = Path(__file__).parents[2] / "pipelines" / "compiled"
ALWAYS = {"sharding", "novelty", "retrain-preflight", "condition-2"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "retrain.yaml"
    compile_pipeline(path, pipeline="retrain")
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    return dict(next(yaml.safe_load_all(compiled.read_text())))


def graph(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(spec["components"][f"comp-{name}"]["dag"]["tasks"])


def test_the_compiled_pipeline_is_the_golden_one(compiled: Path) -> None:
    assert compiled.read_text() == (GOLDEN / "retrain.yaml").read_text(), (
        "run `make compiled` and look at the difference"
    )


def test_the_command_compiles_the_pipeline_of_that_name_into_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["compile", "--pipeline", "retrain"]).exit_code == 0
    assert (tmp_path / "retrain.yaml").read_text() == (GOLDEN / "retrain.yaml").read_text()


def test_all_that_costs_waits_for_a_boolean_that_novelty_gives(spec: dict[str, Any]) -> None:
    body = graph(spec, "exit-handler-1")
    assert set(body) == ALWAYS
    condition = body["condition-2"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--novelty-Output'] == true"
    output = spec["components"]["comp-novelty"]["outputDefinitions"]["parameters"]
    assert output == {"Output": {"parameterType": "BOOLEAN"}}, "kfp.local resolves a condition on no other output"


def test_what_it_does_then_is_what_the_other_pipeline_does(spec: dict[str, Any]) -> None:
    other = next(yaml.safe_load_all((GOLDEN / "semi_supervised.yaml").read_text()))
    tasks = graph(spec, "condition-2")
    assert set(tasks) == set(graph(other, "exit-handler-1")) - {"preflight", "sharding"}
    for name in tasks:
        assert spec["components"][f"comp-{name}"] == other["components"][f"comp-{name}"]
        executors = (each["deploymentSpec"]["executors"][f"exec-{name}"] for each in (spec, other))
        assert next(executors) == next(executors), "the same container, so the same cache key"


def test_caching_is_off_for_what_looks_at_the_outside_world_or_leaves_the_run_s_own_record(
    spec: dict[str, Any],
) -> None:
    tasks = {**graph(spec, "exit-handler-1"), **graph(spec, "condition-2"), **spec["root"]["dag"]["tasks"]}
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == set(graph(spec, "condition-2")) - {"promote"}


def test_the_form_has_a_description_and_a_default_for_each_parameter(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert {"preset", "source", "model_name", "min_new_images", "overrides"} <= set(parameters)
    for name, parameter in parameters.items():
        assert parameter.get("description"), name
        assert "defaultValue" in parameter, name


def test_preflight_and_novelty_are_small_pods(compiled: Path, spec: dict[str, Any]) -> None:
    executors = spec["deploymentSpec"]["executors"]
    _, platform = yaml.safe_load_all(compiled.read_text())
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    like = executors["exec-promote"]["container"]
    for name in ("exec-retrain-preflight", "exec-novelty"):
        assert executors[name]["container"]["resources"] == like["resources"]
    assert executors["exec-retrain-preflight"]["container"]["image"] == like["image"]
    assert executors["exec-novelty"]["container"]["image"] == executors["exec-evaluate"]["container"]["image"], (
        "it may ask the champion, which needs torch"
    )
    assert pods["exec-novelty"] == pods["exec-promote"]
    needs = pods["exec-retrain-preflight"].pop("podMetadata")["annotations"]["tenfold.dev/needs"]
    assert [demand["gpus"] for demand in json.loads(needs)["demands"]] == [1, 1]
    assert pods["exec-retrain-preflight"].pop("fieldPathAsEnv")[1]["name"] == "TENFOLD_NEEDS"
    del pods["exec-promote"]["fieldPathAsEnv"]
    assert pods["exec-retrain-preflight"] == pods["exec-promote"]
