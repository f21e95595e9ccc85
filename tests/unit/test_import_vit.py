"""Transformers of MAE, Semi-ViT and timm as encoders of ours."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.errors import DataError
from tenfold.models.imported import import_vit
from tenfold.models.saved import load_pretrained
from tenfold.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT, resized_positions, sine_positions

TENFOLD = str(Path(sys.executable).parent / "tenfold")
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def reference(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7, **settings)
    assert isinstance(model, VisionTransformer)
    return model.eval()


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_timm_transformer_s_features_are_the_same_ones(suffix: str, tmp_path: Path) -> None:
    theirs, file = reference(), tmp_path / f"weights.{suffix}"
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    if suffix == "pth":
        torch.save({"model": state}, file)  # as MAE's files have it
    else:
        save_file(state, file)
    description = import_vit(file, tmp_path / "encoder", "token", 64)
    assert description.network.model_dump(exclude_none=True) == {
        "vit": "tiny", "patch": 16, "pool": "token", "positions": "learned",
    }  # fmt: skip
    model, _ = load_pretrained(tmp_path / "encoder")
    x = images(64)
    with torch.no_grad():
        wanted = theirs.forward_features((x - MEAN) / STD)[:, 0]
        assert torch.allclose(model.encoder(x), wanted, atol=1e-5)


def test_for_other_images_positions_are_interpolated_and_sines_made_anew(tmp_path: Path) -> None:
    theirs = reference()
    state = dict(theirs.state_dict())
    save_file(state, tmp_path / "learned.safetensors")
    import_vit(tmp_path / "learned.safetensors", tmp_path / "a", "average", 96)
    held = load_pretrained(tmp_path / "a")[0].encoder
    assert isinstance(held, ViT)
    assert held.network.pos_embed is not None
    assert torch.allclose(held.network.pos_embed, resized_positions(state["pos_embed"], 6))
    state["pos_embed"] = sine_positions(192, 4)
    save_file(state, tmp_path / "fixed.safetensors")
    import_vit(tmp_path / "fixed.safetensors", tmp_path / "b", "average", 96)
    held = load_pretrained(tmp_path / "b")[0].encoder
    assert isinstance(held, ViT)
    assert held.network.pos_embed is not None
    assert torch.equal(held.network.pos_embed, sine_positions(192, 6))
    assert held.network.pos_embed.requires_grad  # fine-tuning moves them, as in Semi-ViT


def test_a_file_with_a_decoder_and_no_classifier_is_taken_without_it(tmp_path: Path) -> None:
    state = {k: v for k, v in reference().state_dict().items() if not k.startswith("head")}
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192)}
    save_file(state, tmp_path / "mae.safetensors")
    import_vit(tmp_path / "mae.safetensors", tmp_path / "encoder", "average", 64)
    encoder = load_pretrained(tmp_path / "encoder")[0].encoder
    norm = encoder.get_submodule("network.fc_norm")
    assert isinstance(norm, torch.nn.LayerNorm)
    assert torch.equal(norm.weight, torch.ones(192))  # its own


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"blocks.0.attn.qkv.weight": None}, "lacks blocks.0.attn.qkv.weight: it holds no vision transformer"),
        ({"blocks.3.ls1.gamma": torch.ones(192)}, r"holds blocks.3.ls1.gamma: it is of another kind of transformer"),
        ({"pos_embed": torch.zeros(1, 16, 192)}, "which is no class token and a square"),
        ({"blocks.3.norm1.weight": None}, "lacks blocks.3.norm1.weight"),
        (
            {"blocks.3.norm1.weight": torch.ones(5)},
            r"blocks.3.norm1.weight has the shape \(5,\), and \(192,\) is needed",
        ),
        ({"blocks.3.norm1.weight": torch.full((192,), torch.nan)}, "holds values that are no finite numbers"),
        ({"pos_embed": torch.zeros(())}, r"pos_embed has the shape \(\), which no transformer has"),
        ({"pos_embed": torch.zeros(1, 1, 192)}, "which is no class token and a square"),
        ({"patch_embed.proj.weight": torch.zeros(())}, r"patch_embed.proj.weight has the shape \(\)"),
        ({"patch_embed.proj.weight": torch.zeros(192, 3, 0, 0)}, r"has the shape \(192, 3, 0, 0\), which no transf"),
        (
            {"blocks.12.norm1.weight": torch.ones(192)},
            r"has width 192 and 13 blocks, which is none of tiny \(192, 12\)",
        ),
    ],
)
def test_what_is_no_such_transformer_is_refused_and_nothing_is_written(
    change: dict[str, Tensor | None], told: str, tmp_path: Path
) -> None:
    state = {**reference().state_dict(), **change}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=told):
        import_vit(tmp_path / "w.safetensors", tmp_path / "encoder", "average", 64)
    assert not (tmp_path / "encoder").exists()


def test_a_training_script_s_checkpoint_is_taken_or_its_moving_average(tmp_path: Path) -> None:
    state, file = reference().state_dict(), tmp_path / "checkpoint.pth"
    mean = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": mean, "epoch": 7, "args": Namespace(lr=1e-3)}, file)
    for average, wanted in ((False, state), (True, mean)):
        made = tmp_path / f"{average}"
        import_vit(file, made, "average", 64, average=average)
        network = load_pretrained(made)[0].encoder.state_dict()
        torch.testing.assert_close(network["network.blocks.0.attn.qkv.bias"], wanted["blocks.0.attn.qkv.bias"])
    torch.save({"model": state}, file)
    with pytest.raises(DataError, match="holds no moving average of the weights"):
        import_vit(file, tmp_path / "none", "average", 64, average=True)


def test_what_another_program_wrapped_or_made_sparse_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    state, file = reference().state_dict(), tmp_path / "w.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, file)
    with pytest.raises(DataError, match=r"lacks cls_token: .* \(but module\.blocks"):
        import_vit(file, tmp_path / "encoder", "average", 64)
    torch.save({**state, "cls_token": state["cls_token"].to_sparse()}, file)
    with pytest.raises(DataError, match="cls_token is no ordinary tensor"):
        import_vit(file, tmp_path / "encoder", "average", 64)
    torch.save({name: tensor for name, tensor in state.items() if name != "norm.weight"}, file)
    with pytest.raises(DataError, match=r"lacks norm\.weight; take its features' mean instead: --vit average"):
        import_vit(file, tmp_path / "encoder", "token", 64)


def test_an_address_is_no_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["import-checkpoint", "weights.pth", "s3://bucket/encoder", "--vit", "average"]
    refusal = CliRunner().invoke(app, line).exception
    assert isinstance(refusal, DataError)
    assert "is no folder of this machine" in str(refusal)
    assert list(tmp_path.iterdir()) == []


def test_the_command_imports_it(tmp_path: Path) -> None:
    save_file(reference().state_dict(), tmp_path / "w.safetensors")
    line = [TENFOLD, "import-checkpoint", str(tmp_path / "w.safetensors"), str(tmp_path / "e"), "--vit", "average"]
    done = subprocess.run([*line, "--image-size", "60"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "images of side 60 are no whole patches of 16 pixels" in done.stderr
    done = subprocess.run([*line, "--image-size", "64"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_pretrained(tmp_path / "e")[1].image_size == 64
