"""The images as they are: who they run as, what is in them, and that a locked-up container suffices."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import docker
import pytest
from docker.models.images import Image

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]


@pytest.fixture(params=["cpu", "gpu"])
def image(request: pytest.FixtureRequest, engine: docker.DockerClient, images: dict[str, str]) -> Image:
    return engine.images.get(images[request.param])


@pytest.fixture
def run(engine: docker.DockerClient, restricted: dict[str, Any]) -> Callable[..., str]:
    """Return what runs a command in a locked-up container without a network, and returns what it prints."""

    def command(image: str, *words: str) -> str:
        printed = engine.containers.run(image, list(words), remove=True, network_mode="none", **restricted)
        return bytes(printed).decode()

    return command


def test_an_image_runs_as_nobody_special_and_leaves_the_command_to_kfp(image: Image) -> None:
    config = image.attrs["Config"]
    assert config["User"] == "10001:10001"
    assert not config.get("Entrypoint")
    assert config["Labels"]["org.opencontainers.image.title"] == "tenfold"
    assert config["Labels"]["org.opencontainers.image.revision"] not in {"", "unknown"}
    secrets = [text for text in config["Env"] if any(word in text for word in ("KEY", "SECRET", "TOKEN", "PASSWORD"))]
    assert secrets == []


def test_what_kfp_needs_is_inside_and_nothing_is_missing_of_what_the_packages_ask_for(
    run: Callable[..., str], image: Image
) -> None:
    program = "id -u; python3 -c 'import kfp, tenfold; print(kfp.__version__)'; tenfold presets"
    told = run(image.id, "sh", "-ec", program)
    lines = told.splitlines()
    assert lines[0] == "10001"
    assert lines[1].startswith("2.")
    assert any("digits" in line for line in lines[2:])


def test_the_root_cannot_be_written_to_and_tmp_can(run: Callable[..., str], image: Image) -> None:
    told = run(image.id, "sh", "-c", "touch /opt/tenfold/x 2>/dev/null || echo locked; touch /tmp/x && echo open")
    assert told.split() == ["locked", "open"]


def test_the_small_image_has_no_torch_and_its_tasks_need_none(run: Callable[..., str], images: dict[str, str]) -> None:
    program = """
import importlib, importlib.util, json
for room in ("preflight", "shard", "promote", "finish"):
    importlib.import_module(f"tenfold.components.{room}.stage")
import tenfold.trainjob, tenfold.execution
print(json.dumps([name for name in ("torch", "torchvision", "numba", "nvidia") if importlib.util.find_spec(name)]))
"""
    assert json.loads(run(images["cpu"], "python3", "-c", program)) == []


def test_the_large_image_computes_without_a_gpu(run: Callable[..., str], images: dict[str, str]) -> None:
    program = "import torch, torchvision, nvidia.dali; print((torch.ones(2, 2) @ torch.ones(2, 2)).sum().item())"
    assert run(images["gpu"], "python3", "-c", program).strip() == "8.0"


def test_no_wheel_cache_source_or_test_came_along(run: Callable[..., str], image: Image) -> None:
    unwanted = "-name .git -o  -path '/root/.cache/*' -o -path '/source/*'"
    assert run(image.id, "sh", "-c", f"find / -xdev \\( {unwanted} \\) 2>/dev/null | head") == ""
