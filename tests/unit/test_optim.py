from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tenfold.config import Length, OptimizerConfig
from tenfold.errors import ConfigError
from tenfold.models.encoder import Encoder
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.mae import MaskedAutoencoder
from tenfold.models.resnet import ResNet
from tenfold.models.vit import ViT
from tenfold.optim.build import build_optimizer, peak_rate, rate_at
from tenfold.optim.lars import LARS

Floats = NDArray[np.float64]


def lars_reference(
    w: Floats, grads: list[Floats], rates: list[float], momentum: float, decay: float, eta: float, adapt: bool
) -> Floats:
    """LARS with classic momentum, as the official code's docstring tells it."""
    buffer = np.zeros_like(w)
    for g, rate in zip(grads, rates, strict=True):
        trust = 1.0
        if adapt:
            g = g + decay * w
            sizes = np.linalg.norm(w), np.linalg.norm(g)
            trust = eta * sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
        buffer = momentum * buffer + rate * trust * g
        w = w - buffer
    return w


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_equals_the_reference_over_five_steps(decay: float) -> None:
    rng = np.random.default_rng(0)
    starts = {"weight": rng.normal(size=(4, 3)), "zero": np.zeros((2, 2)), "still": rng.normal(size=5),
              "bias": rng.normal(size=4)}  # fmt: skip
    grads = [{name: rng.normal(size=start.shape) for name, start in starts.items()} for _ in range(5)]
    for step in grads:
        step["still"] = np.zeros(5)
    rates = [0.0, 0.5, 1.0, 0.7, 0.2]
    parameters = {name: nn.Parameter(torch.from_numpy(start.copy())) for name, start in starts.items()}
    adapted = [parameters[name] for name in ("weight", "zero", "still")]
    groups = [{"params": adapted}, {"params": [parameters["bias"]], "adapt": False, "weight_decay": 0.0}]
    optimizer = LARS(groups, 0.1, 0.9, decay, 0.02)
    for step, rate in zip(grads, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(step[name].copy())
        optimizer.step()
    for name, parameter in parameters.items():
        expected = lars_reference(starts[name], [step[name] for step in grads], rates, 0.9, decay, 0.02, name != "bias")
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_lars_with_a_zero_gradient_and_no_decay_leaves_the_weight_alone() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    LARS([weight], 1.0, 0.9, 0.0).step()
    assert weight.tolist() == [1, 1, 1]


def test_lars_passes_over_a_parameter_without_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    LARS([used, unused], 1.0, 0.9, 0.1).step()
    assert unused.tolist() == [1, 1]
    assert used[0] < 1


def test_lars_goes_on_from_its_state() -> None:
    def steps(optimizer: LARS, weight: nn.Parameter, count: int) -> None:
        for _ in range(count):
            weight.grad = weight.detach() * 0.3 + 1
            optimizer.step()

    straight = nn.Parameter(torch.ones(3))
    optimizer = LARS([straight], 0.5, 0.9, 0.01)
    steps(optimizer, straight, 2)
    resumed = nn.Parameter(straight.detach().clone())
    other = LARS([resumed], 0.5, 0.9, 0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, straight, 3)
    steps(other, resumed, 3)
    assert torch.equal(straight, resumed)


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.3), ("linear", 0.6), ("sqrt", 0.3 * math.sqrt(512))])
def test_the_peak_rate_scales_with_the_batch(scaling: str, expected: float) -> None:
    config = OptimizerConfig.model_validate({"learning_rate": 0.3, "scaling": scaling})
    assert peak_rate(config, 512) == pytest.approx(expected)


def test_the_paper_s_pretraining_rate_is_6_4() -> None:
    assert peak_rate(OptimizerConfig(learning_rate=0.1, scaling="sqrt"), 4096) == pytest.approx(6.4)


def test_the_rate_rises_in_a_line_from_0_and_falls_in_a_cosine_to_0() -> None:
    rates = [rate_at(step, Length(100, 10), 2.0) for step in range(101)]
    assert rates[:11] == pytest.approx([0.2 * step for step in range(11)])
    assert rates[55] == pytest.approx(1.0)
    assert rates[10 + 30] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi / 3)))
    assert rates[100] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_without_warmup_the_first_step_has_the_peak_rate() -> None:
    assert rate_at(0, Length(10, 0), 2.0) == 2.0


def test_a_run_that_is_all_warmup_has_a_finite_rate() -> None:
    assert [rate_at(step, Length(2, 2), 1.0) for step in range(2)] == [0.0, 0.5]


def names_by_group(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("name", "decayed"),
    [("lars", {"kernels", "classifier"}), ("sgd", {"kernels", "classifier", "biases"}), ("adamw", {"kernels"})],
)
def test_each_optimizer_decays_what_the_official_code_decays(name: str, decayed: set[str]) -> None:
    encoder = ResNet(10, 0.125)
    model = Classifier(encoder, ProjectionHead(encoder.features, 3, 8), 2, 5)
    config = OptimizerConfig.model_validate({"name": name, "weight_decay": 0.01})
    optimizer = build_optimizer(config, [model], 64)
    everything = {n for n, _ in model.named_parameters()}
    kinds = {"classifier": {"linear.weight"}, "biases": {"linear.bias"}}
    kinds["kernels"] = {n for n, p in model.named_parameters() if p.ndim > 1} - kinds["classifier"]
    kinds["norms"] = everything - set().union(*kinds.values())
    assert {"head.layers.0.1.weight", "encoder.stem.1.bias"} <= kinds["norms"]
    found = set()
    for group, names in zip(optimizer.param_groups, names_by_group(optimizer, model), strict=True):
        (kind,) = [kind for kind, members in kinds.items() if members == names]
        assert group["weight_decay"] == (0.01 if kind in decayed else 0.0)
        assert group.get("adapt", kind == "kernels") == (kind == "kernels")
        found |= names
    assert found == everything


def test_layers_of_a_resnet_learn_slower_the_further_they_are_from_the_head() -> None:
    encoder = ResNet(10, 0.125)
    model = Classifier(encoder, None, 0, 5)
    optimizer = build_optimizer(OptimizerConfig(name="adamw", layer_decay=0.5, learning_rate=1.0), [model], 64)
    rates = {
        name: group["lr"]
        for group, names in zip(optimizer.param_groups, names_by_group(optimizer, model), strict=True)
        for name in names
    }
    assert (rates["linear.weight"], rates["encoder.stem.0.0.weight"]) == (1.0, 0.5**5)
    for number in range(4):
        found = {rate for name, rate in rates.items() if name.startswith(f"encoder.groups.{number}.")}
        assert found == {0.5 ** (4 - number)}


def test_the_class_token_decays_in_masked_autoencoding_and_not_in_a_classifier() -> None:
    encoder = ViT("tiny", width=24, heads=3, depth=1, patch=4, image_size=16)
    coder = MaskedAutoencoder(encoder, width=16, depth=1, heads=2)
    for module, name, decays in (
        (coder, "encoder.network.cls_token", True),
        (Classifier(encoder, None, 0, 5), "encoder.network.cls_token", False),
    ):  # fmt: skip
        optimizer = build_optimizer(OptimizerConfig(name="adamw", weight_decay=0.05), [module], 64)
        (decay,) = [
            group["weight_decay"]
            for group, names in zip(optimizer.param_groups, names_by_group(optimizer, module), strict=True)
            if name in names
        ]
        assert (decay > 0) == decays


def test_rates_by_layer_are_refused_for_an_encoder_that_counts_none() -> None:
    class Plain(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.dense = 4, nn.Linear(3, 4)

    with pytest.raises(ConfigError, match="layer_decay needs a network whose layers are known"):
        build_optimizer(OptimizerConfig(layer_decay=0.5), [Classifier(Plain(), None, 0, 2)], 64)


def test_the_head_s_fixed_offset_is_not_given_to_the_optimizer() -> None:
    model = SimCLRModel(ResNet(10, 0.125), ProjectionHead(64, 3, 8))
    given = set().union(*names_by_group(build_optimizer(OptimizerConfig(), [model], 64), model))
    assert "head.layers.2.1.weight" in given
    assert "head.layers.2.1.bias" not in given
    assert given == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_optimizer_with_and_without_momentum_lowers_a_loss(name: str, momentum: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    nn.init.normal_(model.weight)
    config = OptimizerConfig.model_validate({"name": name, "momentum": momentum, "learning_rate": 0.01})
    optimizer = build_optimizer(config, [model], 64)
    x = torch.randn(32, 4)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
