"""Drawing a local run: a line a stage on a terminal, a line a minute in a log, and the summary at the end."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tenfold.progress import clock, count, describe, pace

STAGES = ("preflight", "list_images", "pack", "shard", "augment", "pretrain", "finetune", "self_train",
          "pseudo_label", "distill", "baseline", "evaluate", "promote", "finish")  # fmt: skip
RETRAIN_STAGES = (*STAGES[:4], "novelty", *STAGES[4:])
_LOG_SECONDS = 60.0


class Display:
    """Follows the events file of a run while the pipeline works in the main thread."""

    def __init__(self, events: Path, console: Console, stages: tuple[str, ...] = STAGES) -> None:
        self._events, self._console, self._stages = events, console, stages
        self._state: dict[str, dict[str, Any]] = {}
        self._notes: list[Text] = []
        self._stopped = False  # early, by a stage's own decision
        self._spinner = Spinner("dots")
        self._offset, self._logged = 0, time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="display")
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=5, transient=False)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._read()
        if error[0] is None:
            self._mark_cached(len(self._stages), "")
        if self._console.is_terminal:
            self._live.stop()

    def _follow(self) -> None:
        while not self._done.wait(0.2):
            self._read()

    def _read(self) -> None:
        if not self._events.is_file():
            return
        with self._events.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        stage, kind = event["stage"], event["kind"]
        state = self._state.setdefault(stage, {"status": "waiting"})
        if kind == "preparing" and stage in self._stages:
            # the baseline stands beside the chain: it waits for the views alone
            self._mark_cached(self._stages.index("pretrain" if stage == "baseline" else stage), stage)
            state["status"] = "working"
        elif kind == "progress":
            state.update(event, status="working")
            if not self._console.is_terminal and time.monotonic() - self._logged > _LOG_SECONDS:
                self._logged = time.monotonic()
                self._console.print(describe(event), highlight=False, markup=False)
        elif kind == "finished":
            state.update(status="done", seconds=event["seconds"])
            self._log(f"{stage}: done in {clock(event['seconds'])}")
        elif kind == "stopped":
            self._stopped = True
        elif kind == "failed":
            state["status"] = "failed"
            told = f"{stage}: failed: {event['message']}"
            self._notes.append(Text(told, style="red"))
            self._log(told)
        elif kind in {"note", "warning"}:
            text = f"{stage}: {'warning: ' if kind == 'warning' else ''}{event['text']}"
            self._notes.append(Text(text, style="yellow" if kind == "warning" else "dim"))
            self._log(text)

    def _log(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False)

    def _mark_cached(self, before: int, starting: str) -> None:
        """What has not been heard of when a stage that needs it starts was taken from the cache, or is not needed."""
        if any(state["status"] == "failed" for state in self._state.values()):
            return  # the exit task, which needs nothing
        for stage in self._stages[:before]:
            if stage not in self._state:
                self._state[stage] = {"status": "skipped" if self._stopped else "cached"}
                if not self._stopped:
                    self._log(f"{stage}: cached")

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for stage in self._stages:
            state = self._state.get(stage, {"status": "waiting"})
            table.add_row(*self._row(stage, state))
        return Group(table, *self._notes[-4:])

    def _row(self, stage: str, state: dict[str, Any]) -> tuple[RenderableType, ...]:
        status = state["status"]
        if status == "working":
            if "total" not in state:
                return self._spinner, Text(stage, style="bold"), Text("")
            figures = "  ".join(f"{name} {value:.3g}" for name, value in state["figures"].items())
            line = Table.grid(padding=(0, 1))
            line.add_row(
                ProgressBar(total=state["total"], completed=state["done"], width=28),
                f"{state['done']}/{state['total']}{pace(state)}  {figures}",
            )
            return self._spinner, Text(stage, style="bold"), line
        marks = {
            "waiting": ("·", "dim"),
            "cached": ("↺", "cyan"),
            "skipped": ("–", "dim"),
            "done": ("✓", "green"),
            "failed": ("✗", "red"),
        }
        mark, style = marks[status]
        detail = {"cached": "cached", "done": clock(state.get("seconds", 0)), "failed": "failed"}.get(status, "")
        return (
            Text(mark, style=style),
            Text(stage, style="dim" if status in {"waiting", "skipped"} else ""),
            Text(detail, style="dim"),
        )


def summary(result: dict[str, Any], console: Console, wall: float, places: dict[str, str]) -> None:
    """Print what the run came to: the ladder, the verdict, and where to look next."""
    evaluation, verdict = result["evaluation"], result["verdict"]
    labels, tests = evaluation["counts"]["labelled"], evaluation["test_images"]
    chose = f", beside {evaluation['served']['choosing']} that chose" if evaluation["served"]["choosing"] else ""
    table = Table(title=f"{labels} labels, {tests} test images{chose}", title_justify="left", title_style="bold")
    table.add_column("rung")
    table.add_column(f"top-1 ({evaluation['confidence']:.0%} interval)", justify="right")
    table.add_column("shipped one's gain", justify="right")
    table.add_column("time", justify="right")
    for rung in evaluation["rungs"]:
        top1, gain = rung["top1"], rung["gain"]
        told = f"{gain['value'] * 100:+.1f} ({gain['low'] * 100:+.1f} to {gain['high'] * 100:+.1f})" if gain else ""
        table.add_row(
            Text(rung["title"]), f"{top1['value']:.1%} ({top1['low']:.1%} to {top1['high']:.1%})", told,
            clock(rung["seconds"]), style="bold" if rung["served"] else "",
        )  # fmt: skip
    console.print()
    console.print(table)
    console.print(f"Shipped: {evaluation['served']['told']}.", highlight=False, markup=False)
    if evaluation["leaks"]:
        console.print(f"[red]{len(evaluation['leaks'])} test images are also training images (data.allow_leaks).[/red]")
    if evaluation["quarantined"]:
        console.print(f"{count(len(evaluation['quarantined']), 'image')} quarantined; the report lists them.")
    console.print(f"{verdict['model']} version {verdict['version']}: [bold]{verdict['alias']}[/bold]")
    for reason in verdict["reasons"]:
        console.print(f"  {reason}", highlight=False)
    _print_places(console, wall, places)


def summary_of_stop(result: dict[str, Any], console: Console, wall: float, places: dict[str, str]) -> None:
    """Print why a retraining ended early, and where to look next."""
    console.print(f"\n[bold]Nothing to retrain on[/bold]: {result['stopped']['reason']}", highlight=False)
    _print_places(console, wall, places)


def _print_places(console: Console, wall: float, places: dict[str, str]) -> None:
    console.print(f"\nRun time {clock(wall)}")
    for name, place in places.items():
        console.print(f"{name:<8} {place}", highlight=False, soft_wrap=True)
