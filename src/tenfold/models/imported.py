"""Networks that others trained, written as ours."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.config import Description, HeadConfig, TimmConfig, ViTConfig
from tenfold.errors import DataError
from tenfold.models.heads import ProjectionHead, SimCLRModel
from tenfold.models.official import OfficialCheckpoint
from tenfold.models.saved import save
from tenfold.models.timm_encoder import TimmEncoder, read_tensors
from tenfold.models.vit import SIZES, ViT, resized_positions, sine_positions


def import_official(
    source: Path, output: Path, average: bool, from_head_layer: int | None, classes: list[str] | None, image_size: int
) -> Description:
    """Write a checkpoint of the official SimCLR repository as a network of ours; see :class:`OfficialCheckpoint`."""
    checkpoint = OfficialCheckpoint(source)
    model, description = checkpoint.load(
        average=average, from_head_layer=from_head_layer, classes=classes, image_size=image_size
    )
    _write(output, model, description)
    return description


def import_timm(source: Path, name: str, output: Path, image_size: int) -> Description:
    """Write a timm model with local weights as an encoder of ours, with no projection head."""
    encoder = TimmEncoder(name)
    encoder.load_weights(source)
    head = HeadConfig(layers=0)
    description = Description(kind="simclr", network=TimmConfig(timm=name), head=head, image_size=image_size)
    _write(output, SimCLRModel(encoder, ProjectionHead(encoder.features, 0)), description)
    return description


#: Tensors that every vision transformer has, and how many dimensions each has.
_DIMENSIONS = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.attn.qkv.weight": 2}


def import_vit(
    source: Path, output: Path, pool: Literal["average", "token"], image_size: int, *, average: bool = False
) -> Description:
    """Write a transformer of MAE, Semi-ViT or timm as an encoder of ours, for images of side ``image_size``.

    Size and patches are read off the tensors; positions are interpolated where the number of patches is another, and
    sines made anew. They are trained on, as in Semi-ViT. A decoder or classifier is left out; so is the last layer norm
    with ``average``, whose own one is fresh unless the file has it (``fc_norm``). Images are normalised by ImageNet's
    mean and deviation, as MAE's are. ``average`` takes the moving average of the weights, where the file has one.

    Raises:
        DataError: it holds something else, or a transformer of no size that the papers have.
    """
    state = read_tensors(source, average=average)
    for name, dimensions in _DIMENSIONS.items():
        if name not in state:
            held = ", ".join(sorted(state)[:3]) or "nothing"
            raise DataError(
                f"{source} lacks {name}: it holds no vision transformer of MAE, Semi-ViT or timm (but {held}, …)"
            )
        if state[name].ndim != dimensions or 0 in state[name].shape:
            raise DataError(f"{source}: {name} has the shape {tuple(state[name].shape)}, which no transformer has")
    width, patch = state["pos_embed"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name)))
    sizes = [name for name, size in SIZES.items() if (size.width, size.depth) == (width, depth)]
    if not sizes:
        known = ", ".join(f"{name} ({size.width}, {size.depth})" for name, size in SIZES.items())
        raise DataError(f"{source} has width {width} and {depth} blocks, which is none of {known}")
    if image_size % patch:
        raise DataError(f"images of side {image_size} are no whole patches of {patch} pixels; give --image-size")
    positions = state["pos_embed"]
    square = round((positions.shape[1] - 1) ** 0.5)
    if not square or 1 + square**2 != positions.shape[1]:
        raise DataError(
            f"{source}: pos_embed has the shape {tuple(positions.shape)}, which is no class token and a square"
        )
    fixed = sine_positions(width, square)
    sines = fixed.shape == positions.shape and torch.allclose(fixed, positions.float(), atol=1e-5)
    side = image_size // patch
    state["pos_embed"] = sine_positions(width, side) if sines else resized_positions(positions.float(), side)
    network = ViTConfig.model_validate({"vit": sizes[0], "patch": patch, "pool": pool})
    encoder = ViT(**network.model_dump(), image_size=image_size)
    _fill(encoder.network, state, source)
    head = HeadConfig(layers=0)
    description = Description(kind="simclr", network=network, head=head, image_size=image_size)
    _write(output, SimCLRModel(encoder, ProjectionHead(encoder.features, 0)), description)
    return description


def _fill(network: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Put the file's tensors in; a norm that it lacks stays fresh, its decoder, classifier and other norm are left."""
    mine = network.state_dict()
    left = ("decoder_", "mask_token", "head.", "norm.", "fc_norm.")
    foreign = sorted(name for name in set(state) - set(mine) if not name.startswith(left))
    if foreign:
        raise DataError(f"{source} holds {foreign[0]}: it is of another kind of transformer; --timm NAME may know it")
    for name, tensor in mine.items():
        if name not in state:
            if name.startswith("fc_norm."):
                continue
            cure = "; take its features' mean instead: --vit average" if name.startswith("norm.") else ""
            raise DataError(f"{source} lacks {name}{cure}")
        given = state[name]
        if given.shape != tensor.shape:
            raise DataError(f"{source}: {name} has the shape {tuple(given.shape)}, and {tuple(tensor.shape)} is needed")
        if not (given.is_floating_point() and bool(given.isfinite().all())):
            raise DataError(f"{source}: {name} holds values that are no finite numbers")
        mine[name] = given.float()
    network.load_state_dict(mine)


def _write(output: Path, model: nn.Module, description: Description) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        save(aside, model, description)
        aside.chmod(0o755)
        if output.is_dir():
            output.rmdir()
        aside.rename(output)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
