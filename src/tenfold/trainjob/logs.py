"""The log of a job's first pod, shown while the launcher waits. Whatever happens to it, the job goes on."""

from __future__ import annotations

import sys
import threading
import time

from tenfold.errors import redact
from tenfold.progress import Reporter
from tenfold.trainjob.cluster import Cluster
from tenfold.trainjob.refusals import answer, missing_rule


class LogStream:
    """Writes a pod's log to standard error, as the pod's reporter wrote it, from a thread.

    A stream that breaks is opened again behind the last line that came; that is noted once.

    Args:
        cluster: where the pods are.
        reporter: for notes about the stream.
        pause: seconds before it is opened again.
    """

    def __init__(self, cluster: Cluster, reporter: Reporter, pause: float) -> None:
        self._cluster, self._reporter, self._pause = cluster, reporter, pause
        self._pod: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._noted = False

    def follow(self, pod: str) -> None:
        """Show the log of ``pod``; of another one than before, instead of that one's."""
        if pod != self._pod:
            self._pod = pod
            self._thread = threading.Thread(target=self._show, args=(pod,), daemon=True, name="trainjob-log")
            self._thread.start()

    def finish(self, seconds: float = 10) -> None:
        """Show what is left, for at most ``seconds``: call it when the job has ended."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _show(self, pod: str) -> None:
        seen, heard = "", time.monotonic()
        first = True
        while pod == self._pod:
            last = self._ended.is_set()
            since = None if first else int(time.monotonic() - heard) + 60  # more than needed: what was seen is dropped
            try:
                for line in self._cluster.log(pod, since):
                    stamp, _, text = line.partition(" ")
                    if stamp > seen and pod == self._pod:
                        seen, heard, first = stamp, time.monotonic(), False
                        _write(text)
            except TimeoutError:
                pass  # a silent training
            except Exception as error:  # whatever it is, it must not end the wait for the job
                if self._is_final(error):
                    return
            if last:
                return
            self._ended.wait(self._pause)

    def _is_final(self, error: Exception) -> bool:
        """Note that the stream broke; return whether it would break again."""
        from kubernetes.client import ApiException

        status, message, _ = answer(error) if isinstance(error, ApiException) else (0, f"{error}", {})
        if not self._noted:
            self._noted = True
            self._reporter.note(
                f"the log of {self._pod} broke off ({type(error).__name__}: {message}{missing_rule(message)}); the job "
                "goes on"
            )
        return status in (401, 403, 404)


def _write(text: str) -> None:
    stream = sys.__stderr__  # KFP redirects sys.stderr
    if stream is not None:
        stream.write(redact(text) + "\n")
        stream.flush()
