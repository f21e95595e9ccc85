from __future__ import annotations

import os
from pathlib import Path

import pytest

from tenfold.environment import Environment, cores
from tenfold.errors import ConfigError

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, HERE),
        ({"cpu.max": "99900000 100000\n"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, HERE),
        ({"cpu.max": ""}, HERE),
        ({}, HERE),
    ],
)
def test_a_container_s_quota_bounds_the_cores(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == expected


def test_a_process_trains_by_itself_unless_the_environment_describes_a_trainjob(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Environment.read().trainjob is None
    monkeypatch.setenv("TENFOLD_TRAINJOB", "")
    assert Environment.read().trainjob is None
    monkeypatch.setenv("TENFOLD_TRAINJOB", '{"image": "i"}')
    assert Environment.read().trainjob == '{"image": "i"}'


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TENFOLD_PROCESSES", "nan", "a number from 0 on"),
        ("TENFOLD_PROCESSES", "-1", "a number from 0 on"),
        ("TENFOLD_PROCESSES", "0.5", "a whole number"),
        ("TENFOLD_THREADS", "inf", "a number from 1 on"),
        ("TENFOLD_THREADS", "0", "a number from 1 on"),
        ("TENFOLD_CHECKPOINT_SECONDS", "-5", "a number from 0 on"),
        ("TENFOLD_OWNER_PID", "-3", "a number from 0 on"),
        ("TENFOLD_CACHE_BYTES", "100GB", "no number"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_name(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is '{value}'.*{told}"):
        Environment.read()
