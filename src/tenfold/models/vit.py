"""Vision transformers (Dosovitskiy et al. 2021), as MAE and Semi-ViT build them, on timm's blocks.

Tensors have timm's names, so that checkpoints of MAE, Semi-ViT and timm fit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block as Transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tenfold.errors import ConfigError
from tenfold.models.encoder import Encoder

#: What the papers' images are normalised by.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Of all layer norms, as in MAE.
EPSILON = 1e-6

LayerNorm: Any = partial(nn.LayerNorm, eps=EPSILON)


class Size(NamedTuple):
    """Width of the tokens, blocks, heads of the attention."""

    width: int
    depth: int
    heads: int


#: The papers' sizes; tiny is DeiT's.
SIZES = {
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "huge": Size(1280, 32, 16),
}


class ViT(Encoder):
    """Images (N, ``channels``, S, S) in [0, 1] to features (N, width).

    The features are the layer norm of the patches' mean, or the class token's (``pool``).
    """

    def __init__(
        self, vit: str = "small", *, width: int | None = None, depth: int | None = None, heads: int | None = None,
        patch: int = 16, pool: Literal["average", "token"] = "average",
        positions: Literal["learned", "fixed"] = "learned", image_size: int = 224, channels: int = 3,
    ) -> None:  # fmt: skip
        """Build the network.

        Args:
            vit: a key of :data:`SIZES`.
            width: of the tokens, instead of the size's.
            depth: blocks, instead of the size's.
            heads: of the attention, instead of the size's.
            patch: side of a patch in pixels.
            pool: what the features are of.
            positions: embeddings of the patches' places: learned, or sines and cosines that stay as they are.
            image_size: side of the images; whole patches.
            channels: of the images.
        """
        super().__init__()
        size = SIZES[vit]
        size = Size(width or size.width, depth or size.depth, heads or size.heads)
        self.features, self.layers, self.pool = size.width, size.depth + 2, pool
        self.network = VisionTransformer(
            img_size=image_size, patch_size=patch, in_chans=channels, num_classes=0, embed_dim=size.width,
            depth=size.depth, num_heads=size.heads, global_pool="avg" if pool == "average" else "token",
            norm_layer=LayerNorm,
        )  # fmt: skip
        if positions == "fixed":
            self.network.pos_embed = nn.Parameter(sine_positions(size.width, image_size // patch), requires_grad=False)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def normalised(self, x: Tensor) -> Tensor:
        """Return images as the network wants them."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        pooled: Tensor = self.network(self.normalised(x))
        return pooled

    def tokens(self, images: Tensor, seen: Tensor) -> Tensor:
        """Return the last block's tokens (N, 1 + K, width) of normalised images of which only some patches are seen.

        Args:
            images: (N, channels, S, S).
            seen: places (N, K) of the patches, counted row by row.
        """
        network = self.network
        assert network.pos_embed is not None
        assert network.cls_token is not None
        tokens = network.patch_embed(images) + network.pos_embed[:, 1:]
        tokens = tokens.gather(1, seen[:, :, None].expand(-1, -1, tokens.shape[2]))
        token = network.cls_token + network.pos_embed[:, :1]
        tokens = network.blocks(torch.cat([token.expand(len(tokens), -1, -1), tokens], 1))
        normed: Tensor = network.norm(tokens)
        return normed

    def layer_of(self, name: str) -> int:
        """See :class:`Encoder`: the embeddings are layer 0, then a layer a block; what pools goes with the head."""
        parts = name.removeprefix("network.").split(".")
        if parts[0] in {"cls_token", "pos_embed", "patch_embed"}:
            return 0
        return int(parts[1]) + 1 if parts[0] == "blocks" else self.layers - 1

    def kept(self) -> set[str]:
        """See :class:`Encoder`: the class token and the positions."""
        return {"network.cls_token", "network.pos_embed"}


def sine_positions(width: int, side: int, *, prefix: int = 1) -> Tensor:
    r"""Return fixed embeddings (1, prefix + side², width) of the places of a square of patches.

    Half of the width tells the column, half the row, each by sines and then cosines of
    :math:`p \cdot 10000^{-2i/d}`; ``prefix`` tokens ahead have zeros. Source: MAE's ``pos_embed.py``.
    """
    quarter = width // 4
    rates = 10000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (column, row)]
    parts = [part for angle in angles for part in (np.sin(angle), np.cos(angle))]
    table = np.concatenate([np.zeros((prefix, width)), np.concatenate(parts, 1)])
    return torch.from_numpy(table).float()[None]


def resized_positions(positions: Tensor, side: int, *, prefix: int = 1) -> Tensor:
    """Return learned embeddings (1, prefix + n², width) for ``side``² patches, by bicubic interpolation as MAE does."""
    ahead, square = positions[:, :prefix], positions[:, prefix:]
    old = round(square.shape[1] ** 0.5)
    if old == side:
        return positions
    grid = square.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([ahead, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def set_drop_path(network: nn.Module, rate: float) -> None:
    """Let the blocks of transformers drop their branches with a probability that grows from 0 to ``rate`` with depth.

    Stochastic depth (Huang et al. 2016); an image's branch at a time, in training mode alone.

    Raises:
        ConfigError: the network has no blocks that could.
    """
    found = 0
    for module in network.modules():
        blocks: Any = getattr(module, "blocks", None)
        if isinstance(blocks, nn.Sequential) and all(isinstance(block, Transformer) for block in blocks):
            for block, probability in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
                found += 1
                for name in ("drop_path1", "drop_path2"):
                    setattr(block, name, DropPath(probability) if probability > 0 else nn.Identity())
    if not found:
        raise ConfigError("drop_path is for vision transformers whose blocks are timm's plain ones; set it to 0")
