"""A folder of JPEGs with damaged files among them, and the same files and the store on a real S3 server.

The method is Semi-ViT's: a transformer pretrained as a masked autoencoder, and a ResNet student of its teacher.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

TENFOLD = str(Path(sys.executable).parent / "tenfold")
pytestmark = pytest.mark.timeout(900)  # whole runs, on a machine that may be busy
TINY = """
preset: images
method: semi_vit
data: {labels: {per_class: 4}, split: {test_fraction: 0.3}, max_bad_fraction: 0.2}
augment: {image_size: 16}
pretrain:
  method: mae
  network: {vit: tiny, width: 24, heads: 3, depth: 2, patch: 4}
  mae: {decoder: {width: 16, depth: 1, heads: 2}}
  batch_size: 32
  steps: 6
finetune: {steps: 4, batch_size: 8, from_head_layer: 0, drop_path: 0.1, optimizer: {layer_decay: 0.75}}
self_train: {steps: 4, batch_size: 8, pseudo_mixup: true, mixup: 0.8, cutmix: 1.0, foreign: 0.2, align: estimated}
pseudo_label: {views: 1}
distill: {enabled: true, init: scratch, network: {depth: 10, width: 0.0625}, batch_size: 32, steps: 4}
baseline: {steps: 4, batch_size: 8}
evaluate: {bootstrap: 200}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes and blobs in two classes whose names sort otherwise on S3; five odd files."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(80):
        name = ("a-b", "a")[number % 2]
        wave = np.sin(np.arange(20) * (0.6 if number % 2 else 1.8))[:, None, None]
        pixels = 128 + 90 * wave + rng.normal(0, 20, (20, 20, 3))
        path = folder / name / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    whole = (folder / "a" / "01.jpg").read_bytes()
    (folder / "a" / "empty.jpg").write_bytes(b"")
    (folder / "a" / "cut.jpg").write_bytes(whole[: len(whole) * 9 // 10])
    (folder / "a" / "page.jpg").write_text("<!DOCTYPE html><html>not found</html>")
    Image.open(folder / "a" / "03.jpg").convert("CMYK").save(folder / "a" / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65536, (20, 20), dtype=np.uint16)).save(folder / "a-b" / "deep.png")
    return folder


def run(home: Path, source: str, **environment: str) -> dict[str, Any]:
    home.mkdir(parents=True, exist_ok=True)
    config = home / "tiny.yaml"
    config.write_text(TINY)
    done = subprocess.run(
        [TENFOLD, "run", "--config", str(config), "--set", f"data.source={source}"],
        env={**os.environ, "TENFOLD_HOME": str(home), "TENFOLD_RUN_ID": "run", "TENFOLD_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    students = list((home / "kfp").glob("*/distill/student/model.safetensors"))
    assert len(students) == 1
    return {
        "dataset": json.loads((students[0].parent / "lineage.json").read_text())["dataset"],
        "weights": hashlib.sha256(students[0].read_bytes()).hexdigest(),
        "report": (home / "runs" / "run" / "report.html").read_text(),
    }


@pytest.mark.slow
def test_where_nothing_is_distilled_the_self_trained_teacher_is_what_the_run_comes_to(
    images: Path, local: dict[str, Any]
) -> None:
    home = local["home"]
    done = subprocess.run(
        [TENFOLD, "run", "--config", str(home / "tiny.yaml"), "--set", f"data.source={images}",
         "--set", "distill={enabled: false}"],
        env={**os.environ, "TENFOLD_HOME": str(home), "TENFOLD_RUN_ID": "alone", "TENFOLD_THREADS": "1"},
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((home / "store" / "runs" / "alone" / "result.json").read_text())
    assert result["evaluation"]["rungs"][-1]["title"] == "self-trained teacher"
    assert {"model.json", "model.safetensors", "model.pt2"} <= {path.name for path in (home / "mlartifacts").rglob("*")}


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("local") / "home"
    return {**run(home, str(images)), "home": home}


@pytest.mark.slow
def test_damaged_files_are_quarantined_with_their_reasons_and_the_run_completes(local: dict[str, Any]) -> None:
    for path, reason in {
        "a/empty.jpg": "empty file", "a/cut.jpg": "truncated", "a/page.jpg": "a web page (HTML)",
    }.items():  # fmt: skip
        assert path in local["report"]
        assert reason in local["report"]
    assert "cmyk.jpg" not in local["report"]
    assert "deep.png" not in local["report"]


@pytest.mark.slow
def test_the_same_images_on_s3_give_the_same_dataset_digest_and_the_same_student(
    local: dict[str, Any], images: Path, s3: str, tmp_path: Path
) -> None:
    client, bucket = boto3.client("s3"), s3.removeprefix("s3://")
    for path in images.rglob("*.*"):
        client.upload_file(str(path), bucket, f"images/{path.relative_to(images)}")
    far = run(tmp_path / "home", f"{s3}/images", TENFOLD_STORE=f"{s3}/store")
    assert far["dataset"].startswith(f"{s3}/store/datasets/")
    assert far["dataset"].rpartition("/")[2] == local["dataset"].rpartition("/")[2]
    assert far["weights"] == local["weights"]
