"""Vision transformers and masked autoencoders against the official code's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.config import Length, OptimizerConfig, ViTConfig
from tenfold.losses.mae import masked_error
from tenfold.models.heads import Classifier
from tenfold.models.mae import MaskedAutoencoder, masking, patches
from tenfold.models.saved import build_encoder
from tenfold.models.vit import ViT, resized_positions, set_drop_path, sine_positions
from tenfold.optim.build import build_optimizer, rate_at

HERE = Path(__file__).parent
SIZES = {"small": 16, "base": 16, "large": 16, "huge": 14}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def told(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def tensors(oracle: Any, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(oracle[name]) for name in oracle.files if name.startswith(prefix)
    }


def shell(size: str, **settings: Any) -> ViT:
    """Return a network of the papers' size that takes no memory."""
    with torch.device("meta"):
        encoder = build_encoder(ViTConfig(vit=size, patch=SIZES[size], **settings), image_size=224)
    assert isinstance(encoder, ViT)
    return encoder


def small(pool: str, depth: int = 3) -> ViT:
    return ViT("tiny", width=32, depth=depth, heads=4, patch=8, image_size=32, pool=pool)


def count(model: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize(("case", "pool"), [("gp", "average"), ("cls", "token")])
def test_a_transformers_features_and_logits_are_the_official_ones(case: str, pool: str, arrays: Any) -> None:
    oracle = arrays("vit_tiny_forward")
    model = Classifier(small(pool), None, 0, 7)
    state = tensors(oracle, f"{case}/sd/")
    assert isinstance(model.encoder, ViT)
    linear = {name.removeprefix("head."): state.pop(name) for name in ("head.weight", "head.bias")}
    model.encoder.network.load_state_dict(state)
    model.linear.load_state_dict(linear)
    model.eval()
    images = torch.from_numpy(oracle[f"{case}/x"]) * model.encoder.std + model.encoder.mean  # theirs are normalised
    torch.testing.assert_close(model.features(images), torch.from_numpy(oracle[f"{case}/features"]), **TOLERANCE)
    torch.testing.assert_close(model(images), torch.from_numpy(oracle[f"{case}/logits"]), **TOLERANCE)


def test_fixed_and_resized_positions_are_the_official_ones(arrays: Any) -> None:
    oracle = arrays("vit_tiny_forward")
    for width, side in ((768, 14), (32, 4)):
        expected = torch.from_numpy(oracle[f"sincos_{width}_{side}"])
        torch.testing.assert_close(sine_positions(width, side)[0], expected, rtol=1e-5, atol=1e-6)
    there = sine_positions(32, 4)
    torch.testing.assert_close(resized_positions(there, 6), torch.from_numpy(oracle["interp_4to6"]), **TOLERANCE)
    assert resized_positions(there, 4) is there


@pytest.mark.parametrize("size", SIZES)
def test_networks_of_the_papers_sizes_have_the_official_number_of_parameters(size: str) -> None:
    known = told("semivit_vit_info")[f"vit_{size}_patch{SIZES[size]}"]
    for pool, key in (("average", "n_params"), ("token", "n_params_cls_token")):
        encoder = shell(size, pool=pool)
        assert count(encoder) + 1000 * (encoder.features + 1) == known[key]


@pytest.mark.parametrize("size", SIZES)
def test_layers_learn_and_decay_in_the_official_groups(size: str) -> None:
    known = told("semivit_vit_info")[f"vit_{size}_patch{SIZES[size]}"]
    with torch.device("meta"):
        model = Classifier(shell(size), None, 0, 1000)
    config = OptimizerConfig(name="adamw", layer_decay=0.75, decay_classifier=True, weight_decay=0.05)
    groups = build_optimizer(config, [model], 256).param_groups
    assert len({(group["share"], group["weight_decay"]) for group in groups}) == known["n_groups"]
    assert sorted({group["share"] for group in groups}) == pytest.approx(known["scales"], rel=1e-6)
    decayed = [len(group["params"]) for group in groups if group["weight_decay"]]
    spared = [len(group["params"]) for group in groups if not group["weight_decay"]]
    assert (sum(decayed), sum(spared)) == (known["decay_tensors"], known["no_decay_tensors"])
    assert all(group["lr"] == pytest.approx(group["share"] * config.learning_rate) for group in groups)


@pytest.mark.parametrize("size", SIZES)
def test_paths_are_dropped_with_the_official_probabilities(size: str) -> None:
    known = told("semivit_vit_info")[f"vit_{size}_patch{SIZES[size]}"]
    encoder = shell(size)
    set_drop_path(encoder, 0.1)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.network.blocks]
    assert rates == pytest.approx(known["drop_path_rates"], abs=1e-6)


def test_the_learning_rate_follows_the_official_schedule() -> None:
    per_epoch = 1000
    length = Length(100 * per_epoch, 5 * per_epoch)
    for epoch, rate in told("semivit_vit_info")["lr_schedule_lr1e-3_min1e-6_w5_e100"].items():
        found = rate_at(round(float(epoch) * per_epoch), length, 1e-3, 1e-6)
        assert found == pytest.approx(rate, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_a_masked_autoencoders_pass_and_loss_are_the_official_ones(share: float, normalise: bool, arrays: Any) -> None:
    oracle = arrays("mae_tiny_forward")
    model = MaskedAutoencoder(small("token", depth=2), width=24, depth=2, heads=4)
    state = tensors(oracle, "sd/")
    own = model.state_dict()
    named = {name if name in own else f"encoder.network.{name}": tensor for name, tensor in state.items()}
    missing, foreign = model.load_state_dict(named, strict=False)
    assert (sorted(missing), foreign) == (["encoder.mean", "encoder.std"], [])
    images, mask = torch.from_numpy(oracle["x"]), masking(torch.from_numpy(oracle["noise"]), share)
    case = f"npl{int(normalise)}_mr{share}"
    assert torch.equal(mask.back, torch.from_numpy(oracle[f"{case}/ids_restore"]))
    assert torch.equal(mask.masked, torch.from_numpy(oracle[f"{case}/mask"]))
    wanted = patches(images, model.side)
    torch.testing.assert_close(wanted, torch.from_numpy(oracle["patchify"]))
    latent = model.encode(images, mask.seen)
    torch.testing.assert_close(latent, torch.from_numpy(oracle[f"{case}/latent"]), **TOLERANCE)
    drawn = model.decode(latent, mask.back)
    torch.testing.assert_close(drawn, torch.from_numpy(oracle[f"{case}/pred"]), **TOLERANCE)
    loss = masked_error(drawn, wanted, mask.masked, normalise=normalise)
    assert loss.item() == pytest.approx(float(oracle[f"{case}/loss"]), rel=1e-5)


@pytest.mark.parametrize("size", ["base", "large", "huge"])
@pytest.mark.parametrize("pool", ["token", "average"])
def test_masked_autoencoders_have_the_official_number_of_parameters(size: str, pool: str) -> None:
    known = told("mae_info")[f"mae_vit_{size}_patch{SIZES[size]}"]
    with torch.device("meta"):
        model = MaskedAutoencoder(shell(size, pool=pool, positions="fixed"))
    unused = 0 if pool == "token" else count(model.encoder.network.fc_norm)
    assert count(model) - unused == known["n_params_total"]
    assert count(model, trained=True) == known["n_params_trainable"]
