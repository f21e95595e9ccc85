"""One rank's copy of an objective: forward and backward passes over its part of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tenfold.augment.stream import Batch
from tenfold.config import TrainConfig
from tenfold.errors import ConfigError
from tenfold.models.encoder import Encoder
from tenfold.models.norm import BatchNorm, average_statistics, computed_again
from tenfold.models.resnet import Block
from tenfold.progress import count
from tenfold.ranks import mean, whole, world_size
from tenfold.training.average import Average
from tenfold.training.objectives import Figures, Objective
from tenfold.training.way import Way, autocast, compile_networks, layout_of


class Replica:
    """Gradients of the mean loss over all ranks and all parts of a batch are left in the parameters.

    Parameters are the same on all ranks, or with ``sharding: full`` spread over them (FSDP2). Gradients are averaged
    while the backward pass goes on (DistributedDataParallel), in the last part of the batch alone; a deterministic
    training averages them after it.
    """

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        """Bring ``objective`` to ``device``, in its place; parameters are final after this, the way is not."""
        self.objective, self._config, self._device = objective, config, device
        self._step: nn.Module = objective
        spread = config.sharding == "full" and world_size() > 1
        layout = getattr(torch, layout_of(config))
        objective.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        objective.train()
        for module in objective.modules():
            if isinstance(module, BatchNorm):
                module.across = config.batch_norm == "global"
        if config.checkpoint_activations:
            for network in objective.trained():
                recompute_blocks(network)
        if spread:
            for child in objective.children():
                _spread(child.model if isinstance(child, Average) else child)

    def take(self, way: Way) -> None:
        """Compute that way from now on."""
        self._way = way
        if way.compiled:
            compile_networks(self.objective)
        if world_size() > 1 and self._config.sharding == "none" and not self._config.deterministic:
            with warnings.catch_warnings():  # newer releases have another name for the first setting
                warnings.simplefilter("ignore", FutureWarning)
                self._step = DistributedDataParallel(
                    self.objective, broadcast_buffers=False, gradient_as_bucket_view=True
                )

    def backward(self, batches: Mapping[str, Batch]) -> Figures:
        """Leave the gradients in the parameters, and return the loss and the objective's figures.

        Raises:
            ConfigError: the GPU's memory is too small.
        """
        try:
            return self._backward(batches)
        except torch.OutOfMemoryError:
            images = max(len(batch.numbers) for batch in batches.values()) // self._config.accumulate
            raise ConfigError(
                f"the GPU's memory is too small for a step with {count(images, 'image')} at once: lower batch_size, "
                "pass it in parts (accumulate), compute activations again (checkpoint_activations=true), or spread the "
                "network over the GPUs (sharding=full)"
            ) from None

    def _backward(self, batches: Mapping[str, Batch]) -> Figures:
        parts = self._config.accumulate
        cut = {name: batch.split(parts) for name, batch in batches.items()}
        seen: list[Figures] = []
        for number in range(parts):
            with self._exchange(last=number == parts - 1), autocast(self._device, self._way.precision):
                loss, figures = self._step({name: each[number] for name, each in cut.items()})
            with self._exchange(last=number == parts - 1):
                (loss / parts).backward()
            seen.append({"loss": loss.detach(), **figures})
        if self._config.deterministic and self._config.sharding == "none":
            self._average_gradients()
        return seen[0] if parts == 1 else {key: torch.stack([each[key] for each in seen]).mean() for key in seen[0]}

    def _average_gradients(self) -> None:
        """Make the gradients the mean of all ranks', by one collective in the order of the parameters.

        DistributedDataParallel orders its buckets anew behind the first step, and with them the sums of a restart.
        """
        gradients = [p.grad for p in self.objective.parameters() if p.grad is not None]
        if world_size() > 1:
            averaged = mean(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, torch.split(averaged, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view(gradient.shape))

    @contextmanager
    def _exchange(self, *, last: bool) -> Iterator[None]:
        """Let gradients go to the other ranks, if this is the batch's last part."""
        if isinstance(self._step, DistributedDataParallel):
            with nullcontext() if last else self._step.no_sync():
                yield
            return
        if self._config.sharding == "full":
            from torch.distributed.fsdp import FSDPModule

            for module in self.objective.modules():
                if isinstance(module, FSDPModule):
                    module.set_requires_gradient_sync(last, recurse=False)
        yield

    def gradient_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """Return the length of the gradient of all parameters."""
        return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def follow(self) -> None:
        """Follow up an update."""
        average_statistics(self.objective)
        self.objective.after_step()


def recompute_blocks(network: nn.Module) -> None:
    """Let blocks keep their input alone, and compute the rest again in the backward pass."""
    from timm.models.vision_transformer import Block as Transformer

    blocks = [module for module in network.modules() if isinstance(module, Block | Transformer)]
    for block in blocks:
        block.forward = wraps(block.forward)(  # type: ignore[method-assign]
            partial(
                checkpoint, block.forward, use_reentrant=False,
                context_fn=lambda: (nullcontext(), computed_again()),
            )
        )  # fmt: skip
    for module in network.modules():  # timm's other networks know how to do it themselves
        set_it: Any = getattr(module, "set_grad_checkpointing", None)
        if set_it is not None and not any(isinstance(part, Transformer) for part in module.modules()):
            set_it(True)


def _spread(network: nn.Module) -> None:
    """Spread parameters over the ranks: each block's, then each encoder's others, then the rest."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    from tenfold.models.vit import ViT

    modules = list(network.modules())
    # where transformers have them
    theirs = [getattr(module, name, None) for module in modules for name in ("blocks", "decoder_blocks")]
    blocks = [block for each in theirs if isinstance(each, nn.Sequential | nn.ModuleList) for block in each]
    blocks += [module for module in modules if isinstance(module, Block)]
    for module in [*blocks, *(module for module in modules if isinstance(module, Encoder)), network]:
        fully_shard(module)
        if isinstance(module, ViT):  # what masked autoencoders call
            register_fsdp_forward_method(module, "tokens")
