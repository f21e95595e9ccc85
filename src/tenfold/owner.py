"""A process that ends when the one that it works for is gone, however that went."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import psutil


def end_with(owner: int | None) -> None:
    """End this process when the process ``owner`` is gone; None: it belongs to nobody."""
    if owner is None:
        return
    try:
        watched = psutil.Process(owner)
    except psutil.NoSuchProcess:
        os._exit(75)

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went between two questions
            while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        os._exit(75)

    threading.Thread(target=watch, daemon=True, name="owner-watch").start()
