"""What a network costs, counted from its code on torch's meta device, which has shapes and no values.

Multiply-adds are half of what torch.utils.flop_counter finds (convolutions and matrix products). Saved bytes are those
of the tensors that a forward pass keeps for the backward pass, each storage once, without parameters and buffers, with
activations in bfloat16. Launches are the operations of a forward pass that make or change values; on a GPU each is a
kernel or more. Attention is counted with its matrix saved, which fused kernels do not do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from timm.models.vision_transformer import Block as ViTBlock
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tenfold.losses import nt_xent
from tenfold.models import norm as norm_module
from tenfold.models.norm import BatchNorm
from tenfold.models.resnet import Block


@dataclass(frozen=True)
class Counts:
    """A network's cost.

    Attributes:
        macs: multiply-adds of a view's forward pass.
        parameters: trainable numbers.
        norms: batch norms, each of which takes an all-reduce forward and one backward over several ranks.
        norm_channels: channels of all of them.
        saved: bytes that a view's forward pass keeps.
        checkpointed: the same where each residual or transformer block keeps its input alone, and the largest block is
            computed anew.
        largest: bytes of the largest tensor that a view keeps.
        launches: operations of a forward pass, whatever the number of views.
    """

    macs: float
    parameters: int
    norms: int
    norm_channels: int
    saved: float
    checkpointed: float
    largest: float
    launches: int


class Launches(TorchDispatchMode):
    """Counts the operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then go on."""
        infos = [returned.alias_info for returned in func._schema.returns]
        self.count += not any(info is not None and not info.is_write for info in infos)
        return func(*args, **(kwargs or {}))


class Saved:
    """Bytes that a forward pass keeps, by block."""

    def __init__(self, model: nn.Module, views: Tensor) -> None:
        """Run the model forward under torch's hooks for saved tensors."""
        known = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        self._held: dict[int, tuple[Any, int]] = {}
        self._begun: list[tuple[int, int]] = []
        self.blocks: list[tuple[int, int]] = []  # saved inside, and the input's bytes

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self._held.setdefault(
                    storage._cdata, (storage, storage.nbytes())
                )  # held, so that no other gets its place
            return tensor

        def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._begun.append((self.total, inputs[0].untyped_storage().nbytes()))

        def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before, entered = self._begun.pop()
            self.blocks.append((self.total - before, entered))

        hooks = []
        for module in model.modules():
            if isinstance(module, Block | ViTBlock):
                hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            self.output = model(views)
        for hook in hooks:
            hook.remove()

    @property
    def total(self) -> int:
        """Bytes of all that is kept."""
        return sum(size for _, size in self._held.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max(size for _, size in self._held.values())

    @property
    def checkpointed(self) -> int:
        """Bytes where blocks keep their inputs alone, and the largest block is computed anew."""
        inside = [saved for saved, _ in self.blocks]
        return self.total - sum(inside) + sum(entered for _, entered in self.blocks) + max(inside, default=0)


def count(build: Callable[[], nn.Module], size: int = 224, device: str = "meta") -> Counts:
    """Count a network's cost a view of ``size`` pixels; what does not grow with the views is left out of bytes."""
    with torch.device(device):
        model = build().train()
        views = {number: torch.zeros(number, 3, size, size) for number in (2, 4)}
        with FlopCounterMode(display=False) as flops:
            model(views[2])
        with Launches() as launches:
            model(views[2])
        model = model.bfloat16()
        two, four = (Saved(model, views[number].bfloat16()) for number in (2, 4))
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return Counts(
        macs=flops.get_total_flops() / 4,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        norms=len(norms),
        norm_channels=sum(len(norm.weight) for norm in norms),
        saved=(four.total - two.total) / 2,
        checkpointed=(four.checkpointed - two.checkpointed) / 2,
        largest=(four.largest - two.largest) / 2,
        launches=launches.count,
    )


@cache
def launches_of_a_tile() -> float:
    """Return the operations, forward and backward, of one tile of NT-Xent as several ranks compute it."""

    def all_of(views: int) -> int:
        z = torch.nn.functional.normalize(torch.randn(views, 8)).requires_grad_()
        with Launches() as launches:
            loss, _ = nt_xent._Rows.apply(z, 0.1, 1.0)  # type: ignore[no-untyped-call]
            loss.backward()
        return launches.count

    one, two = 2 * nt_xent.TILE, 4 * nt_xent.TILE  # 2 x 2 and 4 x 4 tiles
    return (all_of(two) - all_of(one)) / 12


def tiles_of(images: int, ranks: int) -> int:
    """Return NT-Xent's tiles on a rank that has ``images`` images, two views each: its rows by all ranks' columns."""
    return 4 * -(-images // nt_xent.TILE) * -(-images * ranks // nt_xent.TILE)


@cache
def launches_of_a_norm() -> tuple[int, int, int]:
    """Return the operations of a batch norm: on one rank forward; over ranks forward and backward.

    Over ranks it is run in a process group of this process alone, which calls the same operations.
    """
    norm, x = BatchNorm(4), torch.randn(2, 4, 3, 3, requires_grad=True)
    with Launches() as alone:
        norm(x)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with Launches() as forward:
            y, *_ = norm_module._global_norm(x, norm.weight, norm.bias, norm.eps)
        with Launches() as backward:
            torch.autograd.grad(y, [x, norm.weight, norm.bias], torch.ones_like(y))
    finally:
        dist.destroy_process_group()
    averages = 2  # the moving ones, which follow in both
    return alone.count, forward.count + averages, backward.count
