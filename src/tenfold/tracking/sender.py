"""Sending records to one run of MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.errors import TrackingError
from tenfold.tracking.failures import DeniedError, Explained, InvalidRecordError
from tenfold.tracking.tracker import Record, Recorder, now

#: Seconds between attempts at an artifact whose store fails while MLflow answers.
_ARTIFACT_PAUSES = (1.0, 4.0)
#: So many points wait at most in a tracker that nobody queues for.
_WAITING = 900


class MlflowTracker(Recorder):
    """One MLflow run; each call is sent at once, but for metrics, which are sent in batches."""

    def __init__(self, client: Any, run_id: str, *, adopted: bool = True) -> None:
        """Speak to a run.

        Args:
            client: an MlflowClient.
            run_id: of the run.
            adopted: whether the run may hold points already.
        """
        self.client, self.run_id = client, run_id
        self._waiting: list[Record] = []
        self._unsure = adopted
        self._known: dict[str, set[tuple[int, str]]] = {}

    def _record(self, op: str, **values: Any) -> None:
        self._waiting.append({"op": op, **values})
        if op != "metrics" or len(self._waiting) >= _WAITING:
            waiting, self._waiting = self._waiting, []
            for group in groups(waiting):
                self.send(group)

    def send(self, group: Sequence[Record]) -> None:
        """Send the records of one group of :func:`groups`; sending them again changes nothing.

        A server with a database keeps one row for a point of the same name, step, time and value, so a request whose
        answer was lost is repeated as it was. What a killed attempt sent and its successor computes again has another
        time: where that may be, or an answer was lost, a point whose name, step and value are there is left out.

        Raises:
            InvalidRecordError: MLflow will never take them, or the artifact's file is gone; none of them was recorded.
            DeniedError: the caller may not write.
            TrackingError: it did not work, and may when it is tried again.
        """
        first = group[0]
        if first["op"] == "artifact":
            self._send_artifact(Path(first["path"]), first["folder"])
        elif first["op"] == "finish":
            with Explained("closing the MLflow run"):
                self.client.set_terminated(self.run_id, first["status"], end_time=first["time"])
        else:
            self._send_batch(group)

    def _send_batch(self, group: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        tags: dict[str, str] = {}
        params: dict[str, str] = {}
        points = []
        with Explained("recording to MLflow"):
            for record in group:
                tags |= record.get("tags", {})
                params |= record.get("params", {})
                for key, value in record.get("metrics", {}).items():
                    if not self._has(key, record["step"], value):
                        points.append(Metric(key, value, record["time"], record["step"]))
            try:  # the client keeps to the limits of one request
                self.client.log_batch(
                    self.run_id, points, [Param(*each) for each in params.items()],
                    [RunTag(*each) for each in tags.items()],
                )  # fmt: skip
            except Exception:
                self._unsure, self._known = True, {}
                raise

    def _has(self, key: str, step: int, value: float) -> bool:
        if not self._unsure:
            return False
        if key not in self._known:
            points = self.client.get_metric_history(self.run_id, key)
            self._known[key] = {(point.step, _text(point.value)) for point in points}
        return (step, _text(value)) in self._known[key]

    def _send_artifact(self, path: Path, folder: str) -> None:
        """Send a file or folder; where MLflow answers and its store of artifacts does not, the rest goes on without."""
        if not path.exists():
            raise InvalidRecordError(f"{path} is not there any more")
        for pause in (*_ARTIFACT_PAUSES, None):
            try:
                with Explained(f"sending {path.name} to MLflow"):
                    if path.is_dir():
                        self.client.log_artifacts(self.run_id, str(path), folder or None)
                    else:
                        self.client.log_artifact(self.run_id, str(path), folder or None)
                return
            except InvalidRecordError:
                raise
            except TrackingError as error:
                with Explained("asking for the run"):
                    self.client.get_run(self.run_id)
                if pause is None or isinstance(error, DeniedError):
                    raise InvalidRecordError(str(error)) from error
                time.sleep(pause)

    def finish(self, status: str) -> None:
        """See :class:`Tracker`."""
        self._record("finish", status=status, time=now())

    def end_if_open(self, status: str) -> None:
        """Close the run as ``status`` where nothing has closed it."""
        with Explained("closing the MLflow run"):
            if self.client.get_run(self.run_id).info.status == "RUNNING":
                self.client.set_terminated(self.run_id, status)


def groups(records: Sequence[Record]) -> list[list[Record]]:
    """Divide records, in their order, into what one request can take: an artifact, an end, or a batch of the rest."""
    found: list[list[Record]] = []
    for record in records:
        alone = record["op"] in {"artifact", "finish"}
        if alone or not found or found[-1][0]["op"] in {"artifact", "finish"}:
            found.append([record])
        else:
            found[-1].append(record)
    return found


def _text(value: float) -> str:
    """Return the value as MLflow's databases keep it: infinity is the largest number."""
    return repr(max(min(value, sys.float_info.max), -sys.float_info.max))
