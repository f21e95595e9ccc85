"""Sending records in order, and sending what earlier tasks and attempts had to leave."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tenfold.environment import Environment
from tenfold.errors import redact
from tenfold.storage import Store
from tenfold.tracking.failures import InvalidRecordError
from tenfold.tracking.left import claimed, discard, left
from tenfold.tracking.runs import task_run
from tenfold.tracking.sender import MlflowTracker, groups
from tenfold.tracking.spool import Header, Spool, header_of, left_local, unsent
from tenfold.tracking.tracker import Record

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
    for key in left(store, run_id):
        own = task is None or key.split("/")[-2] == task
        with contextlib.nullcontext(True) if own else claimed(store, key, str(task)) as mine:
            if mine:
                count += _send_copy(environment, store, key, refused)
    for path in left_local(environment.home, run_id, task):
        spool = Spool.abandoned(path)
        if spool is not None:
            count += _send_abandoned(environment, spool, refused)
    return count


def _send_copy(environment: Environment, store: Store, key: str, refused: Refusal) -> bool:
    with tempfile.TemporaryDirectory() as folder, _stays(f"{store.uri}/{key}", refused):
        copy = Path(folder) / "left.jsonl"
        copy.write_bytes(store.read(key))
        header = header_of(copy)
        run = _run_of(environment, header)
        if run is not None:
            records = unsent(copy)
            while part := list(islice(records, BATCH)):
                for group in groups(part):
                    deliver(run, group, _named(header, refused))
            run.end_if_open("KILLED")
            discard(store, key)
            return True
    return False


def _send_abandoned(environment: Environment, spool: Spool, refused: Refusal) -> bool:
    with contextlib.closing(spool), _stays(str(spool.path), refused):
        header = header_of(spool.path)
        run = _run_of(environment, header)
        if run is not None:
            send_spool(run, spool, _named(header, refused))
            run.end_if_open("KILLED")  # its process was
            spool.remove()
            return True
    return False


@contextlib.contextmanager
def _stays(place: str, refused: Refusal) -> Iterator[None]:
    """Let a spool that cannot be sent, since its experiment was deleted for example, be none of the others' trouble."""
    try:
        yield
    except InvalidRecordError as error:
        refused(f"{place} stays there: {error}")


def _named(header: Header, refused: Refusal) -> Refusal:
    return lambda reason: refused(f"a record of {header.task} in run {header.run_id}: {reason}")


def _run_of(environment: Environment, header: Header) -> MlflowTracker | None:
    """Return the MLflow run to which a spool belongs; None where it is another MLflow's."""
    if header.address != redact(environment.tracking_uri):
        return None
    there = replace(
        environment, run_id=header.run_id, experiment=header.experiment, experiment_id=header.experiment_id,
        mlflow_run=header.mlflow_run,
    )  # fmt: skip
    return task_run(there, header.task, started=header.started, reopen=False)
