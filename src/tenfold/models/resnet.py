"""SimCLRv2's ResNet: post-activation, stride on the 3x3 convolution, a projection in each group's first block.

Source: "Big Self-Supervised Models are Strong Semi-Supervised Learners", section 2, and the official
implementation's ``resnet.py``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

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
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    std = (inputs * kernel * kernel) ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    return layer


def norm(channels: int, *, zero: bool = False) -> nn.BatchNorm2d:
    """Batch normalisation with epsilon 1e-5 and decay .9; ``zero`` starts its gain at 0 (end of a block)."""
    layer = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    if zero:
        nn.init.zeros_(layer.weight)
    return layer


class SamePool(nn.Module):
    """3x3 max-pooling with stride 2 and TensorFlow's SAME padding: below and right only, for even sizes."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W) to (N, C, ceil(H/2), ceil(W/2))."""
        height, width = x.shape[-2:]
        down, right = (1 if height % 2 == 0 else 2), (1 if width % 2 == 0 else 2)
        top, left = down // 2, right // 2
        return F.max_pool2d(F.pad(x, (left, right - left, top, down - top), value=float("-inf")), 3, 2)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels at the end."""

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool, project: bool, zero: bool) -> None:
        super().__init__()
        outputs = channels * 4 if bottleneck else channels
        self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs)) if project else nn.Identity()
        relu = nn.ReLU(inplace=True)
        if bottleneck:
            self.body = nn.Sequential(
                conv(inputs, channels, 1), norm(channels), relu,
                conv(channels, channels, 3, stride), norm(channels), relu,
                conv(channels, outputs, 1), norm(outputs, zero=zero),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                conv(inputs, channels, 3, stride), norm(channels), relu,
                conv(channels, channels, 3), norm(channels, zero=zero),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + body(x))."""
        return F.relu(self.shortcut(x) + self.body(x))


class ResNet(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to features (N, ``features``)."""

    def __init__(self, depth: int = 18, width: float = 1.0, small_images: bool = True, zero_gain: bool = True) -> None:
        super().__init__()
        blocks, bottleneck = LAYOUTS[depth]
        stem = max(1, round(64 * width))
        self.stem = nn.Sequential(
            conv(3, stem, 3) if small_images else conv(3, stem, 7, 2), norm(stem), nn.ReLU(inplace=True),
            nn.Identity() if small_images else SamePool(),
        )  # fmt: skip
        groups, inputs = [], stem
        for number, count in enumerate(blocks):
            channels, layers = max(1, round(64 * 2**number * width)), []
            for position in range(count):
                stride = 2 if number > 0 and position == 0 else 1
                layers.append(Block(inputs, channels, stride, bottleneck, project=position == 0, zero=zero_gain))
                inputs = channels * (4 if bottleneck else 1)
            groups.append(nn.Sequential(*layers))
        self.groups = nn.Sequential(*groups)
        self.features = inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the spatial mean of the last group's output."""
        pooled: Tensor = self.groups(self.stem(x)).mean(dim=(2, 3))
        return pooled


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
