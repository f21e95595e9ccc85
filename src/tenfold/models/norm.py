"""Batch normalisation as the official SimCLR code has it: global over ranks, biased moving variance.

PyTorch's own keeps the unbiased variance, and its SyncBatchNorm refuses tensors on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.ranks import mean, world_size

#: Whether a part of the forward pass is being computed a second time, so that its averages are there already.
_again = False


@contextmanager
def computed_again() -> Iterator[None]:
    """Leave the moving averages alone: this forward pass repeats one for the sake of the backward pass."""
    global _again
    before, _again = _again, True
    try:
        yield
    finally:
        _again = before


class BatchNorm(nn.Module):
    r"""Normalise each channel by the batch's mean and variance, taken over all ranks.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    In training the moving averages become (1 - momentum)·old + momentum·batch, with the biased variance
    (TensorFlow's decay of 0.9 is a momentum of 0.1); in evaluation they are what normalises.

    Args:
        channels: C of inputs (N, C) or (N, C, H, W).
        zero: start the gain at 0, so that a residual block starts as its shortcut.
        offset: False fixes beta at 0 (last layer of a projection head).
        eps: epsilon.
        momentum: of the moving averages.

    With ``across`` set to False each rank normalises by its own part of the batch, and :func:`average_statistics`
    keeps the moving averages equal.

    Source: the official ``resnet.py`` (``BATCH_NORM_EPSILON``, ``global_bn``).
    """

    def __init__(
        self, channels: int, *, zero: bool = False, offset: bool = True, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.across = eps, momentum, True
        self.weight = nn.Parameter(torch.zeros(channels) if zero else torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=offset)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, in its shape."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if self.across and world_size() > 1:
            y, mean, variance = _global_norm(x, self.weight, self.bias, self.eps)
        else:
            mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            y = F.batch_norm(x, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            count = x.numel() // x.shape[1]
            variance = variance * ((count - 1) / count)  # what F.batch_norm tells is unbiased
        if not _again:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
        normed: Tensor = y
        return normed

    def extra_repr(self) -> str:
        """Say how many channels there are."""
        return str(len(self.weight))


def average_statistics(module: nn.Module) -> None:
    """Make the moving averages of ``module``'s batch norms the mean of all ranks', by one collective.

    The variance within the ranks' parts is what is averaged; that between their means is left out.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm) and norm.training and not norm.across]
    if not norms or world_size() == 1:
        return
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    averaged = torch.split(mean(torch.cat(buffers)), [len(buffer) for buffer in buffers])
    torch._foreach_copy_(buffers, list(averaged))


class _GlobalNorm(torch.autograd.Function):
    """Batch norm over all ranks' samples, with one collective forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        count, kind = x.numel() // x.shape[1], weight.dtype
        room = torch.zeros_like(weight), torch.zeros_like(weight)  # for moving averages that nobody asks for
        # a tenth of the time that torch.var_mean takes
        local_mean, local_variance = torch.batch_norm_update_stats(x, *room, 1.0)
        # float64, in which the difference of two squares is exact enough
        local_mean = local_mean.double()
        sums = [local_mean, local_variance + local_mean**2, torch.ones_like(local_mean)]
        packed = torch.stack(sums).mul_(count)
        dist.all_reduce(packed)
        total = packed[2, 0].to(kind)
        wide = packed[0] / packed[2]
        variance = (packed[1] / packed[2] - wide**2).clamp_min_(0).to(kind)
        mean = wide.to(kind)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), total)
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        slope = grads[0]
        assert slope is not None
        shape = [1, -1, *[1] * (x.ndim - 2)]
        _, gain_grad, offset_grad = torch.ops.aten.native_batch_norm_backward(
            slope, x, weight, None, None, mean, scale, True, 0.0, [False, True, True]
        )
        sums = torch.stack([offset_grad, gain_grad])
        dist.all_reduce(sums)
        # dx = γ/σ · (dy - mean(dy) - x̂·mean(dy·x̂)), written as a·dy + b·x + c for each channel
        a = weight * scale
        b = -a * scale * sums[1] / total
        c = -a * sums[0] / total - b * mean
        a, b, c = (each.to(x.dtype).view(shape) for each in (a, b, c))
        dx = torch.addcmul(c, slope, a).addcmul_(x, b)
        return dx, gain_grad, offset_grad, None


#: What computes batch norm over all ranks; the compiler may have been told to leave it alone.
_computes: list[Any] = [_GlobalNorm.apply]


def _global_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
    return _computes[0](x, weight, bias, eps)


def leave_uncompiled() -> None:
    """Keep torch.compile out of the collectives; said where one compiles, since it loads the compiler."""
    _computes[0] = torch.compiler.disable(_GlobalNorm.apply)  # type: ignore[no-untyped-call]
