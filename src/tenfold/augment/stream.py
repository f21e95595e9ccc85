"""Endless batches of views in a repeatable order, from either backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tenfold.augment.spec import ViewSpec
from tenfold.data.reader import RankOrder, SplitReader
from tenfold.errors import DataError
from tenfold.ranks import rank, world_size


@dataclass(frozen=True)
class Batch:
    """Views of the same images.

    Attributes:
        views: one tensor (N, channels, side, side) a view, float32 in [0, 1].
        numbers: (N,) sample numbers in the split.
    """

    views: list[Tensor]
    numbers: Tensor

    def split(self, parts: int) -> list[Batch]:
        """Return the batch in that many equal parts."""
        size = len(self.numbers) // parts
        pieces = [torch.split(view, size) for view in self.views]
        return [Batch([piece[k] for piece in pieces], n) for k, n in enumerate(torch.split(self.numbers, size))]


class Backend(Protocol):
    """Computes the views of consecutive positions."""

    def next(self) -> list[Tensor]:
        """Return the next batch's views."""


class ViewStream:
    """Batches for training: position p of the order stands in batch p // batch_size."""

    def __init__(
        self, reader: SplitReader, specs: Sequence[ViewSpec], batch_size: int, seed: int, device: torch.device,
        threads: int, state: dict[str, Tensor] | None = None, *, shuffle: bool = True,
        part: tuple[int, int] | None = None, batches: int | None = None,
    ) -> None:  # fmt: skip
        """Open a stream.

        Args:
            reader: the images.
            specs: the views to take of each image, all of one backend; each is drawn independently.
            batch_size: images a batch of this rank.
            seed: decides order and views.
            device: where the views are wanted.
            threads: for decoding and augmenting on the CPU.
            state: of :meth:`state`, to go on exactly there.
            shuffle: False gives the split's own order, over and over, with no cut between passes.
            part: which of how many ranks this is; default: the job's own. Of each global batch a rank takes its part,
                so the order of all ranks together hangs on the global batch size and on nothing else, and so do
                the views.
            batches: how many are wanted, where that is known: no more are made ahead.
        """
        own, ranks = part or (rank(), world_size())

        def order() -> RankOrder:
            return RankOrder(reader.order(batch_size * ranks, seed, shuffle=shuffle), batch_size, own, ranks)

        self.order = order()
        self.batch_size, self._device = batch_size, device
        self._position = int(state["batches"]) * batch_size if state else 0
        names = {spec.backend for spec in specs}
        if len(names) != 1:
            raise DataError(f"one stream's views must have one backend, not {sorted(names)}")
        self._backend: Backend
        # each backend walks an order of its own: they read ahead
        ahead = order()
        if names == {"dali"} and specs[0].pixels is not None:
            from tenfold.augment.channels import ChannelViews

            self._backend = ChannelViews(reader, specs, batch_size, ahead, self._position, seed, threads, batches)
        elif names == {"dali"}:
            from tenfold.augment.dali import DaliViews

            self._backend = DaliViews(reader, specs, batch_size, ahead, self._position, seed, device, threads, batches)
        else:
            from tenfold.augment.torchvision import TorchvisionViews

            self._backend = TorchvisionViews(reader, specs, batch_size, ahead, self._position, seed)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        views = [view.to(self._device, non_blocking=True) for view in self._backend.next()]
        numbers = [self.order[self._position + k] for k in range(self.batch_size)]
        self._position += self.batch_size
        return Batch(views, torch.tensor(numbers, device=self._device))

    def state(self) -> dict[str, Tensor]:
        """Return what :class:`ViewStream` needs to go on behind the last batch, on any number of ranks."""
        return {"batches": torch.tensor(self._position // self.batch_size)}


def one_pass(
    reader: SplitReader,
    specs: Sequence[ViewSpec],
    batch_size: int,
    seed: int,
    device: torch.device,
    threads: int,
) -> Iterator[Batch]:
    """Yield every image of the split once, in its own order; the last batch may be smaller."""
    batch_size = min(batch_size, len(reader))
    batches = -(-len(reader) // batch_size)
    stream = ViewStream(reader, specs, batch_size, seed, device, threads, shuffle=False, part=(0, 1), batches=batches)
    for start in range(0, len(reader), batch_size):
        batch = next(stream)
        kept = min(batch_size, len(reader) - start)
        yield Batch([view[:kept] for view in batch.views], batch.numbers[:kept])
