"""A Docker engine and the project's two images, built from this checkout."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def restricted() -> dict[str, Any]:
    """What Pod Security's ``restricted`` and a read-only root file system come to, in Docker's words."""
    return {"user": "10001:10001", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
            "tmpfs": {"/tmp": "rw,mode=1777,size=8g"}}  # fmt: skip


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The Docker engine of the environment; where none answers, one that is started for these tests (needs root)."""
    if _listens(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")):
        client = docker.from_env()
        yield client
        client.close()
        return
    daemon = shutil.which("dockerd")
    assert daemon, "no Docker engine answers, and there is no dockerd to start: install docker.io"
    folder = Path(os.environ.get("TENFOLD_DOCKER", "/var/tmp/tenfold-docker"))  # kept: the next build is then short
    folder.mkdir(parents=True, exist_ok=True)
    address = f"unix://{folder}/docker.sock"
    command = [daemon, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
               "--pidfile", str(folder / "pid"), "--host", address]  # fmt: skip
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    os.environ["DOCKER_HOST"] = address  # for docker's own program, and for KFP's runner
    try:
        client = _answering(address, process, folder / "dockerd.log")
        yield client
        client.close()
    finally:
        del os.environ["DOCKER_HOST"]
        process.terminate()
        process.wait(60)


def _listens(address: str) -> bool:
    """Tell whether anybody is at an address; a client that asks nobody leaves a socket open."""
    if not address.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(address.removeprefix("unix://")) == 0


def _answering(address: str, process: subprocess.Popen[bytes], log: Path) -> docker.DockerClient:
    """Return a client as soon as the engine listens."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if _listens(address):
            return docker.DockerClient(address)
        time.sleep(0.2)
    raise AssertionError(f"the Docker engine did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def images(engine: docker.DockerClient) -> dict[str, str]:
    """Build both images; return target → name. kfp.local wants 'python' in it."""
    base = os.environ.get("BASE_IMAGE") or _local_base(engine)
    names = {target: f"tenfold-python-{target}:test" for target in ("cpu", "gpu")}
    for target, name in names.items():
        command = ["make", "--silent", "image", f"TARGET={target}", f"IMAGE={name}", f"BASE_IMAGE={base}",
                   "BUILD_OPTIONS=--network=host", f"DOCKER={_client()}"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return names


def _client() -> str:
    """Return Debian's client where it is there, which knows how its own engine builds."""
    return shutil.which("docker", path="/usr/bin") or "docker"


def _local_base(engine: docker.DockerClient) -> str:
    """Return a base made of Debian's packages: what stands in where no registry can be reached."""
    name = "tenfold-base:bookworm"
    if not any(name in image.tags for image in engine.images.list()):
        done = subprocess.run([ROOT / "docker" / "local_base.sh", name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return name
