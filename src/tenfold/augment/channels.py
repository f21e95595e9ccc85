"""Views of images that DALI does not decode: any number of channels, 8 or 16 bits each.

Threads of our own decode, and :class:`tenfold.augment.fused.FusedView` makes the views, a batch ahead of the caller. It
is done on the CPU on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor

from tenfold.augment.ahead import Ahead
from tenfold.augment.draws import uniforms
from tenfold.augment.fused import FusedView, places_of
from tenfold.augment.spec import ViewSpec
from tenfold.data.channels import Raw
from tenfold.data.decode import read_pixels
from tenfold.data.reader import RankOrder, SplitReader


class ChannelViews:
    """Endless batches of views, made ahead of the caller."""

    def __init__(
        self, reader: SplitReader, specs: Sequence[ViewSpec], batch_size: int, order: RankOrder, position: int,
        seed: int, threads: int, batches: int | None = None,
    ) -> None:  # fmt: skip
        """Prepare; arguments as :class:`tenfold.augment.dali.DaliViews` has them."""
        self._reader, self._order, self._seed, self._batch_size = reader, order, seed, batch_size
        self._position, self._kind = position, specs[0].pixels
        self._views = [FusedView(spec.view, spec.evaluation, spec.image_size) for spec in specs]
        self._threads = max(1, threads)
        self._pool, self._ahead = ThreadPoolExecutor(self._threads), Ahead(self._make, batches)

    def next(self) -> list[Tensor]:
        """Return the next batch's views, as tensors of their own."""
        return self._ahead.next()

    def _decoded(self, number: int) -> Raw:
        return read_pixels(self._reader.image(number).tobytes(), self._kind)

    def _make(self) -> list[Tensor]:
        places = range(self._position, self._position + self._batch_size)
        self._position += self._batch_size
        numbers = [self._order[place] for place in places]  # by one thread: an order remembers where it is
        decoded = list(self._pool.map(self._decoded, numbers))
        positions = np.array([self._order.position(place) for place in places])
        return [
            view(*places_of(decoded), uniforms(self._seed, positions, number), self._pool, self._threads)
            for number, view in enumerate(self._views)
        ]
