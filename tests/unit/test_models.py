from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from tenfold.config import Description, EvalViewConfig, HeadConfig, ResNetConfig
from tenfold.errors import DataError
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.norm import BatchNorm
from tenfold.models.resnet import Block, ResNet, SamePool, conv, count_parameters
from tenfold.models.saved import build, file_digest, load, load_classifier, save

TINY = ResNetConfig(depth=10, width=0.125)

#: depth, width, selective kernels, small images → trainable parameters, of the official code's networks.
BACKBONES = [
    (18, 1, False, True, 11_173_056), (18, 1, False, False, 11_180_736), (18, 1, True, False, 11_199_968),
    (34, 1, False, False, 21_288_896),
    (50, 1, False, True, 23_500_352), (50, 1, False, False, 23_508_032), (50, 1, True, False, 35_215_584),
    (50, 2, False, False, 93_907_072), (50, 2, True, False, 140_306_048), (50, 4, False, False, 375_378_176),
    (101, 1, False, False, 42_500_160), (101, 1, True, False, 64_662_304),
    (101, 2, False, False, 169_771_136), (101, 2, True, False, 257_132_224),
    (152, 1, False, False, 58_143_808), (152, 1, True, False, 88_940_896),
    (152, 2, False, False, 232_253_568), (152, 2, True, False, 353_398_528),
    (152, 3, False, False, 522_329_280), (152, 3, True, False, 794_704_160),
]  # fmt: skip


@pytest.mark.parametrize(("depth", "width", "selective", "small", "expected"), BACKBONES)
def test_an_encoder_has_the_parameters_of_the_official_code(
    depth: int, width: int, selective: bool, small: bool, expected: int
) -> None:
    with torch.device("meta"):
        encoder = ResNet(depth, width, selective_kernels=selective, small_images=small)
    assert count_parameters(encoder) == expected


@pytest.mark.parametrize(
    ("depth", "selective", "small", "convolutions", "norms", "moving"),
    [(18, False, True, 21, 21, 9_728), (50, False, False, 53, 53, 53_120), (50, True, False, 87, 71, 61_824)],
)
def test_an_encoder_has_the_layers_of_the_official_code(
    depth: int, selective: bool, small: bool, convolutions: int, norms: int, moving: int
) -> None:
    with torch.device("meta"):
        encoder = ResNet(depth, 1, selective_kernels=selective, small_images=small)
    assert sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) == convolutions
    assert sum(isinstance(m, BatchNorm) for m in encoder.modules()) == norms
    statistics = [b for name, b in encoder.named_buffers() if name.endswith(("running_mean", "running_var"))]
    assert sum(b.numel() for b in statistics) == moving


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(512, 592_000), (2048, 8_659_072), (4096, 34_095_232), (6144, 76_308_608), (8192, 135_299_200)],
)
def test_a_three_layer_head_has_the_parameters_of_the_official_code(inputs: int, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(ProjectionHead(inputs)) == expected


@pytest.mark.parametrize(
    ("layers", "widths"), [(0, []), (1, [8]), (2, [24, 8]), (3, [24, 24, 8]), (4, [24, 24, 24, 8])]
)
def test_a_head_has_as_many_layers_of_the_width_that_is_asked_for(layers: int, widths: list[int]) -> None:
    head = ProjectionHead(16, layers, 8, 24)
    assert [head.width_after(layer + 1) for layer in range(layers)] == widths
    assert head.width_after(0) == 16
    h = torch.randn(4, 16)
    assert head(h).shape == (4, widths[-1] if widths else 16)
    if not layers:
        assert torch.equal(head(h), h)
    else:
        assert [norm.bias.requires_grad for norm in head.modules() if isinstance(norm, BatchNorm)] == [
            number < layers - 1 for number in range(layers)
        ]


def padded_same(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """3x3 max-pooling with stride 2 after TensorFlow's definition of SAME."""
    height, width = x.shape
    out = np.empty((-(-height // 2), -(-width // 2)))
    total_rows, total_columns = ((n_out - 1) * 2 + 3 - n for n_out, n in zip(out.shape, x.shape, strict=True))
    top, left = max(total_rows, 0) // 2, max(total_columns, 0) // 2
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            rows = slice(max(i * 2 - top, 0), i * 2 - top + 3)
            columns = slice(max(j * 2 - left, 0), j * 2 - left + 3)
            out[i, j] = x[rows, columns].max()
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (8, 7), (7, 8), (5, 12), (3, 3), (2, 2), (1, 1)])
def test_pooling_pads_as_tensorflow_does(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, *size)) - 5  # all negative: padding by 0 would win
    found = SamePool()(torch.from_numpy(x)).numpy()
    expected = np.array([[padded_same(channel) for channel in image] for image in x])
    np.testing.assert_array_equal(found, expected)


def test_pooling_of_an_even_size_differs_from_symmetric_padding() -> None:
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(SamePool()(x), nn.functional.max_pool2d(x, 3, 2, padding=1))


@pytest.mark.parametrize("depth", [10, 50])
def test_every_block_starts_as_its_shortcut(depth: int) -> None:
    blocks = [m for m in ResNet(depth, 0.125).modules() if isinstance(m, Block)]
    assert len(blocks) == {10: 4, 50: 16}[depth]
    for block in blocks:
        last = [m for m in block.body.modules() if isinstance(m, BatchNorm)]
        assert last[-1].weight.eq(0).all()
        assert all(norm.weight.eq(1).all() for norm in last[:-1])


@pytest.mark.parametrize("depth", [18, 50])
def test_the_first_block_of_each_group_alone_projects(depth: int) -> None:
    with torch.device("meta"):
        groups = ResNet(depth).groups
    assert [[isinstance(block.shortcut, nn.Identity) for block in group] for group in groups] == [
        [position > 0 for position in range(len(group))] for group in groups
    ]


@pytest.mark.parametrize(("small", "side"), [(True, 4), (False, 1)])
def test_an_encoder_shrinks_an_image_of_32_pixels_to_its_last_group(small: bool, side: int) -> None:
    encoder = ResNet(10, 0.125, small_images=small).eval()
    x = torch.rand(2, 3, 32, 32)
    assert encoder.groups(encoder.pool(encoder.stem(x))).shape == (2, encoder.features, side, side)
    assert encoder(x).shape == (2, 64)


def test_convolutions_start_with_variance_1_by_fan_in_within_two_deviations() -> None:
    torch.manual_seed(0)
    layer = conv(64, 256, 3)
    fan_in = 64 * 9
    assert layer.weight.var().item() == pytest.approx(1 / fan_in, rel=0.02)
    assert layer.weight.abs().max() <= 2 * fan_in**-0.5 / 0.8796256
    assert layer.bias is None


def tiny_head(features: int, layers: int = 3) -> ProjectionHead:
    torch.manual_seed(1)
    return ProjectionHead(features, layers, 8)


def test_the_last_norm_of_a_head_has_no_offset_to_train() -> None:
    head = tiny_head(16)
    norms = [m for m in head.modules() if isinstance(m, BatchNorm)]
    assert [norm.bias.requires_grad for norm in norms] == [True, True, False]
    assert norms[-1].bias.eq(0).all()


def test_a_projection_may_be_negative_and_what_lies_before_it_may_not() -> None:
    head = tiny_head(16)
    h = torch.rand(32, 16)
    assert head(h).min() < 0
    for layer in (1, 2):
        hidden = head.hidden(h, layer)
        assert hidden.min() == 0
        assert hidden.shape == (32, head.width_after(layer))


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_classifier_sees_what_the_head_gives_after_its_layer(layer: int) -> None:
    torch.manual_seed(0)
    encoder = ResNet(10, 0.125)
    head = tiny_head(encoder.features)
    model = SimCLRModel(encoder, head).train()
    x = torch.rand(8, 3, 16, 16)
    model(x)  # batch statistics that are not the initial ones
    model.eval()
    with torch.no_grad():
        expected = head.hidden(encoder(x), layer)
        width = head.width_after(layer)
        classifier = Classifier(encoder, head, layer, 5).eval()
        assert classifier.linear.in_features == width == {0: 64, 1: 64, 2: 64, 3: 8}[layer]
        assert torch.equal(classifier.features(x), expected)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_fresh_classifier_predicts_zero_and_keeps_no_layer_that_gets_no_gradient(layer: int) -> None:
    encoder = ResNet(10, 0.125)
    model = Classifier(encoder, tiny_head(encoder.features), layer, 5).train()
    nn.init.normal_(model.linear.weight)
    loss = nn.functional.cross_entropy(model(torch.rand(8, 3, 16, 16)), torch.arange(8) % 5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    fresh = Classifier(ResNet(10, 0.125), tiny_head(64), layer, 5)
    assert fresh(torch.rand(4, 3, 16, 16)).eq(0).all()


def classifier_description(layer: int = 1) -> Description:
    return Description(
        kind="classifier", network=TINY, head=HeadConfig(features=8), layer=layer, classes=["a", "b", "c"],
        image_size=16, evaluation=EvalViewConfig(crop_proportion=0.9),
    )  # fmt: skip


def simclr_description() -> Description:
    return Description(kind="simclr", network=TINY, head=HeadConfig(features=8), image_size=16)


@pytest.mark.parametrize("description", [simclr_description(), *(classifier_description(layer) for layer in range(4))])
def test_a_saved_network_comes_back_with_equal_outputs(tmp_path: Path, description: Description) -> None:
    torch.manual_seed(0)
    model = build(description)
    model.train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.rand(8, 3, 16, 16)
    model(x)
    model.eval()
    save(tmp_path / "model", model, description)
    again, read = load(tmp_path / "model")
    assert read.model_copy(update={"weights": None, "checksum": None}) == description
    assert not again.training
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


def test_loading_a_classifier_refuses_an_encoder(tmp_path: Path) -> None:
    save(tmp_path, build(simclr_description()), simclr_description())
    with pytest.raises(DataError, match="not a classifier"):
        load_classifier(tmp_path)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save(folder, build(classifier_description()), classifier_description())
    return folder


def declare(folder: Path) -> None:
    """Make the description name the weights that are there."""
    described = json.loads((folder / "model.json").read_text())
    described |= {"weights": file_digest(folder / "model.safetensors"), "checksum": None}
    (folder / "model.json").write_text(json.dumps(described))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path, saved: Path, name: str, writer: str) -> None:
    canary = tmp_path / "canary"
    if writer == "pickle":
        (saved / name).write_bytes(pickle.dumps(_Canary(canary)))
        pickle.loads((saved / name).read_bytes())
        assert canary.exists(), "the pickle is hostile indeed"
        canary.unlink()
    else:
        torch.save({"weight": _Canary(canary)}, saved / name)
    with pytest.raises(DataError, match=r"damaged|fetch them again"):
        load(saved)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("keep", [0, 5, 200])
def test_a_cut_file_is_refused(saved: Path, name: str, keep: int) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:keep])
    with pytest.raises(DataError, match=r"damaged|fetch them again"):
        load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        load(saved)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone"):
        load(tmp_path / "gone")


def test_weights_of_another_network_are_refused(saved: Path, tmp_path: Path) -> None:
    wider = classifier_description().model_copy(update={"network": ResNetConfig(depth=10, width=0.25)})
    save(tmp_path / "wider", build(wider), wider)
    shutil.copy(tmp_path / "wider" / "model.safetensors", saved)
    with pytest.raises(DataError, match="fetch them again"):
        load(saved)
    declare(saved)
    with pytest.raises(DataError, match="do not fit"):
        load(saved)


def test_weights_that_lack_a_tensor_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["linear.bias"]
    save_file(weights, saved / "model.safetensors")
    declare(saved)
    with pytest.raises(DataError, match="do not fit"):
        load(saved)


@pytest.mark.parametrize(
    "change", [{"kind": "other"}, {"layer": 4}, {"kind": "simclr", "head": None}, {"surprise": 1}, {"network": 3}]
)
def test_a_description_that_fits_no_network_is_refused(saved: Path, change: dict[str, object]) -> None:
    described = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**described, **change}))
    with pytest.raises(DataError):
        load(saved)


def test_a_description_that_was_changed_behind_the_weights_is_refused(saved: Path) -> None:
    described = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(described, indent=4, sort_keys=True))
    load(saved)
    (saved / "model.json").write_text(json.dumps({**described, "classes": described["classes"][::-1]}))
    with pytest.raises(DataError, match="was changed after it was written"):
        load(saved)


def test_a_description_of_an_earlier_version_that_has_no_checksum_is_read(saved: Path) -> None:
    described = json.loads((saved / "model.json").read_text())
    del described["checksum"]
    (saved / "model.json").write_text(json.dumps(described))
    load(saved)


def test_what_is_said_of_a_network_does_not_change_its_weights_name(saved: Path, tmp_path: Path) -> None:
    model, description = load(saved)
    save(tmp_path / "other", model, description.model_copy(update={"exported": "e" * 64, "classes": ["x", "y", "z"]}))
    assert file_digest(tmp_path / "other" / "model.safetensors") == file_digest(saved / "model.safetensors")


@pytest.mark.parametrize("channels", [2, 4, 6, 8])
def test_a_strided_pointwise_convolution_has_the_gradients_of_torchs(channels: int) -> None:
    """Of few channels, last in memory, where oneDNN's own gradient spoils the memory."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, channels, 15, 16, generator=generator, dtype=torch.float64)
    layer = conv(channels, 2 * channels, 1, 2)
    found = []
    for dtype in (torch.float32, torch.float64):
        x = images.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = layer.weight.detach().to(dtype).requires_grad_()
        if dtype == torch.float32:
            out = torch.func.functional_call(layer, {"weight": weight}, (x,))
        else:
            out = torch.nn.functional.conv2d(x, weight, stride=2)  # oneDNN has no float64
        out.square().sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        found.append([each.double() for each in (out.detach(), x.grad, weight.grad)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
