"""A registered student behind `mlflow models serve`, and models that are none of ours (FAULTS.md F24)."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn
from typer.testing import CliRunner

from tenfold.augment.evaluation import evaluation_views
from tenfold.cli.app import app
from tenfold.config import Description, ResNetConfig
from tenfold.data.decode import encode_png
from tenfold.environment import Environment
from tenfold.models.heads import Classifier
from tenfold.models.saved import build, load_classifier, save
from tenfold.predictor import probe
from tenfold.registry import CHAMPION, Registry
from tenfold.tracking import task_run

CLASSES = ["ant", "bee", "cat"]


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return encode_png((rng.integers(0, 200, 3) + rng.integers(0, 56, (23, 37, 3))).astype(np.uint8))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that tells the three classes of noise apart somehow."""
    description = Description(
        kind="classifier", network=ResNetConfig(depth=10, width=0.125), classes=CLASSES, image_size=16
    )
    torch.manual_seed(0)
    model = build(description)
    assert isinstance(model, Classifier)
    nn.init.normal_(model.linear.weight)
    views = evaluation_views([picture(seed) for seed in range(6)], description.evaluation, description.image_size)
    with torch.no_grad():  # else all of them would be of one class
        model.linear.bias.sub_(model.eval()(views).mean(0))
    folder = tmp_path_factory.mktemp("student")
    save(folder, model, description.model_copy(update={"probe": probe(description)}))
    return folder


@pytest.fixture(scope="module")
def address(mlflow_server: str, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` of the champion, as k8s/components/serving calls it."""
    folder = tmp_path_factory.mktemp("serving")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow looks for its web server
    surroundings = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": mlflow_server, "TENFOLD_RUN_ID": "served",
                    "MLFLOW_EXPERIMENT_NAME": "serving", "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, value)
        environment = Environment.read()
        registry, tracker = Registry(environment, "served"), task_run(environment, "promote")
        version = registry.register(student, picture(0), "w" * 64, tracker.run_id, {}).version
        registry.point(CHAMPION, version)
        tracker.finish("FINISHED")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", f"--model-uri=models:/served@{CHAMPION}",
               "--env-manager=local", "--host=127.0.0.1", f"--port={port}", "--workers=1"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=surroundings, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(750):  # five minutes, where other tests have the processors
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.4)
        else:
            pytest.fail((folder / "log").read_text())
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, columns: list[str], rows: list[list[Any]]) -> Any:
    body = json.dumps({"dataframe_split": {"columns": columns, "data": rows}}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())["predictions"]


def test_an_image_that_is_posted_gets_the_class_that_predict_names(address: str, student: Path, tmp_path: Path) -> None:
    for seed in range(6):
        (tmp_path / f"{seed}.png").write_bytes(picture(seed))
    told = CliRunner().invoke(app, ["predict", str(tmp_path), "--student", str(student), "--json"])
    assert told.exit_code == 0
    expected = [json.loads(line) for line in told.stdout.splitlines()]
    assert len({each["label"] for each in expected}) > 1, "else any answer would do"
    images = [[base64.b64encode(Path(each["path"]).read_bytes()).decode()] for each in expected]
    found = ask(address, ["image"], images)
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    for answer, each in zip(found, expected, strict=True):
        assert answer["probability"] == pytest.approx(each["probability"], abs=1e-6)
        assert answer["probabilities"] == pytest.approx(each["probabilities"], abs=1e-6)
        assert list(answer["probabilities"]) == CLASSES


@pytest.mark.parametrize(
    ("columns", "value", "answer"),  # empty: MLflow answers by itself
    [
        (["image"], np.zeros((3, 16, 16)).tolist(), ""),  # pixels that somebody else made
        (["image"], base64.b64encode(np.zeros((16, 16, 3), dtype=np.float32).tobytes()).decode(), "image 0: not an "),
        (["image"], base64.b64encode(picture(0)[:60]).decode(), "image 0: "),
        (["image"], "no image", ""),
        (["pixels"], base64.b64encode(picture(0)).decode(), ""),
    ],
)
def test_what_is_no_encoded_image_gets_no_class(address: str, columns: list[str], value: Any, answer: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, columns, [[value]])
    assert refused.value.code == 400
    told = refused.value.read()
    assert b"label" not in told
    if answer:
        assert answer in json.loads(told)["message"]
        assert b"stack_trace" not in told
    assert ask(address, ["image"], [[base64.b64encode(picture(0)).decode()]]), "and the server goes on"


def test_a_student_whose_description_was_changed_is_not_served(student: Path, tmp_path: Path) -> None:
    model, description = load_classifier(student)
    save(tmp_path / "other", model, description)
    text = json.loads((tmp_path / "other" / "model.json").read_text())
    text["evaluation"]["crop_proportion"] = 0.5
    (tmp_path / "other" / "model.json").write_text(json.dumps(text))
    (tmp_path / "image.png").write_bytes(picture(0))
    told = CliRunner().invoke(app, ["predict", str(tmp_path / "image.png"), "--student", str(tmp_path / "other")])
    assert told.exit_code != 0
    assert "model.json" in str(told.exception)
    assert "was changed after it was written" in str(told.exception)


@pytest.mark.parametrize("kind", ["pyfunc", "weights", "description"])
def test_a_hostile_model_of_the_registry_is_refused_and_never_unpickled(
    mlflow_server: str, student: Path, tmp_path: Path, kind: str
) -> None:
    """F24."""
    canary, model, name = tmp_path / "canary", tmp_path / "model", f"hostile-{kind}"
    hostile = pickle.dumps(_Canary(canary))
    pickle.loads(hostile)
    assert canary.exists(), "the pickle is hostile indeed"
    canary.unlink()
    if kind == "pyfunc":
        model.mkdir()
        (model / "python_model.pkl").write_bytes(hostile)
        (model / "MLmodel").write_text(
            "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"
            "    python_model: python_model.pkl\n    cloudpickle_version: 3.1.0\n"
        )
    else:
        artifacts = model / "artifacts" / "student"
        artifacts.mkdir(parents=True)
        for file in ("model.json", "model.safetensors"):
            (artifacts / file).write_bytes((student / file).read_bytes())
        (artifacts / {"weights": "model.safetensors", "description": "model.json"}[kind]).write_bytes(hostile)
    client = MlflowClient(mlflow_server, mlflow_server)
    run = client.create_run(client.create_experiment(f"{name}-{tmp_path.name}"))
    client.log_artifacts(run.info.run_id, str(model), "student")
    client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/student", run.info.run_id)
    (tmp_path / "image.png").write_bytes(picture(0))
    command = [
        str(Path(sys.executable).parent / "tenfold"),
        "predict",
        str(tmp_path / "image.png"),
        "--model",
        f"{name}/1",
    ]
    done = subprocess.run(
        command, env={**os.environ, "MLFLOW_TRACKING_URI": mlflow_server}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    wanted = {"pyfunc": "holds no tenfold student", "weights": "not those that", "description": "damaged"}
    assert wanted[kind] in " ".join(done.stderr.split())
    assert not canary.exists()
