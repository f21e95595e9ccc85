"""What a hostile tester found: each is one clear message now, before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from tenfold.components.preflight.stage import Request, check
from tenfold.config import Description, HeadConfig, ResNetConfig, compose, load_config
from tenfold.data.sources import open_source
from tenfold.errors import ConfigError, DataError, StorageError
from tenfold.models.imported import import_timm
from tenfold.models.saved import build, save

TENFOLD = str(Path(sys.executable).parent / "tenfold")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("promote.model=a/b@c", "promote.model"), ("promote.model=", "must be text"),
        ("promote.model=[a]", "must be text"),
        ("name.x=1", "must be text"), ("seed=true", "must be a whole number"),
        ("pretrain.seed=99999999999999999999999999", "pretrain.seed"),
        ("augment.contrastive.crop.area=[0,0]", "begins above 0"),
        ("augment.contrastive.crop.area=[0.1,50]", "at most 1"),
        ("augment.contrastive.crop.aspect=[0,1]", "begins above 0"), ("evaluate.bootstrap=1000000000000", "bootstrap"),
    ],
)  # fmt: skip
def test_a_value_that_would_fail_hours_later_is_refused_at_once(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("digits", assignments=[assignment])


def test_a_configuration_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "loop.yaml"
    file.write_text("pretrain: &a {memory: *a}\n")
    with pytest.raises(ConfigError, match="refers to itself"):
        compose(None, file, "", [])


def test_a_preset_key_without_a_name_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset:\nseed: 3\n")
    assert compose(None, file, "", []) == (None, {"seed": 3})


def images(folder: Path) -> Path:
    for number in range(12):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(path)
    return folder


def resolve(source: Path, **values: Any) -> Any:
    return Request("digits", yaml.safe_dump({"data": {"source": str(source), **values}}), {}).resolve()


def test_a_label_list_of_one_class_is_refused_by_preflight(tmp_path: Path) -> None:
    listed = tmp_path / "labels.txt"
    listed.write_text("a/0.png\na/2.png\n")
    with pytest.raises(DataError, match=r"shows 1 class"):
        check(resolve(images(tmp_path / "images"), labels={"file": str(listed)}))


def test_a_label_list_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "labels.csv"
    listed.write_text("path,label\na/0.png,cat\nb/1.png,dog\na/0.png,dog\n")
    with pytest.raises(DataError, match=r"gives a/0\.png two labels: cat and dog"):
        check(resolve(images(tmp_path / "images"), labels={"file": str(listed)}))


def test_a_link_to_itself_in_the_source_is_named(tmp_path: Path) -> None:
    source = images(tmp_path / "images")
    (source / "a" / "self.png").symlink_to(source / "a" / "self.png")
    with pytest.raises(StorageError, match=r"self\.png"):
        list(open_source(str(source)).list())


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    description = Description(
        kind="simclr", network=ResNetConfig(depth=10, width=0.125), head=HeadConfig(layers=2, features=8), image_size=16
    )
    save(tmp_path / "encoder", build(description), description)
    return tmp_path / "encoder"


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_an_encoder_whose_weights_are_gone_or_changed_is_refused_by_preflight(encoder: Path, damage: str) -> None:
    weights = encoder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    text = yaml.safe_dump({"pretrain": {"init": {"path": str(encoder)}}})
    with pytest.raises(DataError, match="no weights" if damage == "missing" else "not those that its model.json names"):
        Request("digits", text, {}).resolve()


@pytest.mark.parametrize("content", ["empty", "keys", "nan", "int8"])
def test_timm_weights_that_are_no_weights_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "weights.pt"
    state: dict[Any, Any] = timm.create_model("resnet10t").state_dict()
    first = next(iter(state))
    if content == "keys":
        state = {1: state[first]}
    elif content == "nan":
        state[first] = state[first] * float("nan")
    elif content == "int8":
        state[first] = state[first].to(torch.int8)
    torch.save(state, file)
    if content == "empty":
        file.write_bytes(b"")
    with pytest.raises(DataError) as raised:
        import_timm(file, "resnet10t", tmp_path / "encoder", 64)
    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "encoder").exists()


def test_importing_touches_nothing_beside_its_output(tmp_path: Path) -> None:
    (tmp_path / "encoder.part").mkdir()
    (tmp_path / "encoder.part" / "thesis.txt").write_text("mine")
    file = tmp_path / "weights.pt"
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    import_timm(file, "resnet10t", tmp_path / "encoder", 64)
    assert (tmp_path / "encoder.part" / "thesis.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {"encoder", "encoder.part", "weights.pt"}


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["compile", "--output", "pipeline.txt"], {}, "must end in .yaml"),
        (["compile", "--output", "/proc/x/y.yaml"], {}, "/proc/x"),
        (["compile", "--nodes", "2"], {}, "--nodes: a pod that trains alone has none of these"),
        (["compile", "--launcher", "trainjob", "--memory-per-node", "64GB"], {}, "--memory-per-node: Value"),
        (["plan"], {"TENFOLD_DEVICE": "gpu"}, "TENFOLD_DEVICE is 'gpu'"),
        (["plan"], {"TENFOLD_HOME": "/proc/x"}, "/proc/x"),
        (["import-checkpoint", "x", "y", "--classes", "names.txt"], {}, "give --from-head-layer too"),
        (["import-checkpoint", "x", "y", "--classes", "n.txt", "--from-head-layer", "0"], {}, "cannot be read as text"),
    ],
)  # fmt: skip
def test_a_user_s_mistake_gets_a_message_and_no_traceback(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done = subprocess.run(
        [TENFOLD, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60,
        env={**os.environ, **environment, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
