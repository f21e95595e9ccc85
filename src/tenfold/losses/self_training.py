"""The unlabelled loss of EMA-Teacher self-training (Semi-ViT, section 3), with distribution alignment."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PseudoLabelLoss(NamedTuple):
    """The loss, and the share of the batch whose pseudo-label was confident enough."""

    loss: Tensor
    share: Tensor


def pseudo_label_loss(student: Tensor, targets: Tensor, confidence: Tensor, threshold: float) -> PseudoLabelLoss:
    r"""Cross-entropy against the teacher's guesses, of the images of which it is sure, as a mean over all.

    .. math:: L_u = -\frac1N \sum_i 1[c_i \ge \tau] \sum_y q_i(y) \log p_i(y)

    Args:
        student: logits (N, C) of the strong views.
        targets: pseudo-labels (N,), or soft targets q (N, C).
        confidence: c (N,) of the teacher.
        threshold: tau. With no confident image the loss is 0 and finite.
    """
    mask = (confidence >= threshold).to(student.dtype)
    return PseudoLabelLoss((F.cross_entropy(student, targets, reduction="none") * mask).mean(), mask.mean())


def align(probabilities: Tensor, running: Tensor, prior: Tensor) -> Tensor:
    """Distribution alignment (ReMixMatch): multiply by prior / running mean prediction, renormalise.

    Args:
        probabilities: the teacher's (N, C).
        running: moving average (C,) of its mean prediction.
        prior: the class shares (C,) that are expected.
    """
    scaled = probabilities * (prior / running.clamp_min(1e-6))
    return scaled / scaled.sum(1, keepdim=True)


def estimated_prior(probabilities: Tensor, prior: Tensor, *, weight: float = 0.05, rounds: int = 200) -> Tensor:
    r"""Return the class shares (C,) of images by a classifier's guesses about them, by expectation maximisation.

    .. math:: \pi_c \leftarrow (1 - w) \frac1N \sum_i \frac{q_{ic} \, \pi_c / \rho_c}{\sum_k q_{ik} \, \pi_k / \rho_k}
        + w \rho_c

    Args:
        probabilities: q (N, C).
        prior: rho (C,), the shares that the classifier was trained with.
        weight: w of these, which holds the estimate away from 0.
        rounds: of the iteration.

    Source: Saerens, Latinne and Decaestecker 2002, section 2.2; w is ours.
    """
    q, trained = probabilities.double(), prior.double().clamp_min(1e-6)
    shares = trained / trained.sum()
    for _ in range(rounds):
        scaled = q * (shares / trained)
        mean = (scaled / scaled.sum(1, keepdim=True).clamp_min(1e-12)).mean(0)
        shares = (1 - weight) * mean + weight * prior.double()
    return (shares / shares.sum()).to(prior.dtype)


def update_running(running: Tensor, probabilities: Tensor, decay: float = 0.95) -> Tensor:
    """Return the moving average of the mean prediction."""
    return torch.lerp(probabilities.mean(0), running, decay)
