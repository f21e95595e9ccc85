"""From an :class:`OptimizerConfig` to an optimizer with its parameter groups, and the learning rate of a step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from tenfold.config import Length, OptimizerConfig
from tenfold.errors import ConfigError
from tenfold.models.encoder import Encoder
from tenfold.models.heads import Classifier
from tenfold.optim.lars import LARS


def peak_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Return the learning rate after warm-up: lr, lr·B/256, or lr·√B (SimCLR, appendix B.1)."""
    scale = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}[config.scaling]
    return config.learning_rate * scale


def rate_at(step: int, length: Length, peak: float, least: float = 0.0) -> float:
    """Return the learning rate of ``step``: linear from 0 over the warm-up's steps, then a cosine to ``least``."""
    if step < length.warmup:
        return peak * step / length.warmup
    done = (step - length.warmup) / max(1, length.steps - length.warmup)
    return least + (peak - least) * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each group of parameters the learning rate by its layer's share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def build_optimizer(config: OptimizerConfig, modules: Iterable[nn.Module], batch_size: int) -> Optimizer:
    r"""Return the optimizer for all trainable parameters of ``modules``, in the groups of the official codes.

    Three kinds of parameters: kernels; gains, offsets and biases (one dimension or none, and what
    :meth:`Encoder.kept` names); and the classifier's kernel (``linear.weight`` of a trained module). The trust ratio of
    LARS is for kernels alone. Weight decay:

    ========  =======  =========  ============  ==========
    optimizer  kernels  bias       gain, offset  classifier
    ========  =======  =========  ============  ==========
    lars       yes      no         no            yes (the official code adds it to the loss)
    sgd        yes      yes        no            yes
    adamw      yes      no         no            no, or by ``decay_classifier``
    ========  =======  =========  ============  ==========

    With ``layer_decay`` d, layer l of an encoder of L learns at :math:`d^{L-1-l}` of the rate (BEiT, MAE); each group
    has that share as ``share``, for :func:`set_rate`.

    Raises:
        ConfigError: ``layer_decay`` of an encoder that counts no layers.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for module in modules:
        names = _Names(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                share = config.layer_decay ** names.above(name) if config.layer_decay < 1 else 1.0
                groups[names.kind(name, parameter), share].append(parameter)
    lr, decay = peak_rate(config, batch_size), config.weight_decay
    decayed = {"lars": {"kernels", "classifier"}, "sgd": {"kernels", "biases", "classifier"}, "adamw": {"kernels"}}
    decayed["adamw"] |= {"classifier"} if config.decay_classifier else set()
    kinds = ("kernels", "biases", "norms", "classifier")
    made: list[dict[str, Any]] = [
        {"params": groups[key], "weight_decay": decay if key[0] in decayed[config.name] else 0.0, "share": key[1]}
        | ({"adapt": key[0] == "kernels"} if config.name == "lars" else {})
        for key in sorted(groups, key=lambda key: (kinds.index(key[0]), key[1]))
    ]
    if config.name == "lars":
        optimizer: Optimizer = LARS(made, lr, config.momentum, decay)
    elif config.name == "sgd":
        optimizer = torch.optim.SGD(made, lr, config.momentum, nesterov=config.momentum > 0)
    else:
        optimizer = torch.optim.AdamW(made, lr, config.betas)
    set_rate(optimizer, lr)
    return optimizer


class _Names:
    """What the names of a network's parameters tell."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._prefix, self._encoder = "", None if not isinstance(module, Encoder) else module
        for name, each in module.named_children():
            if isinstance(each, Encoder):
                self._prefix, self._encoder = f"{name}.", each
        # of a classifier's transformer; MAE's pretraining decays the class token
        kept = self._encoder.kept() if self._encoder and isinstance(module, Classifier) else set()
        self._kept = {self._prefix + name for name in kept}

    def above(self, name: str) -> int:
        """Return how many layers lie above a parameter's, to the head, which has none above."""
        if self._encoder is None or not name.startswith(self._prefix):
            return 0
        if self._encoder.layers == 1:
            raise ConfigError("optimizer.layer_decay needs a network whose layers are known; a timm encoder's are not")
        return self._encoder.layers - 1 - self._encoder.layer_of(name.removeprefix(self._prefix))

    def kind(self, name: str, parameter: nn.Parameter) -> str:
        """Return which of the table's columns it is of."""
        if name == "linear.weight":
            return "classifier"
        if parameter.ndim > 1 and name not in self._kept:
            return "kernels"
        owner = self._module.get_submodule(name.rpartition(".")[0])
        return "biases" if isinstance(owner, nn.Linear | nn.Conv2d) else "norms"
