"""The one place that talks to MLflow tracking.

A pipeline run has one parent MLflow run, found by its tag ``tenfold.run_id``; each task has one nested run,
found by (run id, task) and adopted again on a retry. Addresses and credentials come by the environment.

A stage records through :class:`QueuedTracker`, which never waits for MLflow: what is not sent yet lies in a spool.
"""

from __future__ import annotations

from tenfold.tracking.client import client
from tenfold.tracking.failures import DeniedError, Explained
from tenfold.tracking.queued import QueuedTracker
from tenfold.tracking.resend import send_left
from tenfold.tracking.runs import (
    TaskEnd,
    at_work,
    close_runs,
    ended_tasks,
    latest_tasks,
    nested_run,
    parent_run,
    task_run,
    tasks_of,
)
from tenfold.tracking.sender import MlflowTracker
from tenfold.tracking.tracker import NoTracker, Tracker

__all__ = ["DeniedError", "Explained", "MlflowTracker", "NoTracker", "QueuedTracker", "TaskEnd", "Tracker", "at_work",
           "client", "close_runs", "ended_tasks", "latest_tasks", "nested_run", "parent_run", "send_left", "task_run",
           "tasks_of"]  # fmt: skip
