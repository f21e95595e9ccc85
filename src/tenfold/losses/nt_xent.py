"""NT-Xent, the contrastive loss of SimCLR (section 2.1, equation 1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.ranks import gather_with_gradient, rank


class NTXent(NamedTuple):
    """The loss and how often the positive was the most similar of the other view's images."""

    loss: Tensor
    accuracy: Tensor


def unit(z: Tensor) -> Tensor:
    """Return the rows of ``z`` scaled to length 1, with 1e-12 as the least square of a length."""
    return z * torch.rsqrt((z * z).sum(1, keepdim=True).clamp_min(1e-12))


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, reduction: Literal["per_pair", "per_view"] = "per_pair", *,
    normalize: bool = True,
) -> NTXent:  # fmt: skip
    r"""Normalised temperature-scaled cross-entropy over the 2N views of N images.

    .. math:: \ell_{i,j} = -\log \frac{\exp(\mathrm{sim}(z_i, z_j)/\tau)}
              {\sum_{k \neq i} \exp(\mathrm{sim}(z_i, z_k)/\tau)}

    With several ranks, N counts the images of all of them: each rank takes the mean over its own rows, all
    ranks' views are its negatives, and the gradient flows back to them.

    Args:
        first: projections (n, d) of the first views on this rank.
        second: projections (n, d) of the second views, row by row of the same images.
        temperature: tau.
        reduction: ``per_pair`` is the official code's mean over N of both directions' sum; ``per_view`` is
            the mean over 2N that other libraries use, half of it.
        normalize: scale the projections to length 1 (the paper's cosine similarity).

    Source: the official implementation's ``objective.py``.
    """
    a, b = (unit(first), unit(second)) if normalize else (first, second)
    every_a, every_b = gather_with_gradient(a), gather_with_gradient(b)
    target = torch.arange(len(a), device=a.device) + rank() * len(a)
    itself = F.one_hot(target, len(every_a)).bool()
    ab, ba = a @ every_b.T / temperature, b @ every_a.T / temperature
    aa = (a @ every_a.T / temperature).masked_fill(itself, -1e9)
    bb = (b @ every_b.T / temperature).masked_fill(itself, -1e9)
    loss = F.cross_entropy(torch.cat([ab, aa], 1), target) + F.cross_entropy(torch.cat([ba, bb], 1), target)
    accuracy = (ab.argmax(1) == target).float().mean()
    return NTXent(loss if reduction == "per_pair" else loss / 2, accuracy)
