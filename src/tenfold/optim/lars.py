"""LARS as the SimCLR authors use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


class LARS(Optimizer):
    r"""Layer-wise adaptive rate scaling with classic momentum, the learning rate inside the buffer.

    .. math:: g' = g + \lambda w, \quad r = \eta \frac{\|w\|}{\|g'\|}\ (1 \text{ if either is } 0), \quad
              v \leftarrow m v + \mathrm{lr} \cdot r \, g', \quad w \leftarrow w - v

    A group with ``adapt=False`` (biases, batch norm, the supervised head) gets neither weight decay nor r.
    Source: the official implementation's ``lars_optimizer.py``.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        eta: float = 1e-3,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            buffers = []
            for p in params:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                buffers.append(state["momentum_buffer"])
            if group["adapt"]:
                if group["weight_decay"]:
                    grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
                weights, slopes = (torch.stack(torch._foreach_norm(ts)) for ts in (params, grads))
                trust = torch.where((weights > 0) & (slopes > 0), group["eta"] * weights / slopes, 1.0)
                grads = list(torch._foreach_mul(grads, list((trust * group["lr"]).unbind())))
            else:
                grads = list(torch._foreach_mul(grads, group["lr"]))
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            torch._foreach_sub_(params, buffers)
        return loss
