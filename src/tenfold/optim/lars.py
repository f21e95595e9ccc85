"""LARS as the SimCLR authors use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from tenfold.ranks import is_spread, own_part, total

Norms = Callable[[list[Tensor]], Tensor]


class LARS(Optimizer):
    r"""Layer-wise adaptive rate scaling with classic momentum, the learning rate inside the buffer.

    .. math:: g' = g + \lambda w, \quad r = \eta \frac{\|w\|}{\|g'\|}\ (1 \text{ if either is } 0), \quad
              v \leftarrow m v + \mathrm{lr} \cdot r \, g', \quad w \leftarrow w - v

    With ``classic=False`` the buffer holds no learning rate, and r is taken of it:

    .. math:: v \leftarrow m v + g', \quad r = \eta \frac{\|w\|}{\|v\|}, \quad w \leftarrow w - \mathrm{lr} \cdot r \, v

    A group with ``adapt=False`` (biases, batch norm, the supervised head) has r = 1; its weight decay is its own.
    Of parameters that are spread over ranks (FSDP2) each rank updates its part; lengths are of the whole.

    timm's and torch's optimizers keep the learning rate out of the buffer, which differs once it changes.

    Source: the official implementation's ``lars_optimizer.py``.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        eta: float = 1e-3,
        *,
        classic: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        super().__init__(params, defaults | {"classic": classic})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            if not given:
                continue
            for p in given:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            params, grads = [own_part(p) for p in given], [own_part(p.grad) for p in given if p.grad is not None]
            buffers = [own_part(self.state[p]["momentum_buffer"]) for p in given]
            norms = _spread_norms if is_spread(given[0]) else _norms
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            if group["classic"]:
                grads = list(torch._foreach_mul(grads, _rates(group, norms, params, grads)))
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, grads)
                torch._foreach_sub_(params, buffers)
            else:
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, grads)
                torch._foreach_sub_(params, torch._foreach_mul(buffers, _rates(group, norms, params, buffers)))
        return loss


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def _spread_norms(parts: list[Tensor]) -> Tensor:
    """Return the lengths of the tensors that the ranks hold parts of, by one collective."""
    return total(_norms(parts).square()).sqrt()


def _rates(group: dict[str, Any], norms: Norms, params: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
    """Return each parameter's learning rate times its trust ratio."""
    if not group["adapt"]:
        return [torch.full((), group["lr"], dtype=p.dtype, device=p.device) for p in params]
    weights, steps = norms(params), norms(slopes)
    trust = torch.where((weights > 0) & (steps > 0), group["eta"] * weights / steps, 1.0)
    return list((trust * group["lr"]).unbind())
