"""Our networks compute what the official ones compute, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.config import Description, HeadConfig, ResNetConfig
from tenfold.losses.nt_xent import nt_xent
from tenfold.models.heads import SimCLRModel
from tenfold.models.official import tf1_encoder, tf1_head
from tenfold.models.saved import build

NETWORKS = {
    "r18_1x_sk0": ResNetConfig(depth=18, small_images=False),
    "r18_1x_sk0_cifar": ResNetConfig(depth=18, small_images=True),
    "r18_1x_sk1": ResNetConfig(depth=18, small_images=False, selective_kernels=True),
    "r50_1x_sk0": ResNetConfig(depth=50, small_images=False),
    "r50_1x_sk1": ResNetConfig(depth=50, small_images=False, selective_kernels=True),
}
Weights = Callable[[str, tuple[int, ...]], NDArray[np.float64]]


class Official:
    """A network with the official weights: encoder, projection head, and a classifier on the encoder's output."""

    def __init__(self, tag: str, weights: Weights) -> None:
        model = build(Description(kind="simclr", network=NETWORKS[tag], head=HeadConfig(), image_size=64))
        assert isinstance(model, SimCLRModel)
        self.model = model
        self.names = dict([*tf1_encoder(model.encoder), *tf1_head(model.head)])
        state = model.state_dict()
        for ours, theirs in self.names.items():
            state[ours] = turn(weights(theirs, turned(tuple(state[ours].shape))))
        model.load_state_dict(state)
        self.linear = nn.Linear(model.encoder.features, 10)
        root, width = "head_supervised/linear_layer/dense", model.encoder.features
        self.linear.weight.data = turn(weights(f"{root}/kernel", (width, 10)))
        self.linear.bias.data = turn(weights(f"{root}/bias", (10,)))

    def endpoints(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs by the official names."""
        encoder, head = self.model.encoder, self.model.head
        first, normed, relu = encoder.stem
        found = {"initial_conv": first(x)}
        h = encoder.pool(relu(normed(found["initial_conv"].clone())))
        found["initial_max_pool"] = h
        for number, group in enumerate(encoder.groups, start=1):
            found[f"block_group{number}"] = h = group(h)
        found["final_avg_pool"] = pooled = h.mean(dim=(2, 3))
        for layer in range(1, 4):
            found[f"proj_layer_{layer}"] = head.hidden(pooled, layer)
        return found | {"logits_sup": self.linear(pooled)}


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def turn(value: NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor.t().contiguous()


def plain(tensor: Tensor) -> NDArray[np.float32]:
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).detach().numpy()


def close(found: Any, expected: Any, what: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-4, err_msg=what)


@pytest.mark.parametrize("tag", NETWORKS)
def test_every_endpoint_in_evaluation_mode_is_the_official_one(
    tag: str, arrays: Any, official: Weights, images: Any
) -> None:
    oracle, network = arrays(f"acts_{tag}"), Official(tag, official)
    network.model.eval()
    compared = 0
    for image in "abc":
        if f"{image}/eval/logits_sup" not in oracle.files:
            continue
        x = torch.from_numpy(images(image, "cifar" in tag)).permute(0, 3, 1, 2)
        with torch.no_grad():
            found = {name: plain(value) for name, value in network.endpoints(x).items()}
        for name, value in found.items():
            key = f"{image}/eval/{name}"
            if f"{key}/shape" in oracle.files:
                assert value.shape == tuple(oracle[f"{key}/shape"]), key
                close(value.mean(axis=(1, 2)), oracle[f"{key}/chan_mean"], key)
                compared += 1
            if f"{key}/img0_ch0_8" in oracle.files:
                close(value[0, :, :, :8], oracle[f"{key}/img0_ch0_8"], key)
            if key in oracle.files:
                close(value, oracle[key], key)
                compared += 1
    assert compared >= 20


@pytest.mark.parametrize("tag", NETWORKS)
def test_a_training_pass_gives_the_official_loss_gradients_and_moving_statistics(
    tag: str, arrays: Any, official: Weights, images: Any
) -> None:
    oracle, network = arrays(f"acts_{tag}"), Official(tag, official)
    model = network.model.train()
    pairs = torch.from_numpy(images("t", "cifar" in tag)).permute(0, 3, 1, 2)
    pooled = model.encoder(torch.cat([pairs[:, :3], pairs[:, 3:]]))
    z = model.head(pooled)
    # The oracle is float32; batch norm over 8 views amplifies its rounding, the more the deeper the network is.
    # Computed in float64, our own projections differ from it by as much.
    noise = 5e-4 if "r18" in tag else 1.5e-2
    np.testing.assert_allclose(plain(z), oracle["t/train/proj"], rtol=1e-4, atol=noise)
    np.testing.assert_allclose(plain(network.linear(pooled)), oracle["t/train/logits_sup"], rtol=1e-4, atol=noise)
    loss = nt_xent(z[:4], z[4:], 0.1).loss
    np.testing.assert_allclose(loss.item(), oracle["t/train/ntxent_t0.1"], rtol=1e-4 if "r18" in tag else 2e-3)

    loss.backward()  # type: ignore[no-untyped-call]
    ours = {theirs: mine for mine, theirs in network.names.items()}
    parameters = dict(model.named_parameters())
    norms = dict(zip(oracle["t/train/grad_names"].tolist(), oracle["t/train/grad_l2"].tolist(), strict=True))
    seen = set()
    for name, expected in norms.items():
        name = name.removesuffix(":0")
        gradient = parameters[ours[name]].grad
        assert gradient is not None, name
        np.testing.assert_allclose(
            float(gradient.norm()), expected, rtol=1e-2 if "r18" in tag else 3e-2, atol=1e-6, err_msg=name
        )
        seen.add(ours[name])
    assert seen == {name for name, parameter in parameters.items() if parameter.requires_grad}

    state, statistics = model.state_dict(), [key for key in oracle.files if key.startswith("t/train/after/")]
    assert len(statistics) == sum("running" in name for name in state)
    for key in statistics:
        close(state[ours[key.removeprefix("t/train/after/").removesuffix(":0")]].numpy(), oracle[key], key)
