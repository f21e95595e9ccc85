"""Opening MLflow: how patient its client is, and a local database that is there whole or not at all."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any

from tenfold.environment import Environment
from tenfold.tracking.failures import Explained

#: How often MLflow's client repeats a request by itself, in this process.
_repeats = 0


def client(environment: Environment, *, repeats: int = 0, timeout: int = 120) -> Any:
    """Return an MlflowClient for tracking and registry.

    How patient MLflow's requests are is one setting of the process; the environment's ``MLFLOW_HTTP_REQUEST_*`` win.

    Args:
        environment: gives the address.
        repeats: how often MLflow repeats a request that failed; none where the caller tries again itself. The highest
            number that was asked for counts.
        timeout: seconds for an answer.
    """
    global _repeats
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each error that it raises
    from mlflow import environment_variables as settings
    from mlflow.tracking import MlflowClient

    _repeats = max(_repeats, repeats)
    settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = _repeats
    settings.MLFLOW_HTTP_REQUEST_TIMEOUT.default = timeout
    with Explained("opening MLflow"):
        if environment.tracking_uri.startswith("sqlite:///"):
            _make_database(Path(environment.tracking_uri.removeprefix("sqlite:///")))
        return MlflowClient(tracking_uri=environment.tracking_uri, registry_uri=environment.tracking_uri)


def _make_database(path: Path) -> None:
    """Make the database aside if it is not there: one whose tables are there in part MLflow refuses for ever."""
    from mlflow.tracking import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    uri = f"sqlite:///{aside}"
    try:
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another process was first
            path.hardlink_to(aside)
    finally:
        aside.unlink(missing_ok=True)
