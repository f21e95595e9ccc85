"""How long work tells how far it is.

The library never prints; it reports here. Under the local runner, events go as JSON lines to the file that
``TENFOLD_EVENTS`` names, and the command line draws them. Otherwise a terminal gets one line that is
redrawn, and a log gets a line a minute.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def clock(seconds: float) -> str:
    """Return ``seconds`` as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count(number: int, what: str) -> str:
    """Return ``1 image`` or ``3 images``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class Reporter:
    """Reports one stage's progress."""

    def __init__(self, stage: str, events: Path | None = None, *, quiet: bool = False) -> None:
        """Report for ``stage``: to the file ``events``, else on standard error; ``quiet``: to nobody."""
        self.stage, self.quiet = stage, quiet
        self._events = None if quiet else events
        self._stream = None if quiet else sys.__stderr__  # KFP redirects sys.stdout and sys.stderr
        self._terminal = bool(self._stream and self._stream.isatty())
        self._drawn = 0.0
        self._phase = ""
        self._phase_start = 0.0
        self._first_done = 0

    def event(self, kind: str, **values: Any) -> None:
        """Append one event for the command line; one write, so events of several processes do not mix."""
        if self._events is None:
            return
        line = json.dumps({"kind": kind, "stage": self.stage, "time": time.time(), **values}) + "\n"
        handle = os.open(self._events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def _line(self, text: str) -> None:
        if self._events is None and self._stream:
            self._stream.write(("\r\x1b[K" if self._terminal else "") + text + "\n")
            self._stream.flush()

    def started(self) -> None:
        """Say that the stage works."""
        self.event("started")
        self._line(f"{self.stage}: started")

    def finished(self, seconds: float) -> None:
        """Say that it is done, after ``seconds`` of work."""
        self.event("finished", seconds=seconds)
        self._line(f"{self.stage}: done in {clock(seconds)}")

    def failed(self, message: str) -> None:
        """Say why it stopped."""
        self.event("failed", message=message)
        self._line(f"{self.stage}: {message}")

    def note(self, text: str) -> None:
        """Tell something worth knowing."""
        self.event("note", text=text)
        self._line(f"{self.stage}: {text}")

    def warn(self, text: str) -> None:
        """Tell something that may need an act."""
        self.event("warning", text=text)
        self._line(f"{self.stage}: warning: {text}")

    def progress(self, phase: str, done: int, total: int, unit: str, scale: float = 1.0, **figures: float) -> None:
        """Report that ``done`` of ``total`` steps of ``phase`` are behind.

        Args:
            phase: what is going on; a new one starts the clock again.
            done: steps done.
            total: steps in all.
            unit: what ``scale`` counts, for the rate.
            scale: units a step.
            figures: shown behind, a loss for example.
        """
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_start, self._first_done, self._drawn = phase, now, done, 0.0
        pause = 0.2 if self._events or self._terminal else 60.0
        if done < total and now - self._drawn < pause and self._drawn:
            return
        self._drawn = now
        spent = now - self._phase_start
        rate = (done - self._first_done) / spent if spent > 0 else 0.0
        eta = (total - done) / rate if rate > 0 else 0.0
        values = {
            "phase": phase,
            "done": done,
            "total": total,
            "unit": unit,
            "rate": rate * scale,
            "eta": eta,
        }
        self.event("progress", **values, figures=figures)
        if self._events is None and self._stream:
            text = describe({**values, "stage": self.stage, "figures": figures})
            if self._terminal and done < total:
                self._stream.write("\r\x1b[K" + text)
                self._stream.flush()
            else:
                self._line(text)


def pace(event: dict[str, Any]) -> str:
    """Return rate and time left of a progress event; nothing while they are not known."""
    return f"  {event['rate']:,.0f} {event['unit']}/s  ETA {clock(event['eta'])}" if event["rate"] > 0 else ""


def describe(event: dict[str, Any]) -> str:
    """Return a progress event as one line."""
    shown = "".join(f"  {name} {value:.4g}" for name, value in event["figures"].items())
    return f"{event['stage']}: {event['phase']} {event['done']}/{event['total']}{pace(event)}{shown}"
