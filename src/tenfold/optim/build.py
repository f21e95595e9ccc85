"""From an :class:`OptimizerConfig` to an optimizer with its parameter groups, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from tenfold.config import OptimizerConfig
from tenfold.optim.lars import LARS


def peak_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Return the learning rate after warm-up: lr, lr·B/256, or lr·√B (SimCLR, appendix B.1)."""
    scale = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}[config.scaling]
    return config.learning_rate * scale


def rate_at(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the learning rate of ``step``: linear from 0 over ``warmup`` steps, then a cosine to 0."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def build_optimizer(config: OptimizerConfig, modules: Iterable[nn.Module], batch_size: int) -> Optimizer:
    """Return the optimizer for all trainable parameters of ``modules``.

    Biases, batch-norm parameters and the supervised head (modules of class ``nn.Linear`` with a bias) get no
    weight decay, and with LARS no trust ratio (SimCLR's exclusions).
    """
    decayed: list[nn.Parameter] = []
    excluded: list[nn.Parameter] = []
    for module in modules:
        for part in module.modules():
            head = isinstance(part, nn.Linear) and part.bias is not None
            for name, parameter in part.named_parameters(recurse=False):
                if parameter.requires_grad:
                    plain = isinstance(part, nn.modules.batchnorm._BatchNorm) or name == "bias" or head
                    (excluded if plain else decayed).append(parameter)
    lr = peak_rate(config, batch_size)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": excluded, "weight_decay": 0.0}]
    if config.name == "lars":
        groups[1]["adapt"] = False
        return LARS(groups, lr, config.momentum, config.weight_decay)
    if config.name == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr, config.momentum, weight_decay=config.weight_decay, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr, weight_decay=config.weight_decay)
