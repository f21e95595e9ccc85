"""Errors that a user can act on.

Each says what was wrong, where, and what to do. The command line prints the message alone; any other
exception is a defect of tenfold's and keeps its traceback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

#: EX_TEMPFAIL of sysexits.h: the same again may succeed, or goes on.
AGAIN = 75


class TenfoldError(Exception):
    """Base of every error that is the user's, the data's or the surroundings' to mend.

    Args:
        message: what was wrong, where, and what to do.
        again: the same again may succeed, as after an outage.
    """

    #: The process's exit status: 2 stands for "the same again will fail the same way".
    exit_code = 2

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        if again:
            self.exit_code = AGAIN


class ConfigError(TenfoldError):
    """The configuration is wrong; the message lists every fault at once."""


class DataError(TenfoldError):
    """Images, labels or shards are missing, damaged or contradict each other."""


class BadImageError(DataError):
    """One image cannot be used; the message is the reason that the quarantine records."""


class StorageError(TenfoldError):
    """An object store or a disk refused; says which address and why.

    Args:
        message: see :class:`TenfoldError`.
        again: see :class:`TenfoldError`.
        tried: what was tried, where that can be tried again: ``read``, ``write`` or ``list``, the store's URI, the key.
    """

    def __init__(self, message: str, *, again: bool = False, tried: tuple[str, str, str] | None = None) -> None:
        super().__init__(message, again=again)
        self.tried = tried


class ConflictError(StorageError):
    """A content-addressed object is there already with other bytes."""


class NonFiniteError(TenfoldError):
    """A loss or a gradient became NaN or infinite; training stopped before the update."""


class ResumeError(TenfoldError):
    """A checkpoint was made with other settings, classes or ranks than those that would go on from it."""


class LaunchError(TenfoldError):
    """A training on several ranks failed; the message is its own where it left one.

    Args:
        message: see :class:`TenfoldError`.
        again: see :class:`TenfoldError`.
        record: what the rank's own error was (:func:`tenfold.retry.record_of`).
    """

    def __init__(self, message: str, *, again: bool = False, record: dict[str, Any] | None = None) -> None:
        super().__init__(message, again=again)
        self.record = record


class NoPseudoLabelsError(TenfoldError):
    """Self-training found nothing to learn from for too long."""


class InterruptedTrainingError(TenfoldError):
    """The process was told to end, and a checkpoint holds what was done."""

    exit_code = AGAIN


class TrackingError(TenfoldError):
    """MLflow could not be reached or refused."""


class TrainJobError(TenfoldError):
    """A TrainJob could not be made, or it ended without success."""


class CapacityError(TenfoldError):
    """The cluster as it is now can never run what is asked for; nodes and quotas may be others at the next try."""


def first_fault(faults: list[Any]) -> str:
    """Return the first of pydantic's faults (``error.errors()``) as one line: where, and what."""
    where = ".".join(str(part) for part in faults[0]["loc"])
    return f"{where}: {faults[0]['msg']}" if where else str(faults[0]["msg"])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` when a known word is close to ``word``, else an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def redact(text: str) -> str:
    """Return ``text`` without user names and passwords in URLs, without bearer's tokens and without secret keys."""
    text = re.sub(r"(\w+://)[^/\s]+@", r"\1***@", text)
    text = re.sub(r"\bBearer +\S+|\beyJ[\w-]+\.[\w-]+\.[\w-]+", "***", text)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD",
                 "MLFLOW_TRACKING_TOKEN", "KFP_EXISTING_TOKEN", "KF_PIPELINES_APP_OAUTH2_CLIENT_SECRET"):  # fmt: skip
        secret = os.environ.get(name)
        if secret and len(secret) > 3:
            text = text.replace(secret, "***")
    return text
