"""From an :class:`OptimizerConfig` to an optimizer with its parameter groups, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from tenfold.config import Length, OptimizerConfig
from tenfold.optim.lars import LARS


def peak_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Return the learning rate after warm-up: lr, lr·B/256, or lr·√B (SimCLR, appendix B.1)."""
    scale = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}[config.scaling]
    return config.learning_rate * scale


def rate_at(step: int, length: Length, peak: float) -> float:
    """Return the learning rate of ``step``: linear from 0 over the warm-up's steps, then a cosine to 0."""
    if step < length.warmup:
        return peak * step / length.warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - length.warmup) / max(1, length.steps - length.warmup)))


def build_optimizer(config: OptimizerConfig, modules: Iterable[nn.Module], batch_size: int) -> Optimizer:
    """Return the optimizer for all trainable parameters of ``modules``, in the groups of the official code.

    Three kinds of parameters: kernels; gains, offsets and biases (one dimension or none); and the classifier's
    kernel (``linear.weight`` of a trained module). The trust ratio of LARS is for kernels alone. Weight decay:

    ========  =======  =========  ============  ==========
    optimizer  kernels  bias       gain, offset  classifier
    ========  =======  =========  ============  ==========
    lars       yes      no         no            yes (the official code adds it to the loss)
    sgd        yes      yes        no            yes
    adamw      yes      no         no            no
    ========  =======  =========  ============  ==========
    """
    groups: dict[str, list[nn.Parameter]] = {"kernels": [], "biases": [], "norms": [], "classifier": []}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                groups[_kind(module, name, parameter)].append(parameter)
    lr, decay = peak_rate(config, batch_size), config.weight_decay
    decayed = {"lars": {"kernels", "classifier"}, "sgd": {"kernels", "biases", "classifier"}, "adamw": {"kernels"}}
    made: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay if kind in decayed[config.name] else 0.0}
        | ({"adapt": kind == "kernels"} if config.name == "lars" else {})
        for kind, params in groups.items()
        if params
    ]
    if config.name == "lars":
        return LARS(made, lr, config.momentum, decay)
    if config.name == "sgd":
        return torch.optim.SGD(made, lr, config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(made, lr)


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if name == "linear.weight":
        return "classifier"
    if parameter.ndim > 1:
        return "kernels"
    owner = module.get_submodule(name.rpartition(".")[0])
    return "biases" if isinstance(owner, nn.Linear | nn.Conv2d) else "norms"
