"""What `tenfold run` and `tenfold retrain` do: a pipeline on this machine, its display, and what it came to."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tenfold.components.preflight.stage import Request, check
from tenfold.config import PromoteConfig
from tenfold.environment import Environment
from tenfold.errors import redact

DEFAULT_MODEL = PromoteConfig().model


def run_here(pipeline: str, request: Request, console: Console, live: Console, *, cache: bool) -> None:
    """Run a pipeline on this machine, draw how far it is, and print what it came to.

    Args:
        pipeline: its name.
        request: preset and overrides.
        console: for what it came to.
        live: for what is drawn meanwhile.
        cache: take unchanged stages from the cache.
    """
    from tenfold.cli.display import RETRAIN_STAGES, STAGES, Display

    start = time.monotonic()
    check(request.resolve())
    run_id = os.environ.get("TENFOLD_RUN_ID") or time.strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex()
    environment = replace(Environment.read(), run_id=run_id)
    folder = environment.home / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"run {run_id}; log {folder / 'pipeline.log'}", highlight=False, soft_wrap=True)
    _stop_on_signals()
    from tenfold.pipelines.catalogue import RETRAIN
    from tenfold.pipelines.local import run_locally

    arguments = {"preset": request.preset, "overrides": request.overrides}
    with Display(folder / "events.jsonl", live, RETRAIN_STAGES if pipeline == RETRAIN else STAGES):
        run_locally(arguments, environment, cache=cache, pipeline=pipeline)
    _conclude(environment, folder, console, time.monotonic() - start)


def _conclude(environment: Environment, folder: Path, console: Console, wall: float) -> None:
    """Fetch the report and print the summary."""
    from tenfold.cli.display import summary, summary_of_stop
    from tenfold.storage import open_store

    store = open_store(environment.store)
    result = json.loads(store.read(f"runs/{environment.run_id}/result.json"))
    (folder / "report.html").write_bytes(store.read(f"runs/{environment.run_id}/report.html"))
    places = {"report": str(folder / "report.html"), "MLflow": _mlflow_place(environment.tracking_uri)}
    if "stopped" in result:
        summary_of_stop(result, console, wall, {"dataset": result["stopped"]["dataset"], **places})
        return
    program = "tenfold" if shutil.which("tenfold") else sys.argv[0]  # make calls one that is on no PATH
    command = f"{program} predict{_model_option(result['verdict'])} IMAGE…"
    summary(result, console, wall, {"dataset": result["evaluation"]["dataset"], **places, "next": command})


def _model_option(verdict: Mapping[str, Any]) -> str:
    """Return the option by which `tenfold predict` takes the student."""
    if verdict["alias"] != "champion":
        return f" --model {verdict['model']}/{verdict['version']}"
    return "" if verdict["model"] == DEFAULT_MODEL else f" --model {verdict['model']}"


def _mlflow_place(uri: str) -> str:
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite:") else redact(uri)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM came; the stages are ended already."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stop_on_signals() -> None:
    """Make Ctrl-C and SIGTERM end the stages, then unwind this process."""

    def stop(number: int, frame: object) -> None:
        from tenfold.pipelines.local import end_children

        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        end_children()
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
