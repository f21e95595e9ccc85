r"""Mixup and CutMix of a batch and its targets: of labelled images as in timm, of pseudo-labelled ones as in Semi-ViT.

An image is mixed with its partner, :math:`\tilde x_i = \lambda_i x_i + (1 - \lambda_i) x_{\pi(i)}`, or a rectangle of
:math:`1 - \lambda_i` of its area becomes the partner's; the targets are mixed alike. Mixing is linear, so that it may
come before or after the normalisation of pixels.

Sources: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix), timm's ``Mixup`` in batch mode, Semi-ViT, section 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Draws(NamedTuple):
    """What chance decides of a batch of N images.

    Attributes:
        partner: the image (N,) that each one is mixed with, a permutation.
        cut: whether (N,) it is by CutMix.
        centre: row and column (N, 2) of the rectangle's centre.
    """

    partner: Tensor
    cut: Tensor
    centre: Tensor


class Mixed(NamedTuple):
    """Mixed images (N, C, H, W), and the share (N,) of each that is still its own."""

    images: Tensor
    share: Tensor


class PseudoMixed(NamedTuple):
    """Mixed images, soft targets (N, classes), and how sure (N,) the surer of the two guesses was."""

    images: Tensor
    targets: Tensor
    confidence: Tensor


def draw(images: Tensor, cut: float) -> Draws:
    """Draw for a batch of ``images``: a permutation, CutMix with probability ``cut`` for each, and a centre.

    By torch's generator of the CPU, whose state is part of a checkpoint.
    """
    count, _, height, width = images.shape
    centre = torch.stack([torch.randint(height, (count,)), torch.randint(width, (count,))], 1)
    return Draws(*(each.to(images.device) for each in (torch.randperm(count), torch.rand(count) < cut, centre)))


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return targets (N, classes) that give every class ``smoothing / classes``, and the label the rest."""
    rest = smoothing / classes
    targets = torch.full((len(labels), classes), rest, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + rest)


def rectangles(share: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Return top, bottom, left and right (N, 4) of rectangles around ``centre`` that leave ``share`` of the image.

    Their sides are the image's by :math:`\\sqrt{1 - share}`, rounded down; they end where the image does.
    """
    side = (1 - share).clamp_min(0).sqrt()
    edges = []
    for length, middle in ((height, centre[:, 0]), (width, centre[:, 1])):
        half = (length * side).long() // 2
        edges += [(middle - half).clamp(0, length), (middle + half).clamp(0, length)]
    return torch.stack(edges, 1)


def mix(images: Tensor, share: Tensor, draws: Draws) -> Mixed:
    """Mix each image with its partner so that ``share`` (N,) of it stays; CutMix's share is that of whole pixels."""
    height, width = images.shape[2:]
    top, bottom, left, right = rectangles(share, draws.centre, height, width).unbind(1)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((rows >= top[:, None]) & (rows < bottom[:, None]))[:, :, None]
    inside = inside & ((columns >= left[:, None]) & (columns < right[:, None]))[:, None, :]
    share = torch.where(draws.cut, 1 - inside.to(share.dtype).mean((1, 2)), share)
    own = torch.where(draws.cut[:, None, None], (~inside).to(images.dtype), share[:, None, None].to(images.dtype))
    return Mixed(torch.lerp(images[draws.partner], images, own[:, None]), share)


def mixed_targets(targets: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """Return the targets (N, classes) of mixed images."""
    return torch.lerp(targets[partner], targets, share[:, None].to(targets.dtype))


def mix_labelled(
    images: Tensor, labels: Tensor, classes: int, *, mixup: float, cutmix: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Mix a labelled batch with itself in reverse order; return the images and their targets (N, classes).

    One share for the batch, drawn from Beta(alpha, alpha), where alpha is ``mixup`` or, in half of the batches,
    ``cutmix`` for CutMix; where one is 0 the other is taken alone, and nothing is mixed where both are (timm's batch
    mode).
    """
    targets = smoothed(labels, classes, smoothing)
    if mixup == cutmix == 0:
        return images, targets
    both = mixup > 0 and cutmix > 0
    cut = bool(torch.rand(()) < 0.5) if both else cutmix > 0
    alpha = torch.tensor(cutmix if cut else mixup)
    share = torch.distributions.Beta(alpha, alpha).sample().to(images.device)
    back = torch.arange(len(images) - 1, -1, -1, device=images.device)
    centre = draw(images[:1], 0.0).centre.expand(len(images), 2)
    alike = Draws(back, torch.full_like(back, cut, dtype=torch.bool), centre)
    mixed = mix(images, share.expand(len(images)), alike)
    return mixed.images, mixed_targets(targets, mixed.share, back)


def pseudo_mixup(
    images: Tensor, guesses: Tensor, draws: Draws, smoothing: float, sure: Tensor | None = None
) -> PseudoMixed:
    r"""Mix pseudo-labelled images by how sure their labels are (probabilistic pseudo mixup).

    .. math:: \lambda_i = \frac{p_i}{p_i + p_{\pi(i)}}, \qquad p_i = \max_c q_i(c)

    so that the surer image dominates, and an unsure one teaches where its partner is sure.

    Args:
        images: the student's views (N, C, H, W).
        guesses: the teacher's probabilities q (N, classes).
        draws: partners, and which are mixed by CutMix.
        smoothing: of the one-hot pseudo-labels.
        sure: p (N,), where it is not the largest probability; an image with 0 is all its partner's.

    Source: Semi-ViT, section 3.3, and its official ``mixup.py``.
    """
    largest, labels = guesses.max(1)
    sure = largest if sure is None else sure
    share = sure / (sure + sure[draws.partner]).clamp_min(torch.finfo(sure.dtype).tiny)
    # a rectangle that is cut at the image's edge would leave some of an image that must not be seen
    mixed = mix(images, share, draws._replace(cut=draws.cut & (sure > 0)))
    targets = mixed_targets(smoothed(labels, guesses.shape[1], smoothing), mixed.share, draws.partner)
    return PseudoMixed(mixed.images, targets, torch.maximum(sure, sure[draws.partner]))
