"""Distillation of SimCLRv2 (section 2, equations 2 and 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / T), (N, C)."""
    return F.softmax(logits / temperature, dim=1)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Return what :func:`soften` gives for the logits log p, up to their constant: p^(1/T), renormalised."""
    return F.softmax(probabilities.clamp_min(1e-12).log() / temperature, dim=1)


def distillation(student: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Cross-entropy of the student's softened prediction against soft targets.

    .. math:: L = -T^2 \, \frac1N \sum_i \sum_y P^T(y|x_i;\tau) \log P^S(y|x_i;\tau)

    Args:
        student: logits (N, C).
        targets: the teacher's probabilities (N, C), softened by the same temperature already.
        temperature: tau; the factor T² keeps the gradient's size independent of it (official code).
    """
    return -(targets * F.log_softmax(student / temperature, dim=1)).sum(1).mean() * temperature**2
