"""F25: credentials of the environment and of addresses are found nowhere that a run leaves anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from conftest import free_port

TENFOLD = str(Path(sys.executable).parent / "tenfold")
SECRET, PASSWORD = "planted-secret-key-7f3a", "planted-password-91c2"
TINY = """
preset: digits
data: {split: {test_fraction: 0.3}}
augment: {image_size: 8}
pretrain: {network: {depth: 10, width: 0.0625}, batch_size: 64, steps: 2}
finetune: {steps: 2}
self_train: {enabled: false}
pseudo_label: {views: 1}
distill: {network: {depth: 10, width: 0.0625}, batch_size: 64, steps: 2}
baseline: {steps: 2}
evaluate: {bootstrap: 100}
promote: {model: secretive}
"""


@pytest.fixture
def environment(s3: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A shell in which credentials are planted, as a careless user would set it up."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("TENFOLD_STORE", f"{s3}/tenfold")
    return {**os.environ, "TENFOLD_HOME": str(home), "TENFOLD_RUN_ID": "run"}


def call(environment: dict[str, str], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TENFOLD, *arguments], env={**environment, **variables}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip


def leaks(*places: Path | bytes) -> list[str]:
    """Return where a planted word is found; folders are searched whole."""
    words = (SECRET.encode(), PASSWORD.encode())
    found = [
        data[:80].decode(errors="replace") for data in places if isinstance(data, bytes) for w in words if w in data
    ]
    for folder in (place for place in places if isinstance(place, Path)):
        files = (path for path in folder.rglob("*") if path.is_file())
        found += [str(path) for path in files if any(word in path.read_bytes() for word in words)]
    return found


def stored(bucket: str) -> list[bytes]:
    client = boto3.client("s3")
    keys = [item["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            for item in page.get("Contents", [])]  # fmt: skip
    assert keys
    return [key.encode() + b"\n" + client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys]


@pytest.mark.slow  # part of `make test-faults`
def test_a_run_with_credentials_in_its_environment_and_addresses_leaves_none_of_them_anywhere(
    environment: dict[str, str], s3: str, home: Path, tmp_path: Path,
    start_mlflow: Callable[[Path, int], subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    folder, port = tmp_path / "mlflow", free_port()
    folder.mkdir()
    server = start_mlflow(folder, port)
    try:
        (tmp_path / "tiny.yaml").write_text(TINY)
        address = f"http://me:{PASSWORD}@127.0.0.1:{port}"
        done = call(environment, "run", "--config", str(tmp_path / "tiny.yaml"), MLFLOW_TRACKING_URI=address)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (home / "runs" / "run" / "report.html").is_file()
    assert (folder / "mlflow.db").stat().st_size > 0
    told = (done.stdout + done.stderr).encode()
    assert leaks(told, *stored(urlsplit(s3).netloc), home, folder) == []


@pytest.mark.parametrize(
    ("variables", "source"),
    [
        ({}, f"s3://me:{PASSWORD}@bucket/images"),
        ({"AWS_ENDPOINT_URL": f"http://me:{PASSWORD}@127.0.0.1:9"}, "s3://bucket/images"),
        ({"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:9"}, "digits"),
        ({"AWS_ENDPOINT_URL": f"no address {SECRET}"}, "s3://bucket/images"),
    ],
)
def test_errors_about_addresses_name_them_without_their_passwords(
    variables: dict[str, str], source: str, environment: dict[str, str], home: Path
) -> None:
    done = call(environment, "run", "--set", f"data.source={source}", **variables)
    assert done.returncode in {2, 75}, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert leaks((done.stdout + done.stderr).encode(), home) == []


def test_a_compiled_pipeline_holds_nothing_of_the_environment_that_it_was_compiled_in(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = call(environment, "compile", "--output", str(tmp_path / "out" / "pipeline.yaml"),
                MLFLOW_TRACKING_URI=f"http://me:{PASSWORD}@mlflow:5000")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"TENFOLD_STORE" in (tmp_path / "out" / "pipeline.yaml").read_bytes()
    assert leaks(tmp_path / "out", (done.stdout + done.stderr).encode()) == []
    assert environment["TENFOLD_STORE"].encode() not in (tmp_path / "out" / "pipeline.yaml").read_bytes()
