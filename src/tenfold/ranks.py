"""What the ranks of a distributed job exchange. With one process everything here is the identity."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.errors import ConfigError


def world_size() -> int:
    """Return the number of ranks; 1 where no process group was started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def share(batch_size: int, what: str = "batch_size", parts: int = 1) -> int:
    """Return this rank's share of a batch of all ranks, which it passes in ``parts``.

    Raises:
        ConfigError: the ranks cannot share it evenly, or one cannot cut its share into equal parts.
    """
    least = world_size() * parts
    if batch_size % least:
        cut = f", each in {parts} parts (accumulate)" if parts > 1 else ""
        raise ConfigError(
            f"{what} is {batch_size}, which {world_size()} processes cannot share evenly{cut}; give a multiple of "
            f"{least}"
        )
    return batch_size // world_size()


def all_gather(tensor: Tensor) -> Tensor:
    """Return the ranks' tensors of one shape, concatenated by rank along the first dimension; no gradient."""
    if world_size() == 1:
        return tensor.detach()
    gathered = tensor.new_empty((world_size() * len(tensor), *tensor.shape[1:]))
    # the older name, which newer releases warn of
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, tensor.detach().contiguous())
    return gathered


def total(tensor: Tensor) -> Tensor:
    """Return the sum of the ranks' tensors; no gradient."""
    summed = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def mean(tensor: Tensor) -> Tensor:
    """Return the mean of the ranks' tensors; no gradient."""
    if world_size() == 1:
        return tensor.detach()
    return total(tensor) / world_size()


def any_of(*flags: bool) -> list[bool]:
    """Return for each flag whether any rank has raised it."""
    if world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised]


def from_first(value: Any) -> Any:
    """Return the first rank's ``value``: a decision that all ranks must take alike."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def is_spread(tensor: Tensor) -> bool:
    """Tell whether a tensor is spread over the ranks; none is where nobody loaded what does that (it takes seconds)."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is spread over ranks as a whole one; all ranks must ask."""
    return cast(Any, tensor).full_tensor() if is_spread(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that is spread over ranks, as a view; a whole one as it is."""
    return cast(Any, tensor).to_local() if is_spread(tensor) else tensor


def placed_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a whole ``tensor``, which every rank has, spread over the ranks as ``model`` is."""
    if not is_spread(model):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    model = cast(DTensor, model)
    there = tensor.to(model.device)
    return cast(Tensor, distribute_tensor(there, model.device_mesh, model.placements, src_data_rank=None))
