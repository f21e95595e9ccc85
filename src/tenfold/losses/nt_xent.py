"""NT-Xent, the contrastive loss of SimCLR (section 2.1, equation 1), without the matrix of all similarities.

Similarities are computed a tile at a time and dropped, in the forward pass and again in the backward pass, so that
memory grows with the number of views and not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from tenfold.ranks import all_gather, rank, world_size

#: Rows and columns of a tile: 4 MiB in float32. Of smaller ones the products are slower.
TILE = 1024
#: At most so many threads take tiles side by side: each has a tile and a gradient of its own.
MOST_WORKERS = 8
#: Up to this range of similarities one shift serves all rows: their exponentials do not vanish in float32.
_RANGE = 80.0

_Tiles: TypeAlias = Iterator[tuple[slice, slice, Tensor]]
Part = TypeVar("Part")


class NTXent(NamedTuple):
    """The loss and how often the positive was the most similar of the other view's images."""

    loss: Tensor
    accuracy: Tensor


def unit(z: Tensor) -> Tensor:
    """Return the rows of ``z`` scaled to length 1, with 1e-12 as the least square of a length."""
    return z * torch.rsqrt((z * z).sum(1, keepdim=True).clamp_min(1e-12))


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, reduction: Literal["per_pair", "per_view"] = "per_pair", *,
    normalize: bool = True,
) -> NTXent:  # fmt: skip
    r"""Normalised temperature-scaled cross-entropy over the 2N views of N images.

    .. math:: \ell_{i,j} = -\log \frac{\exp(\mathrm{sim}(z_i, z_j)/\tau)}
              {\sum_{k \neq i} \exp(\mathrm{sim}(z_i, z_k)/\tau)}

    With several ranks, N counts the images of all of them: each rank takes the mean over its own rows, all
    ranks' views are its negatives, and the gradient flows back to them.

    Args:
        first: projections (n, d) of the first views on this rank.
        second: projections (n, d) of the second views, row by row of the same images.
        temperature: tau.
        reduction: ``per_pair`` is the official code's mean over N of both directions' sum; ``per_view`` is
            the mean over 2N that other libraries use, half of it.
        normalize: scale the projections to length 1 (the paper's cosine similarity).

    It is computed in float32 at least, whatever autocast says.
    Source: the official implementation's ``objective.py``.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = torch.cat([first, second])
        views = views if views.dtype == torch.float64 else views.float()
        views = unit(views) if normalize else views
        bounded = normalize and 2 / temperature <= _RANGE and world_size() == 1
        tiled: Any = _Triangle if bounded else _Rows
        weight = (1.0 if reduction == "per_pair" else 0.5) / len(first)
        return NTXent(*tiled.apply(views, temperature, weight))


def _blocks(views: int) -> list[slice]:
    """Return slices of at most :data:`TILE` of 2n views; none holds both of an image's."""
    half = views // 2
    starts = [(view, start) for view in (0, half) for start in range(0, half, TILE)]
    return [slice(view + start, view + min(start + TILE, half)) for view, start in starts]


def _positives(z: Tensor) -> Tensor:
    """Return each row's positive: the other view of its image."""
    return z.roll(len(z) // 2, 0)


class _Accuracy:
    """Counts the first views whose positive is the most similar of the second views."""

    def __init__(self, z: Tensor) -> None:
        self._own = z.new_full((len(z) // 2,), -torch.inf)
        self._best = self._own.clone()

    def see(self, rows: slice, tile: Tensor, offset: int) -> None:
        """Take in similarities of first views to second views; the positives are the diagonal at ``offset``."""
        self._best[rows] = torch.maximum(self._best[rows], tile.amax(1))
        own, first = tile.diagonal(offset), rows.start + max(0, -offset)
        self._own[first : first + len(own)] = own

    def join(self, other: _Accuracy) -> None:
        """Take in what ``other`` saw of the same views."""
        for mine, found in ((self._own, other._own), (self._best, other._best)):
            torch.maximum(mine, found, out=mine)

    def share(self) -> Tensor:
        return (self._own >= self._best).float().mean()


class _Triangle(torch.autograd.Function):
    """On one rank, of rows of length 1: similarities are symmetric and at most 1/tau, so half of the tiles suffice."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, weight: float) -> tuple[Tensor, Tensor]:
        scale, half = 1 / temperature, len(z) // 2

        def add_up(tiles: _Tiles) -> tuple[Tensor, _Accuracy]:
            total, accuracy = z.new_zeros(len(z)), _Accuracy(z)
            for rows, columns, tile in tiles:
                if rows.start < half <= columns.start:
                    accuracy.see(rows, tile, rows.start + half - columns.start)
                total[rows] += tile.sum(1)
                if rows != columns:
                    total[columns] += tile.sum(0)
            return total, accuracy

        (total, accuracy), *others = _Triangle.share_out(z, scale, add_up)
        for part, seen in others:
            total += part
            accuracy.join(seen)
        ctx.save_for_backward(z, total)
        ctx.scale, ctx.weight = scale, weight
        losses = total.log() - (z * _positives(z)).sum(1) * scale
        share = accuracy.share()
        ctx.mark_non_differentiable(share)
        return losses.sum() * weight, share

    @staticmethod
    def share_out(z: Tensor, scale: float, work: Callable[[_Tiles], Part]) -> list[Part]:
        """Give each of torch's threads tiles of its own, and return what ``work`` made of each thread's share.

        A thread that does a tile's steps one after the other finds the tile in its core's cache and waits for nobody.
        Which thread takes which tile is fixed, so that the same number of threads adds up to the same bits.
        """
        pairs, threads = list(combinations_with_replacement(_blocks(len(z)), 2)), torch.get_num_threads()
        workers = min(threads, MOST_WORKERS, len(pairs)) if z.device.type == "cpu" else 1
        made = _Triangle.tiles(z, scale, pairs)
        if workers == 1:
            return [work(made(slice(None)))]

        def one(number: int) -> Part:
            torch.set_num_threads(threads // workers)  # of this thread's operations
            with torch.no_grad():  # which each thread has for itself as well
                return work(made(slice(number, None, workers)))

        try:
            with ThreadPoolExecutor(workers) as pool:
                return list(pool.map(one, range(workers)))
        finally:
            torch.set_num_threads(threads)  # of threads that start later

    @staticmethod
    def tiles(z: Tensor, scale: float, pairs: list[tuple[slice, slice]]) -> Callable[[slice], _Tiles]:
        """Return a maker of exp(sim/tau) of some pairs of blocks, 0 for a view with itself; each overwrites the last.

        It is taken as a power of 2, for which processors have the faster function. None is shifted, as exp(1/tau) is
        far from float32's largest number.
        """
        across = z.T.contiguous()

        def some(which: slice) -> _Tiles:
            room = z.new_empty(TILE * TILE)
            for rows, columns in pairs[which]:
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                tile = room[: shape[0] * shape[1]].view(shape)
                torch.mm(z[rows], across[:, columns], out=tile)
                tile.mul_(scale / math.log(2)).exp2_()
                if rows == columns:
                    tile.fill_diagonal_(0)
                yield rows, columns, tile

        return some

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, total = ctx.saved_tensors
        share = ctx.weight / total

        def add_up(tiles: _Tiles) -> Tensor:
            made, room = torch.zeros_like(z), z.new_empty(TILE * TILE)
            for rows, columns, tile in tiles:
                both = room[: tile.numel()].view(tile.shape)
                torch.add(share[rows, None], share[None, columns], out=both)
                tile.mul_(both)
                made[rows].addmm_(tile, z[columns])
                if rows != columns:
                    made[columns].addmm_(tile.T, z[rows])
            return made

        made, *others = _Triangle.share_out(z, ctx.scale, add_up)
        for part in others:
            made += part
        made.sub_(_positives(z), alpha=2 * ctx.weight)
        return made.mul_(ctx.scale * grads[0]), None, None


class _Rows(torch.autograd.Function):
    """This rank's rows with the views of all ranks, each row shifted by its own largest similarity."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, weight: float) -> tuple[Tensor, Tensor]:
        scale, every, half = 1 / temperature, _by_view(all_gather(z)), len(z) // 2
        least = torch.finfo(z.dtype).min  # not -inf: a row may meet itself alone first
        most, total, accuracy = z.new_full((len(z),), least), z.new_zeros(len(z)), _Accuracy(z)
        for rows, columns, tile in _Rows.tiles(z, every, scale):
            if rows.start < half and columns.start >= len(every) // 2:
                accuracy.see(rows, tile, len(every) // 2 + rank() * half + rows.start - columns.start)
            grown = torch.maximum(most[rows], tile.amax(1))
            total[rows] = total[rows] * (most[rows] - grown).exp() + tile.sub_(grown[:, None]).exp_().sum(1)
            most[rows] = grown
        ctx.save_for_backward(z, every, most + total.log())
        ctx.scale, ctx.weight = scale, weight
        losses = most + total.log() - (z * _positives(z)).sum(1) * scale
        share = accuracy.share()
        ctx.mark_non_differentiable(share)
        return losses.sum() * weight, share

    @staticmethod
    def tiles(z: Tensor, every: Tensor, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield sim/tau of each pair of blocks, -inf for a view with itself; the next overwrites it.

        ``every`` has all ranks' first views, then their second ones, so that a block is large where a rank's part of
        the batch is small.
        """
        room, half = z.new_empty(TILE * TILE), len(z) // 2
        for rows in _blocks(len(z)):
            view, row = divmod(rows.start, half)
            here = view * (len(every) // 2) + rank() * half + row  # the first row's place in ``every``
            for columns in _blocks(len(every)):
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                tile = room[: shape[0] * shape[1]].view(shape)
                torch.mm(z[rows], every[columns].T, out=tile)
                tile.mul_(scale)
                tile.diagonal(here - columns.start).fill_(-torch.inf)
                yield rows, columns, tile

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, every, level = ctx.saved_tensors
        weight = grads[0].expand(len(z)) * ctx.weight
        # so that no gradient of the size of the views is sent
        levels, weights = _by_view(all_gather(level)), _by_view(all_gather(weight))
        made = torch.zeros_like(z)
        for rows, columns, tile in _Rows.tiles(z, every, ctx.scale):
            as_key = (tile - levels[columns]).exp_().mul_(weights[columns])
            tile.sub_(level[rows, None]).exp_().mul_(weight[rows, None]).add_(as_key)
            made[rows].addmm_(tile, every[columns])
        made.sub_(_positives(z) * (2 * weight[:, None]))
        return made.mul_(ctx.scale), None, None


def _by_view(gathered: Tensor) -> Tensor:
    """Return the ranks' rows, of which each rank's are first views and then second ones, ordered by view alone."""
    cut = gathered.view(world_size(), 2, -1, *gathered.shape[1:])
    return cut.transpose(0, 1).reshape(gathered.shape)
