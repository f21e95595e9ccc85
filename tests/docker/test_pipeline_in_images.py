"""The whole pipeline, each task a locked-up container of these images, beside a real S3 and a real MLflow server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest
from kfp import local
from mlflow.tracking import MlflowClient

from tenfold.pipelines.semi_supervised import build
from tenfold.pipelines.stages import Images

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(3600),
    # sizes of pods are the cluster's affair
    pytest.mark.filterwarnings("ignore:Task .* settings .* have no effect:UserWarning"),
]
TASKS = {"preflight", "shard", "augment", "pretrain", "baseline", "finetune", "self_train", "pseudo_label", "distill",
         "evaluate", "promote"}  # fmt: skip


def test_the_digits_preset_is_trained_measured_and_promoted_inside_the_images(
    images: dict[str, str], restricted: dict[str, Any], s3: str, mlflow_server: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = tmp_path / "kfp"
    root.mkdir()
    for folder in (tmp_path, root):
        folder.chmod(0o777)  # the tasks' user is not this one
    os.umask(0)
    surroundings = {
        "TENFOLD_RUN_ID": "in-images", "TENFOLD_STORE": f"{s3}/tenfold", "MLFLOW_TRACKING_URI": mlflow_server,
        "TENFOLD_THREADS": "1", **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
    }  # fmt: skip
    local.init(
        local.DockerRunner(environment=surroundings, network_mode="host", **restricted), pipeline_root=str(root),
        raise_on_error=True,
    )  # fmt: skip
    build(Images(cpu=images["cpu"], gpu=images["gpu"]))(preset="digits")

    bucket = boto3.client("s3")
    stored = bucket.get_object(Bucket=s3.removeprefix("s3://"), Key="tenfold/runs/in-images/result.json")
    result = json.loads(stored["Body"].read())
    rungs = {rung["id"]: rung["top1"]["value"] for rung in result["evaluation"]["rungs"]}
    assert result["verdict"]["alias"] == "champion"
    assert rungs["student"] > 0.9
    assert rungs["student"] > rungs["baseline"]

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("tenfold")
    runs = client.search_runs([experiment.experiment_id], "tags.`tenfold.run_id` = 'in-images'")
    tasks = {run.data.tags["tenfold.task"]: run for run in runs}
    assert set(tasks) == TASKS | {"pipeline"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(client.get_metric_history(tasks["pretrain"].info.run_id, "loss")) > 10
    version = client.get_model_version_by_alias(result["verdict"]["model"], "champion")
    assert version.tags["tenfold.run_id"] == "in-images"
    (report,) = root.glob("*/finish/report")
    assert b"<html" in report.read_bytes()
