"""The official repository's checkpoints, read without TensorFlow."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tenfold.errors import DataError
from tenfold.models.heads import Classifier, SimCLRModel
from tenfold.models.official import OfficialCheckpoint, tf1_encoder, tf1_head

CHECKPOINTS = {
    "tf1_r18_1x_sk0": "r18_1x_sk0", "tf1_r18_1x_sk0_cifar": "r18_1x_sk0_cifar", "tf2_r18_1x_sk0": "r18_1x_sk0",
}  # fmt: skip
Weights = Callable[[str, tuple[int, ...]], NDArray[np.float64]]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by checkpoint, filled when asked for."""
    return {name: tmp_path_factory.mktemp(name) for name in CHECKPOINTS}


def folder(name: str, far: Path, unpacked: dict[str, Path]) -> Path:
    if not list(unpacked[name].rglob("*.index")):
        with tarfile.open(next((far / "ckpt").glob(f"{name}.tar.*"))) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has no filters
            archive.extractall(unpacked[name])
    return next(unpacked[name].rglob("*.index")).parent


def expected(model: SimCLRModel | Classifier, official: Weights, prefix: str = "") -> dict[str, torch.Tensor]:
    assert isinstance(model, SimCLRModel)
    found = {}
    for ours, theirs in [*tf1_encoder(model.encoder, prefix), *tf1_head(model.head, prefix)]:
        shape = tuple(model.state_dict()[ours].shape)
        turned = (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]
        tensor = torch.from_numpy(official(theirs, turned).astype(np.float32))
        found[ours] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.t()
    return found


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tensor_is_imported_bit_for_bit(
    name: str, far: Path, unpacked: dict[str, Path], official: Weights
) -> None:
    model, description = OfficialCheckpoint(folder(name, far, unpacked)).load()
    assert description.network.small_images == name.endswith("cifar")
    wanted = expected(model, official)
    for ours, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted.pop(ours, torch.zeros_like(tensor))), ours
    assert not wanted


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_imported_network_computes_the_official_activations(
    name: str, far: Path, unpacked: dict[str, Path], arrays: Any, images: Any
) -> None:
    checkpoint, oracle = OfficialCheckpoint(folder(name, far, unpacked)), arrays(f"acts_{CHECKPOINTS[name]}")
    model, _ = checkpoint.load()
    classifier, description = checkpoint.load(from_head_layer=0)
    x = torch.from_numpy(images("a", name.endswith("cifar"))).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(model(x), oracle["a/eval/proj_layer_3"], rtol=1e-4, atol=5e-4)
        np.testing.assert_allclose(classifier(x), oracle["a/eval/logits_sup"], rtol=1e-4, atol=5e-4)
    assert description.classes == [str(number) for number in range(10)]


def test_the_moving_average_is_imported_where_it_is_asked_for(
    far: Path, unpacked: dict[str, Path], official: Weights
) -> None:
    model, _ = OfficialCheckpoint(folder("tf1_r18_1x_sk0", far, unpacked)).load(average=True)
    for ours, tensor in expected(model, official, "ema_model/").items():
        assert torch.equal(model.state_dict()[ours], tensor), ours
    with pytest.raises(DataError, match="no moving average"):
        OfficialCheckpoint(folder("tf2_r18_1x_sk0", far, unpacked)).load(average=True)


def test_what_a_checkpoint_does_not_hold_is_refused(far: Path, unpacked: dict[str, Path]) -> None:
    checkpoint = OfficialCheckpoint(folder("tf1_r18_1x_sk0", far, unpacked))
    with pytest.raises(DataError, match="there is no head layer 4"):
        checkpoint.load(from_head_layer=4)
    with pytest.raises(DataError, match="2 class names are given, and the classifier has 10 outputs"):
        checkpoint.load(from_head_layer=1, classes=["cat", "dog"])


def test_a_cut_or_damaged_checkpoint_is_refused(far: Path, unpacked: dict[str, Path], tmp_path: Path) -> None:
    source = folder("tf2_r18_1x_sk0", far, unpacked)
    data = next(source.glob("*.data-*"))
    index = next(source.glob("*.index"))
    (tmp_path / index.name).write_bytes(index.read_bytes())
    with pytest.raises(DataError, match="is incomplete"):
        OfficialCheckpoint(tmp_path)
    whole = data.read_bytes()
    (tmp_path / data.name).write_bytes(whole[:-1])
    with pytest.raises(DataError, match="is cut"):
        OfficialCheckpoint(tmp_path)
    (tmp_path / data.name).write_bytes(whole[:1_000_000] + bytes([whole[1_000_000] ^ 1]) + whole[1_000_001:])
    with pytest.raises(DataError, match="does not match its checksum"):
        OfficialCheckpoint(tmp_path).load()
    (tmp_path / index.name).write_bytes(index.read_bytes()[:-9])
    with pytest.raises(DataError, match="is no index of a TensorFlow checkpoint"):
        OfficialCheckpoint(tmp_path)
    (tmp_path / index.name).write_bytes(b"")
    with pytest.raises(DataError, match="is no index of a TensorFlow checkpoint"):
        OfficialCheckpoint(tmp_path)
    with pytest.raises(DataError, match=r"holds 0 files \*\.index"):
        OfficialCheckpoint(far / "names")
