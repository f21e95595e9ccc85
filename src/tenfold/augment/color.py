"""The colour operations of SimCLR's views, as TensorFlow defines them, each clipped to [0, 1].

All take float images (..., channels, H, W), saturation, hue and grey of three channels. Source: the official
``data_util.py`` and ``tf.image``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)


def brightness(image: Tensor, factor: float) -> Tensor:
    """Return ``factor`` times the image."""
    return (image * factor).clamp(0, 1)


def add_brightness(image: Tensor, amount: float) -> Tensor:
    """Return the image with ``amount`` added (SimCLR's first version)."""
    return (image + amount).clamp(0, 1)


def contrast(image: Tensor, factor: float) -> Tensor:
    """Scale the distance from each channel's own mean; torchvision takes the mean of the grey image."""
    mean = image.mean(dim=(-2, -1), keepdim=True)
    return ((image - mean) * factor + mean).clamp(0, 1)


def saturation(image: Tensor, factor: float) -> Tensor:
    """Scale the saturation of hue-saturation-value, up to 1; torchvision blends with the grey image."""
    value = image.amax(-3, keepdim=True)
    chroma = value - image.amin(-3, keepdim=True)
    held = torch.where(value > 0, chroma / value.clamp_min(1e-12), 0.0)
    ratio = torch.where(held > 0, (held * factor).clamp(0, 1) / held.clamp_min(1e-12), 1.0)
    return (value - (value - image) * ratio).clamp(0, 1)


def hue(image: Tensor, turn: float) -> Tensor:
    """Turn the hue by a share ``turn`` of the circle, leaving saturation and value."""
    value = image.amax(-3, keepdim=True)
    chroma = value - image.amin(-3, keepdim=True)
    red, green, blue = image.unbind(-3)
    top, span = value.squeeze(-3), chroma.squeeze(-3).clamp_min(1e-12)
    angle = torch.where(
        red == top, (green - blue) / span, torch.where(green == top, 2 + (blue - red) / span, 4 + (red - green) / span)
    )
    angle = (angle / 6 + turn) % 1 * 6
    ramps = torch.stack([(angle - 3).abs() - 1, 2 - (angle - 2).abs(), 2 - (angle - 4).abs()], -3).clamp(0, 1)
    return (value - (1 - ramps) * chroma).clamp(0, 1)


def turn_chroma(image: Tensor, factor: float, turn: float) -> Tensor:
    """Scale chroma about luma by ``factor`` and turn it by a share ``turn`` of the circle: a matrix on RGB (YIQ)."""
    to = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]], dtype=torch.float64)
    angle = torch.tensor(2 * torch.pi * turn, dtype=torch.float64)
    cos, sin = factor * torch.cos(angle), factor * torch.sin(angle)
    mixed = torch.eye(3, dtype=torch.float64)
    mixed[1:, 1:] = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])])
    matrix = (torch.linalg.inv(to) @ mixed @ to).to(image.dtype)
    return torch.einsum("ij,...jhw->...ihw", matrix, image).clamp(0, 1)


def grey(image: Tensor) -> Tensor:
    """Return the luma in all three channels."""
    weights = torch.tensor(_GREY, dtype=image.dtype).view(3, 1, 1)
    return (image * weights).sum(-3, keepdim=True).expand_as(image).contiguous()


def blur(image: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian blur with 2·radius + 1 taps; what lies outside counts as black (TensorFlow's SAME padding)."""
    places = torch.arange(-radius, radius + 1, dtype=image.dtype)
    taps = torch.exp(-(places**2) / (2 * sigma**2))
    channels = image.shape[-3]
    taps = (taps / taps.sum()).expand(channels, 1, -1)
    across = F.conv2d(image[None], taps[:, :, None, :], padding=(0, radius), groups=channels)
    return F.conv2d(across, taps[:, :, :, None], padding=(radius, 0), groups=channels)[0]
