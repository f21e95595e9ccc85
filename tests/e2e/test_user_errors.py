"""A user's mistake gets one clear message and a status above 0, before any stage works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TENFOLD = str(Path(sys.executable).parent / "tenfold")


def call(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "TENFOLD_HOME": str(home), "COLUMNS": "200", **environment}
    done = subprocess.run(
        [TENFOLD, *arguments], env=surroundings, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(home.glob("runs/*/events.jsonl")), "a stage worked"
    return done


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def test_mistyped_keys_are_all_told_at_once_with_suggestions(home: Path) -> None:
    done = call(home, "run", "--set", "distil.temperature=0.5", "--set", "pretrain.batchsize=3", "--set", "seed=x")
    assert done.returncode == 2
    assert "did you mean 'distill'?" in done.stderr
    assert "did you mean 'batch_size'?" in done.stderr
    assert "seed:" in done.stderr


def test_an_unknown_preset_names_the_ones_there_are(home: Path) -> None:
    done = call(home, "run", "--preset", "digit")
    assert done.returncode == 2
    assert "did you mean 'digits'?" in done.stderr


def test_a_missing_folder_is_named(home: Path) -> None:
    done = call(home, "run", "--set", "data.source=/no/such/folder")
    assert done.returncode == 2
    assert "there is no folder /no/such/folder" in done.stderr


def test_a_label_list_with_unknown_names_tells_their_number_and_the_first_ten(home: Path, images: Path) -> None:
    listed = images.parent / "labels.txt"
    listed.write_text("".join(f"a/missing{number:02d}.png\n" for number in range(12)) + "a/0.png\n")
    done = call(
        home, "run", "--preset", "images", "--set", f"data.source={images}", "--set", f"data.labels.file={listed}"
    )
    assert done.returncode == 2
    assert "names 12 images that are not there" in done.stderr
    assert "a/missing09.png" in done.stderr
    assert "a/missing10.png" not in done.stderr
    assert "2 more" in done.stderr


def test_an_unreachable_bucket_is_told_with_what_to_check(home: Path) -> None:
    done = call(
        home, "run", "--set", "data.source=s3://bucket/images", AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hidden-secret", AWS_DEFAULT_REGION="us-east-1",
    )  # fmt: skip
    assert done.returncode == 2
    assert "s3://bucket/images: the server cannot be reached; check AWS_ENDPOINT_URL" in done.stderr
    assert "hidden-secret" not in done.stderr


def test_an_unreachable_mlflow_server_is_told(home: Path, images: Path) -> None:
    done = call(home, "plan", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "check MLFLOW_TRACKING_URI" in done.stderr


def test_predict_without_a_model_says_how_to_get_one(home: Path, images: Path) -> None:
    done = call(home, "predict", str(next(images.rglob("*.png"))))
    assert done.returncode == 2
    assert "no model 'tenfold-student' is registered" in done.stderr


def test_doctor_finds_this_machine_well_and_names_what_is_not(home: Path) -> None:
    done = call(home, "doctor")
    assert done.returncode == 0, done.stdout
    done = call(home, "doctor", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "start the server, or unset MLFLOW_TRACKING_URI" in done.stdout
