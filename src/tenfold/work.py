"""The durable place of one stage, and what a stage needs beside its inputs.

``work/<fingerprint>/<run id>/`` in the store belongs to one run of one stage. A stage may read the
checkpoints of every run of its fingerprint and writes only under its own run's name. Once it is done, the
published result alone stays, until another stage has read the stage's output.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from tenfold.environment import Environment
from tenfold.errors import TenfoldError
from tenfold.progress import Reporter
from tenfold.storage import Entry, Store
from tenfold.tracking import NoTracker, Tracker, at_work


@dataclass(frozen=True)
class Work:
    """Handed to every stage.

    Attributes:
        stage: the task's name.
        fingerprint: of the stage's result.
        store: where data sets, checkpoints and reports live.
        environment: where this process runs.
        reporter: progress and warnings.
        tracker: the stage's nested MLflow run.
        spent: seconds of work that earlier attempts put into what this one goes on from.
    """

    stage: str
    fingerprint: str
    store: Store
    environment: Environment
    reporter: Reporter
    tracker: Tracker = field(default_factory=NoTracker)
    spent: list[float] = field(default_factory=list)

    @property
    def shared(self) -> str:
        """Key prefix of all runs of this fingerprint."""
        return f"work/{self.fingerprint}/"

    @property
    def own(self) -> str:
        """Key prefix of this run."""
        return f"{self.shared}{self.environment.run_id}/"

    @property
    def cache(self) -> Path:
        """Local folder for shards that come from afar."""
        return self.environment.home / "cache"


#: Names the last checkpoint of the run that was the first to end, as ``{"folder": …, "step": …}``.
FINAL = "final.json"


def published(work: Work) -> tuple[int, str] | None:
    """Return step and folder of the checkpoint that is the fingerprint's result; None where none is published."""
    key = f"{work.shared}{FINAL}"
    if not work.store.exists(key):
        return None
    try:
        told = json.loads(work.store.read(key))
        return int(told["step"]), str(told["folder"])
    except (TenfoldError, KeyError, TypeError, ValueError) as error:
        work.reporter.warn(f"{work.store.uri}/{key} cannot be read ({error}); passing it over")
        return None


def find_old(store: Store, environment: Environment, days: float) -> list[list[Entry]]:
    """Return the work places that nobody needs any more, the objects of each in the order in which they may go.

    A run that was killed for good leaves one, and a run that ended leaves the last result until a stage has read it.
    Old is a fingerprint of which no object was written for ``days``; a training writes every minute. One that a run at
    work has read or made stays, whatever its age. A run that MLflow does not know is not at work.

    Args:
        store: holds the work places.
        environment: gives MLflow's address; every experiment there counts.
        days: since the last object was written, by the store's clock against this machine's.

    Raises:
        TrackingError: MLflow cannot be reached, so nobody knows who is at work.
    """
    places: dict[str, list[Entry]] = {}
    newest: dict[str, float] = {}
    for entry, written in store.dated("work/"):
        if entry.key.count("/") > 1:
            name = entry.key.split("/")[1]
            places.setdefault(name, []).append(entry)
            newest[name] = max(written, newest.get(name, written))
    limit = time.time() - 86_400 * days
    old = {name: held for name, held in places.items() if newest[name] < limit}
    if not old:
        return []
    runs, fingerprints = at_work(environment)
    free = (
        held for name, held in sorted(old.items())
        if name not in fingerprints and not runs & {entry.key.split("/")[2] for entry in held}
    )  # fmt: skip
    return [sorted(held, key=_order) for held in free]


def _order(entry: Entry) -> tuple[bool, bool, str]:
    """First what says that there is a result, then what says that a checkpoint is whole, then the rest."""
    return not entry.key.endswith(FINAL), not entry.key.endswith("/complete.json"), entry.key
