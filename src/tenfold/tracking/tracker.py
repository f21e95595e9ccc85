"""What a stage may record, and the form that it first gets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """What a stage may record."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None where nothing is recorded, or where MLflow does not answer."""

    def tags(self, tags: Mapping[str, object]) -> None:
        """Set tags."""

    def params(self, params: Mapping[str, object]) -> None:
        """Set parameters; a second call may add, never change."""

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add one point to each curve."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Attach a file or a folder."""

    def finish(self, status: str) -> None:
        """Send what is left and close the run as FINISHED, FAILED or KILLED."""


class NoTracker:
    """Records nothing: for calling a stage as a plain function."""

    run_id: str | None = None

    def tags(self, tags: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""

    def params(self, params: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """See :class:`Tracker`."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`."""

    def finish(self, status: str) -> None:
        """See :class:`Tracker`."""


#: One thing to record, as JSON can hold it: ``op`` says what, ``n`` is its place in the order.
Record = dict[str, Any]


class Recorder:
    """Puts what a :class:`Tracker` is told into records; what becomes of them is the subclass's."""

    def _record(self, op: str, **values: Any) -> None:
        raise AssertionError("a recorder says what becomes of a record")

    def tags(self, tags: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""
        self._record("tags", tags={key: str(value) for key, value in tags.items()})

    def params(self, params: Mapping[str, object]) -> None:
        """See :class:`Tracker`."""
        self._record("params", params={key: str(value)[:6000] for key, value in params.items()})

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """See :class:`Tracker`; a point's time is that of this call."""
        self._record("metrics", metrics={key: float(value) for key, value in metrics.items()}, step=step, time=now())

    def artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`; the file must stay as it is until :meth:`finish`."""
        self._record("artifact", path=str(path.absolute()), folder=folder)


def now() -> int:
    """Return the time as MLflow writes it, in milliseconds. It is shown, and decides no order."""
    return int(time.time() * 1000)
