"""The tracker of a stage: it never waits for MLflow, and MLflow's absence never stops the stage."""

from __future__ import annotations

import threading
import time
from typing import Any

from tenfold.environment import Environment
from tenfold.errors import TenfoldError, redact
from tenfold.progress import Reporter
from tenfold.storage import Store
from tenfold.tracking.failures import DeniedError
from tenfold.tracking.left import leave
from tenfold.tracking.resend import send_left, send_spool
from tenfold.tracking.runs import task_run
from tenfold.tracking.sender import MlflowTracker
from tenfold.tracking.spool import Header, Spool, left_local, told, unsent
from tenfold.tracking.tracker import Recorder, now

#: Seconds between two sendings.
_PAUSE = 5.0
#: Seconds between attempts while MLflow is away: at first, at most, and at most while the stage waits for the end.
_FIRST, _LONGEST, _CLOSING = 1.0, 15.0, 1.0
#: Seconds that a stage which did not succeed waits at most: where MLflow is away, and where the process is told to end.
_FAILED, _KILLED = 5.0, 10.0


class QueuedTracker(Recorder):
    """A tracker whose calls return at once; a thread opens the run and sends what was recorded, in order.

    A record is a line of a file in ``environment.home`` (:mod:`tenfold.tracking.spool`) until MLflow has it. While
    MLflow is away (no connection, 5xx, time-outs, a locked database) the thread tries again and the stage works on.

    What is promised: each record reaches MLflow once, with the time at which it was made, in order within the task, if
    MLflow comes back

    - while the stage works, or within ``environment.tracking_patience`` seconds after it;
    - later: then :meth:`finish` leaves the rest in the store, and the next task of this run, or the preflight of the
      next run on this store, sends it;
    - after this process was killed without notice: then the file stays, and the next attempt of the task on this
      machine sends it, or the next run here. Points behind the last checkpoint are computed again; a point of the
      same name, step and value is kept once, and where computing is not reproducible both values stay.

    What is not: a killed pod takes its unsent records with it (the curves are in the training's ``history.json`` all
    the same); a file or folder is sent from where it lies, and told as missing if it is gone by then; a power failure
    may take the last lines. What MLflow refuses for good (400: a changed parameter, a deleted run) is passed over and
    told once; where it denies access (401, 403) the thread stops, and the rest is left as above.
    """

    def __init__(self, environment: Environment, task: str, store: Store, reporter: Reporter) -> None:
        """Begin an attempt; preflight has found MLflow well, so its absence now is no error.

        Raises:
            OSError: ``environment.home`` cannot be written to.
        """
        self._environment, self._task, self._store, self._reporter = environment, task, store, reporter
        header = Header.of(environment, task)
        self._started, self._spool = header.started, Spool.make(environment.home, header)
        self._patience = environment.tracking_patience
        self._run: MlflowTracker | None = None
        self._away, self._trouble = False, ""
        self._refused = self._lost = 0
        self._recorded, self._opened = threading.Event(), threading.Event()
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
        self._thread.start()

    # --- in the stage's thread -------------------------------------------------------------------------

    def _record(self, op: str, **values: Any) -> None:
        if self._closing.is_set():
            return
        try:
            self._spool.add(op, values)
        except OSError as error:
            if not self._lost:
                self._reporter.warn(f"MLflow misses what cannot be written to {self._spool.path}: {error.strerror}")
            self._lost += 1
        self._recorded.set()

    @property
    def run_id(self) -> str | None:
        """The MLflow run; waits for it as long as :meth:`finish` would, and is None where MLflow stays away."""
        start = time.monotonic()
        self._opened.wait(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - start))  # one patience for all waiting
        return None if self._run is None else self._run.run_id

    def finish(self, status: str) -> None:
        """See :class:`Tracker`; waits until all is sent, but no longer than the patience, and raises nothing.

        A stage that failed or is told to end waits a few seconds at most.
        """
        if not self._closing.is_set():
            self._record("finish", status=status, time=now())
            self._close(status)

    def hand_over(self, status: str) -> None:
        """Wait as :meth:`finish` does, and leave the run open for the process that ends it.

        Args:
            status: how this process ends: FINISHED, FAILED or KILLED.
        """
        if not self._closing.is_set():
            self._close(status)

    def _close(self, status: str) -> None:
        self._closing.set()
        self._recorded.set()
        self._wait_for_end(status)
        self._given_up.set()
        if not self._thread.is_alive() and not self._trouble:
            self._spool.remove()
        else:
            self._leave()
        if self._refused > 1:
            self._reporter.warn(f"MLflow refused {self._refused} records in all")

    def _wait_for_end(self, status: str) -> None:
        start = time.monotonic()
        while self._thread.is_alive():
            limit = min(self._patience, _KILLED) if status == "KILLED" else self._patience
            if self._away and status != "FINISHED":
                limit = min(limit, _FAILED)
            left = limit - (time.monotonic() - start)
            if left <= 0:
                return
            self._thread.join(min(left, 0.5))

    def _leave(self) -> None:
        missing = told(unsent(self._spool.path))
        if not missing:
            self._spool.remove()
            return
        why = self._trouble or f"MLflow did not answer at {redact(self._environment.tracking_uri)}"
        then = "the run's next task, or the next run on this store, sends it"
        try:
            for path in left_local(self._environment.home, self._environment.run_id, self._task):
                earlier = Spool.abandoned(path)
                if earlier is not None:
                    leave(earlier, self._store)
            place = f"{self._store.uri}/{leave(self._spool, self._store)}"
        except (TenfoldError, OSError) as error:
            self._spool.close()
            place, then = str(self._spool.path), f"the next run on this machine sends it (the store: {error})"
        if "file" in missing:
            then += "; files must then still be where they are now"
        self._reporter.warn(f"{why}; of {self._task}, MLflow lacks {missing}: this waits at {place}, and {then}")

    # --- in the tracker's thread -----------------------------------------------------------------------

    def _work(self) -> None:
        pause = _FIRST
        while not self._given_up.is_set():
            self._recorded.clear()  # before the look at what there is
            ending = self._closing.is_set()
            try:
                run = self._run or self._open()
                send_spool(run, self._spool, self._refuse)
            except DeniedError as error:
                self._trouble = str(error)
                break
            except TenfoldError as error:
                if not self._away:
                    self._reporter.note(f"works on while MLflow is away; what it records waits on disk ({error})")
                self._away = True
                self._rest(pause)
                pause = min(2 * pause, _LONGEST)
                continue
            except Exception as error:  # a defect of ours; the stage's result is worth more than its curves
                self._trouble = f"defect in tracking: {type(error).__name__}: {redact(str(error))}"
                break
            if self._away:
                self._reporter.note("MLflow answers again and has what waited")
            pause, self._away = _FIRST, False
            if ending:
                break
            self._recorded.wait()
            self._closing.wait(_PAUSE)
        self._opened.set()

    def _open(self) -> MlflowTracker:
        environment = self._environment
        send_left(environment, self._store, self._refuse, run_id=environment.run_id, task=self._task)
        self._run = task_run(environment, self._task, started=self._started)
        self._opened.set()
        return self._run

    def _refuse(self, reason: str) -> None:
        if not self._refused:
            self._reporter.warn(f"MLflow will miss what it refuses: {reason}")
        self._refused += 1

    def _rest(self, seconds: float) -> None:
        """Wait before the next attempt; the stage's end cuts it short."""
        if self._closing.wait(seconds):
            self._given_up.wait(min(seconds, _CLOSING))
