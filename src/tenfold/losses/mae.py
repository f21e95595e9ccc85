"""The loss of masked autoencoders (He et al. 2022)."""

from __future__ import annotations

from torch import Tensor


def masked_error(drawn: Tensor, wanted: Tensor, masked: Tensor, *, normalise: bool) -> Tensor:
    r"""Mean squared error of the pixels of the patches that were hidden, and of no other.

    .. math:: L = \frac{\sum_{il} m_{il} \, \frac1P \lVert y_{il} - \hat y_{il} \rVert^2}{\sum_{il} m_{il}}

    Args:
        drawn: pixels (N, L, P) that the decoder drew.
        wanted: those of the image.
        masked: m (N, L), 1 where a patch was hidden.
        normalise: each patch's pixels to mean 0 and variance 1 first: :math:`(y - \mu) / \sqrt{s^2 + 10^{-6}}` with the
            unbiased variance.
    """
    if normalise:
        mean, variance = wanted.mean(2, keepdim=True), wanted.var(2, keepdim=True)
        wanted = (wanted - mean) / (variance + 1e-6).sqrt()
    error = (drawn - wanted).square().mean(2)
    return (error * masked).sum() / masked.sum()
