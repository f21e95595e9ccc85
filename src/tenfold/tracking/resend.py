"""Sending records in order, and sending what earlier tasks and attempts had to leave."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tenfold.environment import Environment
from tenfold.errors import redact
from tenfold.storage import Store
from tenfold.tracking.runs import MlflowTracker, groups, task_run
from tenfold.tracking.spool import (
    Header,
    Spool,
    claim,
    discard,
    header_of,
    in_parts,
    left_in_store,
    left_local,
    unsent,
)
from tenfold.tracking.tracker import InvalidRecordError, Record

#: So many records are held in memory and sent at a time.
BATCH = 500
#: Is told what MLflow will never take.
Refusal = Callable[[str], None]


def deliver(run: MlflowTracker, group: Sequence[Record], refused: Refusal) -> None:
    """Send one group of :func:`groups`; of a group that MLflow refuses, all but the records that are at fault.

    Raises:
        TrackingError: MLflow is away, or denies access; the group is to be sent again.
    """
    try:
        run.send(group)
    except InvalidRecordError as error:
        if len(group) == 1:
            refused(str(error))
            return
        middle = len(group) // 2
        deliver(run, group[:middle], refused)
        deliver(run, group[middle:], refused)


def send_spool(run: MlflowTracker, spool: Spool, refused: Refusal) -> None:
    """Send what the spool holds now, acknowledging each group.

    Raises:
        TrackingError: as :func:`deliver`; what is acknowledged is not sent again.
    """
    while records := spool.next(BATCH):
        for group in groups(records):
            deliver(run, group, refused)
            spool.acknowledge(group[-1])


def send_left(
    environment: Environment, store: Store, refused: Refusal, *, run_id: str | None = None, task: str | None = None
) -> int:
    """Send what tasks could not send, and remove it; what belongs to another MLflow stays.

    It is removed after it was sent, and sending it twice is as good as once, so a kill between the two does no harm.

    Args:
        environment: gives MLflow's address and the folder of local files.
        store: where tasks leave what they could not send.
        refused: is told what MLflow will never take.
        run_id: this run's alone; of all runs if left out.
        task: the task that asks: of local files it takes those of its own earlier attempts, and of the store what no
            other task of the run is sending already. Left out: everything whose process is gone.

    Returns:
        How many spools were sent.

    Raises:
        TenfoldError: MLflow or the store is away.
    """
    count = 0
    for key in left_in_store(store, run_id):
        own = task is None or key.split("/")[-2] == task
        if own or claim(store, key, str(task)):
            with tempfile.TemporaryDirectory() as folder, _told(refused, f"{store.uri}/{key}"):
                count += _send_copy(environment, store, key, Path(folder), refused)
    for path in left_local(environment.home, run_id or "*", task or "*"):
        spool = Spool.abandoned(path)
        if spool is not None:
            with _told(refused, str(path)), contextlib.closing(spool):
                count += _send_abandoned(environment, spool, refused)
    return count


@contextlib.contextmanager
def _told(refused: Refusal, place: str) -> Iterator[None]:
    """Let a spool that cannot be sent, since its experiment was deleted for example, be none of the others' trouble."""
    try:
        yield
    except InvalidRecordError as error:
        refused(f"{place} stays there: {error}")


def _send_copy(environment: Environment, store: Store, key: str, folder: Path, refused: Refusal) -> bool:
    copy = folder / "left.jsonl"
    copy.write_bytes(store.read(key))
    run = _run_of(environment, header_of(copy))
    if run is None:
        return False
    for records in in_parts(unsent(copy), BATCH):
        for group in groups(records):
            deliver(run, group, refused)
    run.end_if_open("KILLED")
    discard(store, key)
    return True


def _send_abandoned(environment: Environment, spool: Spool, refused: Refusal) -> bool:
    run = _run_of(environment, header_of(spool.path))
    if run is None:
        return False
    send_spool(run, spool, refused)
    run.end_if_open("KILLED")  # its process was
    spool.remove()
    return True


def _run_of(environment: Environment, header: Header) -> MlflowTracker | None:
    """Return the MLflow run to which a spool belongs; None where it is another MLflow's."""
    if header.address != redact(environment.tracking_uri):
        return None
    there = replace(environment, run_id=header.run_id, experiment=header.experiment)
    return task_run(there, header.task, started=header.started, reopen=False)
