from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tenfold.progress import Reporter, clock, describe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def events_in(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (-3, "0:00"), (59.6, "1:00"), (75, "1:15"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_a_clock_shows_minutes_and_hours_where_there_are_any(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_events_go_to_the_file_as_json_lines_and_nothing_to_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", screen)
    reporter = Reporter("distill", tmp_path / "events")
    reporter.started()
    reporter.note("two\nlines")
    reporter.warn("careful")
    reporter.progress("training", 3, 10, "images", scale=64, loss=0.5)
    reporter.failed("broken")
    reporter.finished(1.5)
    events = events_in(tmp_path / "events")
    assert [event["kind"] for event in events] == ["started", "note", "warning", "progress", "failed", "finished"]
    assert {event["stage"] for event in events} == {"distill"}
    assert events[1]["text"] == "two\nlines"
    assert events[3]["figures"] == {"loss": 0.5}
    assert (events[3]["done"], events[3]["total"], events[3]["phase"]) == (3, 10, "training")
    assert events[5]["seconds"] == 1.5
    assert screen.getvalue() == ""


def test_events_of_two_reporters_are_appended_to_one_file(tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        Reporter(name, tmp_path / "events").started()
    assert [event["stage"] for event in events_in(tmp_path / "events")] == ["one", "two", "one"]


def test_a_log_gets_the_first_and_the_last_line_and_not_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", log)
    reporter = Reporter("pretrain")
    for done in range(1, 101):
        reporter.progress("training", done, 100, "images")
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "pretrain: training 1/100"  # no rate is known yet
    assert lines[1].startswith("pretrain: training 100/100  ")
    assert "\r" not in log.getvalue()


def test_a_new_phase_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", log)
    reporter = Reporter("shard")
    reporter.progress("checking", 1, 9, "images")
    reporter.progress("checking", 2, 9, "images")
    reporter.progress("packing", 1, 9, "images")
    assert [line.split()[1] for line in log.getvalue().splitlines()] == ["checking", "packing"]


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "__stderr__", screen)
    reporter = Reporter("shard")
    reporter.progress("checking", 1, 2, "images")
    assert screen.getvalue().startswith("\r\x1b[K")
    assert "\n" not in screen.getvalue()
    reporter.progress("checking", 2, 2, "images")
    assert screen.getvalue().count("\n") == 1


def test_without_a_screen_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", None)
    reporter = Reporter("shard")
    reporter.started()
    reporter.progress("checking", 1, 2, "images")
    reporter.finished(1.0)


def test_the_rate_counts_units_since_the_phase_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tenfold.progress.time.monotonic", lambda: now[0])
    reporter = Reporter("pretrain", tmp_path / "events")
    reporter.progress("training", 50, 100, "images", scale=64)  # resumed: 50 steps are not this run's
    now[0] = 110.0
    reporter.progress("training", 70, 100, "images", scale=64)
    last = events_in(tmp_path / "events")[-1]
    assert last["rate"] == pytest.approx(2 * 64)
    assert last["eta"] == pytest.approx(15)


def test_a_progress_line_shows_rate_time_left_and_figures() -> None:
    event = {"stage": "distill", "phase": "training", "done": 5, "total": 20, "rate": 1234.4, "unit": "images",
             "eta": 75.0, "figures": {"loss": 0.123456}}  # fmt: skip
    assert describe(event) == "distill: training 5/20  1,234 images/s  ETA 1:15  loss 0.1235"
