"""What the tests of the commands for Kubeflow Pipelines share: a small API server, a compiled pipeline, the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kfp import TOKEN, FakeKubeflow, serve

from tenfold.pipelines.compile import compile_pipeline
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.stages import Images
from tenfold.pipelines.upload import upload

TENFOLD = str(Path(sys.executable).parent / "tenfold")
IMAGES = Images("registry/cpu@sha256:" + "a" * 64, "registry/gpu@sha256:" + "b" * 64)
NAME = "tenfold-semi-supervised"
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubeflow]:
    for name in [name for name in os.environ if name.startswith(("KF_PIPELINES_", "KFP_", "KUBE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's own settings and the kubeconfig are looked for there
    for made in serve():
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", made.address)
        monkeypatch.setenv("KFP_EXISTING_TOKEN", TOKEN)
        yield made


@pytest.fixture
def call(home: Path) -> Call:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        surroundings = {**os.environ, "COLUMNS": "200", **environment}
        done = subprocess.run(
            [TENFOLD, *arguments], env=surroundings, capture_output=True, text=True, timeout=120, check=False
        )
        assert "Traceback" not in done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(path, IMAGES)
    return path


@pytest.fixture
def uploaded(kubeflow: FakeKubeflow, compiled: Path) -> str:
    return upload(Connection(), compiled).version
