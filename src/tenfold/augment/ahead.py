"""Batches made one ahead of the caller."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Calls ``make`` in one thread of its own, so in order, while the caller works with what it made before."""

    def __init__(self, make: Callable[[], Made], count: int | None = None) -> None:
        """Take what to call, and how often it will be wanted (None: no end)."""
        self._make, self._left = make, count
        self._maker = ThreadPoolExecutor(1)
        self._coming: Future[Made] | None = None

    def next(self) -> Made:
        """Return the next one."""
        made = self._make() if self._coming is None else self._coming.result()
        self._left = None if self._left is None else self._left - 1
        self._coming = None if self._left == 0 else self._maker.submit(self._make)
        return made
