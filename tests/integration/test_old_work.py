"""Which work places may go: by age, and by what MLflow knows to be at work; on a folder and on real S3."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tenfold.cli.data import collect_garbage
from tenfold.environment import Environment
from tenfold.storage import FileStore, open_store
from tenfold.tracking import parent_run, task_run
from tenfold.work import find_old

DAY = 86_400


@pytest.fixture
def store(home: Path) -> FileStore:
    made = FileStore(home / "store")
    for place in ("a" * 64, "b" * 64, "c" * 64):
        for name in ("state.safetensors", "complete.json"):
            made.write(f"work/{place}/run-{place[0]}/checkpoints/5/{name}", b"x")
        made.write(f"work/{place}/final.json", b"{}")
    return made


def age(store: FileStore, place: str, days: float) -> None:
    for path in (store.root / "work" / place).rglob("*"):
        os.utime(path, (time.time() - DAY * days,) * 2)


def names(store: FileStore, days: float) -> list[str]:
    return [place[0].key.split("/")[1][0] for place in find_old(store, Environment.read(), days)]


def test_what_was_written_lately_stays(store: FileStore) -> None:
    age(store, "a" * 64, 8)
    age(store, "b" * 64, 8)
    os.utime(store.root / "work" / ("b" * 64) / "final.json")
    assert names(store, 7) == ["a"]
    assert names(store, 9) == []


def test_what_a_run_at_work_has_made_or_read_stays_whatever_its_age(store: FileStore) -> None:
    for place in "abc":
        age(store, place * 64, 100)
    at_work = replace(Environment.read(), run_id="run-a")
    parent = parent_run(at_work)
    reader = replace(Environment.read(), run_id="another", experiment="elsewhere")
    task = task_run(reader, "pretrain")
    task.tags({"tenfold.fingerprint": "b" * 64})
    task.finish("FINISHED")  # its parent is not: the next stage will read the result
    assert names(store, 30) == ["c"]
    parent.finish("FINISHED")
    parent_run(reader).finish("KILLED")
    assert names(store, 30) == ["a", "b", "c"]


def test_the_command_lists_or_removes_and_a_half_removed_place_looks_like_no_result(
    store: FileStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in "ab":
        age(store, place * 64, 100)
    collect_garbage(dry_run=True, work_days=30)
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [key.rpartition("/")[2] for key in told[:3]] == ["final.json", "complete.json", "state.safetensors"]
    assert len(told) == 6
    assert len(list(store.list("work/"))) == 9
    collect_garbage(work_days=30)
    assert {entry.key.split("/")[1] for entry in store.list("work/")} == {"c" * 64}
    collect_garbage()
    assert len(list(store.list("work/"))) == 3, "without --work-days work places stay"


def test_s3_tells_when_an_object_was_written(s3: str) -> None:
    store = open_store(f"{s3}/store")
    store.write(f"work/{'a' * 64}/run/state", b"x")
    ((entry, written),) = store.dated("work/")
    assert [entry] == list(store.list("work/"))
    assert abs(written - time.time()) < 600
    assert find_old(store, Environment.read(), 1) == []
    time.sleep(1.1)
    assert len(find_old(store, Environment.read(), 1e-6)) == 1
