"""SimCLRv2's ResNet: post-activation, stride on the 3x3 convolution, a projection in each group's first block.

Source: "Big Self-Supervised Models are Strong Semi-Supervised Learners", section 2, and the official
implementation's ``resnet.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.models.encoder import Encoder
from tenfold.models.norm import BatchNorm

#: depth → (blocks of each group, bottleneck blocks?). 10 is no network of the papers; it serves small data.
LAYOUTS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias; padding is symmetric, as the official code pads strided convolutions.

    Initialised from a normal of variance 1/fan_in truncated at two standard deviations (TF's
    VarianceScaling(scale=1, fan_in)).
    """
    kind = Pointwise if kernel == 1 and stride > 1 else nn.Conv2d
    layer = kind(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    std = (inputs * kernel * kernel) ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    return layer


class Pointwise(nn.Conv2d):
    """1x1 convolution with a stride, as one without of every so many pixels: the same numbers.

    oneDNN's gradient of a strided one writes outside its memory on processors with AVX2 and no more, where images have
    fewer than 8 channels and lie channels-last (oneDNN's issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, F, H/stride, W/stride) of (N, C, H, W)."""
        down, right = self.stride
        return F.conv2d(x[:, :, ::down, ::right], self.weight)


class SamePool(nn.Module):
    """3x3 max-pooling with stride 2 and TensorFlow's SAME padding: below and right only, for even sizes."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W) to (N, C, ceil(H/2), ceil(W/2))."""
        height, width = x.shape[-2:]
        down, right = (1 if height % 2 == 0 else 2), (1 if width % 2 == 0 else 2)
        top, left = down // 2, right // 2
        return F.max_pool2d(F.pad(x, (left, right - left, top, down - top), value=float("-inf")), 3, 2)


class SelectiveKernel(nn.Module):
    """Selective-kernel convolution: two 3x3 branches, weighted channel by channel by what the image shows.

    A 3x3 convolution to 2F channels with batch norm and ReLU gives the branches u and v (F channels each).
    With s the spatial mean of u + v, z = relu(norm(W s)) of max(F/16, 32) channels, and a pair of logits a
    channel from z, the output is softmax-weighted: a·u + (1 - a)·v.

    Source: SimCLRv2, section 2 (a light variant of Li et al. 2019); the official ``resnet.py``, ``sk_ratio`` 1/16.
    """

    RATIO, LEAST = 1 / 16, 32

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        middle = max(int(channels * self.RATIO), self.LEAST)
        self.branches = nn.Sequential(
            conv(channels, 2 * channels, 3, stride), BatchNorm(2 * channels), nn.ReLU(inplace=True)
        )
        self.attention = nn.Sequential(
            conv(channels, middle, 1), BatchNorm(middle), nn.ReLU(inplace=True), conv(middle, 2 * channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, F, H/stride, W/stride) of (N, F, H, W)."""
        u, v = self.branches(x).chunk(2, dim=1)
        pooled = (u + v).mean(dim=(2, 3), keepdim=True)
        first, second = self.attention(pooled).chunk(2, dim=1)
        weight = torch.sigmoid(first - second)  # the softmax of two
        return torch.lerp(v, u, weight)


class PooledShortcut(nn.Module):
    """2x2 average-pooling ahead of a shortcut's 1x1 convolution (ResNet-D), with TensorFlow's padding.

    Stride 2 pads odd sizes by a row and column of zeros below and right, which count; stride 1 pads alike,
    but what is padded does not count, which equals repeating the last row and column.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        padded = F.pad(x, (0, 1, 0, 1)) if self.stride == 2 else F.pad(x, (0, 1, 0, 1), mode="replicate")
        return F.avg_pool2d(padded, 2, self.stride)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels at the end.

    With ``selective`` the bottleneck's 3x3 is a :class:`SelectiveKernel` and shortcuts are pooled.
    """

    def __init__(
        self, inputs: int, channels: int, stride: int, *, bottleneck: bool, project: bool, zero: bool, selective: bool
    ) -> None:
        super().__init__()
        outputs = channels * 4 if bottleneck else channels
        if not project:
            self.shortcut: nn.Module = nn.Identity()
        elif selective:
            self.shortcut = nn.Sequential(PooledShortcut(stride), conv(inputs, outputs, 1), BatchNorm(outputs))
        else:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), BatchNorm(outputs))
        relu = nn.ReLU(inplace=True)
        if bottleneck:
            middle: list[nn.Module] = [conv(channels, channels, 3, stride), BatchNorm(channels), relu]
            self.body = nn.Sequential(
                conv(inputs, channels, 1), BatchNorm(channels), relu,
                *([SelectiveKernel(channels, stride)] if selective else middle),
                conv(channels, outputs, 1), BatchNorm(outputs, zero=zero),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                conv(inputs, channels, 3, stride), BatchNorm(channels), relu,
                conv(channels, channels, 3), BatchNorm(channels, zero=zero),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + body(x))."""
        out: Tensor = self.body(x)
        out += self.shortcut(x)  # in place: nobody else reads it
        return F.relu(out, inplace=True)


class ResNet(Encoder):
    """Images (N, ``channels``, H, W) in [0, 1] to features (N, ``features``)."""

    def __init__(
        self, depth: int = 18, width: float = 1.0, *, selective_kernels: bool = False, small_images: bool = True,
        zero_gain: bool = True, channels: int = 3,
    ) -> None:  # fmt: skip
        """Build the network.

        Args:
            depth: a key of :data:`LAYOUTS`.
            width: multiplier of all channel counts.
            selective_kernels: SK convolutions in bottlenecks, pooled shortcuts, three 3x3 in the stem.
            small_images: a 3x3 stem with stride 1 and no pooling, whatever the other settings (CIFAR).
            zero_gain: blocks start as their shortcut.
            channels: of the images.
        """
        super().__init__()
        blocks, bottleneck = LAYOUTS[depth]
        stem = max(1, round(64 * width))
        if small_images:
            first: list[nn.Module] = [conv(channels, stem, 3)]
        elif selective_kernels:
            half, relu = max(1, stem // 2), nn.ReLU(inplace=True)
            first = [conv(channels, half, 3, 2), BatchNorm(half), relu, conv(half, half, 3), BatchNorm(half), relu,
                     conv(half, stem, 3)]  # fmt: skip
        else:
            first = [conv(channels, stem, 7, 2)]
        self.stem = nn.Sequential(nn.Sequential(*first), BatchNorm(stem), nn.ReLU(inplace=True))
        self.pool = nn.Identity() if small_images else SamePool()
        groups, inputs = [], stem
        for number, count in enumerate(blocks):
            inner, layers = max(1, round(64 * 2**number * width)), []
            for position in range(count):
                block = Block(
                    inputs, inner, 2 if number > 0 and position == 0 else 1, bottleneck=bottleneck,
                    project=position == 0, zero=zero_gain, selective=selective_kernels,
                )  # fmt: skip
                layers.append(block)
                inputs = inner * (4 if bottleneck else 1)
            groups.append(nn.Sequential(*layers))
        self.groups = nn.Sequential(*groups)
        self.features, self.layers = inputs, len(groups) + 2

    def layer_of(self, name: str) -> int:
        """See :class:`Encoder`: the stem is layer 0, then a layer a group."""
        parts = name.split(".")
        return int(parts[1]) + 1 if parts[0] == "groups" else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the spatial mean of the last group's output."""
        pooled: Tensor = self.groups(self.pool(self.stem(x))).mean(dim=(2, 3))
        return pooled


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
