"""The moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tenfold.ranks import own_part


class Average(nn.Module):
    r"""A copy whose whole state follows the network's.

    .. math:: \bar\theta \leftarrow m \bar\theta + (1 - m) \theta

    Weights and batch-norm statistics alike, as Semi-ViT's EMA teacher; counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float, *, warm_up: bool = False, training: bool = False) -> None:
        """Copy ``model``.

        Args:
            model: the network to follow.
            decay: m.
            warm_up: let m grow as (1 + n) / (10 + n) over the first updates n, for a network that starts
                far from its goal.
            training: keep the copy in training mode, so that it normalises by the batch (MoCo's key encoder).
        """
        super().__init__()
        self.model, self.decay, self.warm_up = copy.deepcopy(model), decay, warm_up
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.updates: torch.Tensor
        self.model.requires_grad_(False)
        self.model.train(training)

    def train(self, mode: bool = True) -> Average:
        """Stay in the copy's own mode whatever is asked."""
        return self

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow ``model`` by one step."""
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count)) if self.warm_up else self.decay
        self.updates += 1
        mine, its = ([own_part(tensor) for tensor in each.state_dict().values()] for each in (self.model, model))
        floats = [(a, b) for a, b in zip(mine, its, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in zip(mine, its, strict=True):
            if not a.is_floating_point():
                a.copy_(b)
