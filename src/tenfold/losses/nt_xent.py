"""NT-Xent, the contrastive loss of SimCLR (section 2.1, equation 1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class NTXent(NamedTuple):
    """The loss and how often the positive was the most similar of the other view's images."""

    loss: Tensor
    accuracy: Tensor


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, reduction: Literal["per_pair", "per_view"] = "per_pair"
) -> NTXent:
    r"""Normalised temperature-scaled cross-entropy over the 2N views of N images.

    .. math:: \ell_{i,j} = -\log \frac{\exp(\mathrm{sim}(z_i, z_j)/\tau)}
              {\sum_{k \neq i} \exp(\mathrm{sim}(z_i, z_k)/\tau)}

    Args:
        first: projections (N, d) of the first views; they are l2-normalised here (eps 1e-12 on the square).
        second: projections (N, d) of the second views, row by row of the same images.
        temperature: tau.
        reduction: ``per_pair`` is the official code's mean over N of both directions' sum; ``per_view`` is
            the mean over 2N that other libraries use, half of it.

    Source: the official implementation's ``objective.py``.
    """
    a, b = (z * torch.rsqrt((z * z).sum(1, keepdim=True).clamp_min(1e-12)) for z in (first, second))
    count = a.shape[0]
    diagonal = torch.eye(count, dtype=torch.bool, device=a.device)
    ab = a @ b.T / temperature
    aa = (a @ a.T / temperature).masked_fill(diagonal, -1e9)
    bb = (b @ b.T / temperature).masked_fill(diagonal, -1e9)
    target = torch.arange(count, device=a.device)
    loss = F.cross_entropy(torch.cat([ab, aa], 1), target) + F.cross_entropy(torch.cat([ab.T, bb], 1), target)
    accuracy = (ab.argmax(1) == target).float().mean()
    return NTXent(loss if reduction == "per_pair" else loss / 2, accuracy)
