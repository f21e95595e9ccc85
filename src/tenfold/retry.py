"""A permanent error under blind retry: KFP tries a failed task again whatever it failed by.

A try that failed leaves a record of why in the store, by run and task. Where the same again would meet the same error,
the next try of the task (``KFP_RETRY_INDEX`` above 0) looks whether that cause alone still stands, and if so ends
within seconds. The first try looks at no record and removes what is there, so nothing needs cleaning up once the cause
is mended.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from tenfold.environment import Environment
from tenfold.errors import AGAIN, LaunchError, StorageError, TenfoldError, redact
from tenfold.fingerprint import canonical_json, digest
from tenfold.storage import open_store
from tenfold.tracking import DeniedError, parent_run

#: Decided by the run's configuration, code and data alone, which no further try changes.
_OWN = {"ConfigError", "NonFiniteError", "NoPseudoLabelsError"}


def record_of(error: TenfoldError) -> dict[str, Any]:
    """Return what a later process needs to know of an error: its message, its kind, and what it tried."""
    if isinstance(error, LaunchError) and error.record is not None:
        return error.record
    tried = error.tried if isinstance(error, StorageError) else None
    return {"message": redact(str(error)), "kind": type(error).__name__, "tried": tried}


def leave(environment: Environment, task: str, error: TenfoldError) -> None:
    """Record why this try ended; a store that does not take it leaves the next try without the short way."""
    record = {**record_of(error), "again": error.exit_code == AGAIN}
    with contextlib.suppress(TenfoldError):
        store = open_store(environment.store, patient=False)
        store.write(_key(environment, task), canonical_json(record).encode())


def recorded(environment: Environment, task: str) -> str | None:
    """Return the message of the error that ended a task of the environment's run; None where the store has none."""
    try:
        return str(json.loads(open_store(environment.store, patient=False).read(_key(environment, task)))["message"])
    except (TenfoldError, KeyError, TypeError, ValueError):
        return None


def standing(environment: Environment, task: str) -> str | None:
    """Return the last try's error if its cause still stands; None where this is the first try, or it may work now.

    Args:
        environment: says which try this is.
        task: the task's name; with its part of the work where several do the same.
    """
    if not environment.retry:
        # KFP counts from 0 again when somebody retries a run by hand: what the rounds before left would stop the
        # second try of this one, and be told as the cause where a pod is killed without a word
        with contextlib.suppress(TenfoldError):
            open_store(environment.store, patient=False).delete(_key(environment, task))
        return None
    try:
        record = json.loads(open_store(environment.store, patient=False).read(_key(environment, task)))
        message, kind, tried = str(record["message"]), record["kind"], record["tried"]
        if record["again"]:
            return None
    except (TenfoldError, KeyError, TypeError, ValueError):
        return None
    if kind in _OWN:
        return message
    try:
        if kind == DeniedError.__name__:
            parent_run(environment, patient=False)
        elif kind == StorageError.__name__ and tried is not None:
            _try(*tried)
    except TenfoldError as error:
        return None if error.exit_code == AGAIN else message
    return None


def _try(doing: str, uri: str, key: str) -> None:
    """Do the least of what was refused."""
    store = open_store(uri)
    if doing == "list":
        next(iter(store.list(key)), None)
    elif doing == "read":
        if not store.exists(key):  # which S3 answers with 403 where it may not be read
            raise StorageError(f"{uri}/{key} is not there")
    else:
        store.write(f"{key}.try", b"")
        store.delete(f"{key}.try")


def _key(environment: Environment, task: str) -> str:
    return f"runs/{environment.run_id}/errors/{digest(task)[:16]}.json"
