r"""Masked autoencoders (He et al. 2022): a transformer sees a quarter of the patches, a small decoder draws the rest.

Tensors have the official names below ``encoder.network`` and the decoder's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tenfold.models.vit import LayerNorm, ViT, sine_positions


class Masking(NamedTuple):
    """Which patches are seen.

    Attributes:
        seen: places (N, K) of the patches that the encoder is given.
        back: for each place (N, L) where it stands in the decoder's input: the seen ones first, then the masked.
        masked: 1 where a patch (N, L) is hidden.
    """

    seen: Tensor
    back: Tensor
    masked: Tensor


def masking(noise: Tensor, share: float) -> Masking:
    """Hide ``share`` of the patches of each image: those with the largest ``noise`` (N, L)."""
    count = noise.shape[1]
    shown = int(count * (1 - share))
    order = noise.argsort(1)
    back = order.argsort(1)
    return Masking(order[:, :shown], back, (back >= shown).to(noise.dtype))


def patches(images: Tensor, side: int) -> Tensor:
    """Return the patches (N, L, side² · C) of images (N, C, H, W), row by row; a patch's order is row, column, C."""
    count, channels, height, width = images.shape
    cut = images.reshape(count, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, side * side * channels)


class MaskedAutoencoder(nn.Module):
    """Encoder, and a decoder for pretraining alone.

    ``norm`` is the encoder's last layer norm where its features are not a token's: a classifier on the patches' mean
    has a fresh norm of its own, as in Semi-ViT. Positions are sines and cosines while this is trained; a classifier
    whose positions are learned begins with these.
    """

    def __init__(self, encoder: ViT, width: int = 512, depth: int = 8, heads: int = 16) -> None:
        """Put a decoder of that width, depth and number of heads on ``encoder``."""
        super().__init__()
        self.encoder = encoder
        network = encoder.network
        self.side = network.patch_embed.patch_size[0]
        grid = network.patch_embed.grid_size[0]
        network.fc_norm.requires_grad_(False)  # it has no part in this
        network.pos_embed = nn.Parameter(sine_positions(encoder.features, grid), requires_grad=False)
        self.norm = nn.Identity() if encoder.pool == "token" else LayerNorm(encoder.features)
        self.decoder_embed = nn.Linear(encoder.features, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder_pos_embed = nn.Parameter(sine_positions(width, grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, 4.0, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)
        )
        self.decoder_norm = LayerNorm(width)
        self.decoder_pred = nn.Linear(width, self.side**2 * encoder.mean.shape[1])
        for module in self.modules():
            if isinstance(module, nn.Linear):  # as the official code, the encoder's alike
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        embed = network.patch_embed.proj.weight
        nn.init.xavier_uniform_(embed.data.view(len(embed), -1))
        assert network.cls_token is not None
        nn.init.normal_(network.cls_token, std=0.02)

    def encode(self, images: Tensor, seen: Tensor) -> Tensor:
        """Return the encoder's tokens (N, 1 + K, width) of normalised images, of which it sees the places ``seen``."""
        normed: Tensor = self.norm(self.encoder.tokens(images, seen))
        return normed

    def decode(self, tokens: Tensor, back: Tensor) -> Tensor:
        """Return the pixels (N, L, side² · C) that the decoder draws from the encoder's tokens."""
        tokens = self.decoder_embed(tokens)
        hidden = self.mask_token.expand(len(tokens), back.shape[1] + 1 - tokens.shape[1], -1)
        drawn = torch.cat([tokens[:, 1:], hidden.to(tokens.dtype)], 1)
        drawn = drawn.gather(1, back[:, :, None].expand(-1, -1, drawn.shape[2]))
        drawn = torch.cat([tokens[:, :1], drawn], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            drawn = block(drawn)
        pixels: Tensor = self.decoder_pred(self.decoder_norm(drawn))
        return pixels[:, 1:]

    def forward(self, images: Tensor, mask: Masking) -> Tensor:
        """Return the drawn pixels of normalised images."""
        return self.decode(self.encode(images, mask.seen), mask.back)
