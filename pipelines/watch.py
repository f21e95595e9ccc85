"""Waiting for a run on a cluster: a line as each task starts and ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tenfold.environment import Environment
from tenfold.errors import AGAIN, redact
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.submit import Submitted
from tenfold.progress import clock
from tenfold.retry import recorded

#: States of a run, and of a task, that it does not leave.
ENDED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}


class RunFailedError(KubeflowError):
    """A run ended without success; the message has its tasks'."""


def wait(
    connection: Connection, run: Submitted, tell: Callable[[str], None], *, poll_seconds: float = 5.0,
    patience_seconds: float = 900.0,
) -> None:  # fmt: skip
    """Wait until a run has succeeded, and tell of its tasks as they go.

    Args:
        connection: to the installation.
        run: what :func:`tenfold.pipelines.submit.submit` has started.
        tell: is given a line for each task that starts or ends.
        poll_seconds: pause between two looks.
        patience_seconds: how long the API may be away.

    Raises:
        RunFailedError: names the tasks that failed.
        KubeflowError: the API is away for too long, or does not let us in any more; the run goes on by itself.
    """
    watch = _Watch(connection, run, tell, poll_seconds, patience_seconds)
    while True:
        state = watch.look()
        if state in ENDED:
            break
        time.sleep(poll_seconds)
    watch.end()


class _Watch:
    def __init__(
        self, connection: Connection, run: Submitted, tell: Callable[[str], None], poll: float, patience: float
    ) -> None:
        self._connection, self._run, self._poll, self._patience = connection, run, poll, patience
        self._out = tell
        self._began = time.monotonic()  # not the server's times: clocks may be a day apart
        self._states: dict[str, str] = {}
        self._last: Any = None

    def look(self) -> str:
        """Tell what is new, and return the run's state."""
        self._last = self._get()
        for task in self._tasks():
            before, now = self._states.get(task.task_id), task.state or "PENDING"
            self._states[task.task_id] = now
            if now == before or now in {"PENDING", "RUNTIME_STATE_UNSPECIFIED", "CANCELING", "PAUSED"}:
                continue
            self._tell(f"{task.display_name}: {self._described(task)}")
        return str(self._last.state)

    def end(self) -> None:
        """Tell of success, or raise what the run failed by."""
        state = str(self._last.state)
        if state == "SUCCEEDED":
            return self._tell("the run succeeded")
        failed = [task for task in self._tasks() if task.state == "FAILED"]
        causes = [f"{task.display_name}: {self._why(task)}" for task in failed]
        own = " ".join(self._last.error.message.split()) if self._last.error and self._last.error.message else ""
        causes = causes or ([own] if own else [])
        where = f"; {self._run.link}" if self._run.link else ""
        told = {"FAILED": "failed", "CANCELED": "was stopped", "SKIPPED": "was skipped"}[state]
        lines = [f"run {self._run.run_id} {told}{where}", *(f"  {each}" for each in causes)]
        raise RunFailedError(redact("\n".join(lines)))

    def _tasks(self) -> list[Any]:
        """Return the tasks that run in pods, in the order in which they started."""
        details = (self._last.run_details.task_details if self._last.run_details else None) or []
        found = [each for each in details if each.display_name in self._run.tasks or not self._run.tasks]
        return sorted(found, key=lambda each: (each.start_time is not None, str(each.start_time)))

    def _described(self, task: Any) -> str:
        if task.state == "RUNNING":
            return "started"
        if task.state == "FAILED":
            return f"failed: {self._why(task)}"
        # a task that did not start has no times, or those of 1970
        spent = (task.end_time - task.start_time).total_seconds() if task.end_time and task.start_time else -1
        took = f" in {clock(spent)}" if spent >= 0 else ""
        return f"done{took}" if task.state == "SUCCEEDED" else str(task.state).lower()

    def _why(self, task: Any) -> str:
        """Return a task's own error where the store has it, else what the API says, which often is nothing."""
        said = [task.error, *(each.error for each in reversed(task.state_history or []))]
        text = next((each.message for each in said if each is not None and each.message), "")
        if os.environ.get("TENFOLD_STORE"):
            environment = replace(Environment.read(), run_id=self._run.run_id)
            text = recorded(environment, task.display_name.replace("-", "_")) or text
        return redact(" ".join(text.split())) or "the API gives no reason; its log is in the user interface"

    def _tell(self, text: str) -> None:
        self._out(f"{clock(time.monotonic() - self._began):>7}  {text}")

    def _get(self) -> Any:
        """Return the run; an API that is away is asked again until the patience ends."""
        lost: float | None = None
        while True:
            try:
                found = self._connection.call(
                    "look at the run", self._connection.client.runs.run_service_get_run, run_id=self._run.run_id,
                    missing=f"the run {self._run.run_id} was deleted",
                )  # fmt: skip
            except KubeflowError as error:
                if error.exit_code != AGAIN:
                    raise KubeflowError(f"{error}. {self._goes_on()}") from None
                now = time.monotonic()
                if lost is None:
                    lost = now
                    self._tell(f"{error}; it is asked until it answers")
                elif now - lost > self._patience:
                    raise KubeflowError(f"{error}. {self._goes_on()}", again=True) from None
                time.sleep(self._poll)
                continue
            if lost is not None:
                self._tell("Kubeflow Pipelines answers again")
            return found

    def _goes_on(self) -> str:
        return f"The run {self._run.run_id} goes on by itself: `tenfold list` shows it"
