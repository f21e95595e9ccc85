"""What MLflow's failures mean: one clear line each, and whether the same again may work."""

from __future__ import annotations

import re

from tenfold.environment import Environment
from tenfold.errors import TrackingError, redact

_DENIED = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
_INVALID = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}


class DeniedError(TrackingError):
    """MLflow knows the caller not, or lets it not (401, 403): the same again fails until somebody acts."""


class InvalidRecordError(TrackingError):
    """MLflow will never take this record: it is malformed, changes a parameter, or its run was deleted."""


class Explained:
    """Turns any failure of MLflow's into one clear line, of the class that says whether to try again."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, TrackingError):
            reason = redact(_brief(str(error)))
            address = redact(Environment.read().tracking_uri)
            raise _class_of(error)(f"{self.doing} failed at {address}: {reason}; check MLFLOW_TRACKING_URI") from error


def _brief(text: str) -> str:
    """Return the cause at the bottom of what requests and urllib3 say of a connection; of anything else the first line.

    Their own words name the request and its retries first, at length.
    """
    if "Max retries exceeded" in text or "Connection aborted" in text:
        if "timed out" in text:
            return "no answer in time"
        found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
        if found is not None:
            return found[1].strip().lower()
    return text.strip().split("\n")[0][:300]


def _class_of(error: Exception) -> type[TrackingError]:
    code = getattr(error, "error_code", "")
    status = getattr(getattr(error, "response", None), "status_code", 0)  # of an artifact's request
    if code in _DENIED or status in (401, 403):
        return DeniedError
    if code in _INVALID or (400 <= status < 500 and status not in (404, 408, 429)) or _of_a_file(error):
        return InvalidRecordError
    return TrackingError


def _of_a_file(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | PermissionError) and error.filename is not None
