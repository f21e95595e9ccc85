"""The file that holds what MLflow does not have yet, and what is left of it in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.storage import FileStore
from tenfold.tracking.failures import InvalidRecordError
from tenfold.tracking.left import claimed, discard, leave, left
from tenfold.tracking.spool import Header, Spool, header_of, left_local, told, unsent

HEADER = Header("run", "task", "experiment", "http://mlflow", 5)


def spool_of(home: Path, *steps: int, header: Header = HEADER) -> Spool:
    made = Spool.make(home, header)
    for step in steps:
        made.add("metrics", {"metrics": {"loss": 1 / step}, "step": step, "time": step})
    return made


def steps_of(records: object) -> list[int]:
    return [record["step"] for record in records]  # type: ignore[attr-defined]


def test_records_come_in_order_a_part_at_a_time_and_what_is_acknowledged_comes_no_more(home: Path) -> None:
    spool = spool_of(home, 1, 2, 3, 4)
    first = spool.next(3)
    assert steps_of(first) == [1, 2, 3]
    assert steps_of(spool.next(3)) == [1, 2, 3], "nothing of it was acknowledged"
    spool.acknowledge(first[1])
    assert steps_of(spool.next(3)) == [3, 4]
    spool.add("metrics", {"metrics": {"loss": 0.1}, "step": 5, "time": 5})
    spool.acknowledge(spool.next(3)[-1])
    assert spool.next(3) == []
    assert list(unsent(spool.path)) == []
    spool.remove()
    assert not (home / "tracking").exists()


def test_a_file_is_taken_over_only_when_its_process_let_go_of_it_and_goes_on_behind_what_was_sent(home: Path) -> None:
    spool = spool_of(home, 1, 2, 3)
    spool.next(10)
    spool.acknowledge({"n": 2})
    assert Spool.abandoned(spool.path) is None
    spool.close()
    with spool.path.open("ab") as file:
        file.write(b'{"n": 4, "op": "metr')  # as far as the killed process came
    taken = Spool.abandoned(spool.path)
    assert taken is not None
    assert Spool.abandoned(spool.path) is None
    (last,) = taken.next(10)
    assert last["step"] == 3
    taken.acknowledge(last)
    assert list(unsent(taken.path)) == [], "the torn line spoils not the one behind it"


def test_attempts_are_numbered_in_the_order_of_their_beginning_and_left_in_that_order(home: Path) -> None:
    store = FileStore(home / "store")
    first, second = spool_of(home, 1), spool_of(home, 2)
    assert left_local(home, "run", "task") == [first.path, second.path]
    first.next(1)
    keys = [leave(first, store), leave(second, store)]
    assert left(store) == left(store, "run") == keys == [f"tracking/run/task/{number:06d}.jsonl" for number in (1, 2)]
    assert left_local(home) == []
    third = leave(spool_of(home, 3), store)
    assert left(store)[-1] == third
    copy = store.fetch(third, home)
    assert header_of(copy) == HEADER
    assert steps_of(unsent(copy)) == [3]


def test_one_of_two_tasks_reserves_what_is_left_and_its_retry_gets_it_again(home: Path) -> None:
    store = FileStore(home / "store")
    key = leave(spool_of(home, 1), store)
    with claimed(store, key, "a") as first, claimed(store, key, "b") as second:
        assert (first, second) == (True, False)
    with claimed(store, key, "b") as mine:
        assert mine, "the first one let go of it"
    store.create(f"{key}.claim", b"a")  # a killed claimant
    with claimed(store, key, "a") as again:
        assert again
    discard(store, key)
    assert list(store.list("tracking/")) == []


def test_a_file_that_is_no_spool_is_named(tmp_path: Path) -> None:
    (tmp_path / "000001.jsonl").write_text("<html>")
    with pytest.raises(InvalidRecordError, match=r"000001.jsonl is no spool"):
        header_of(tmp_path / "000001.jsonl")


def test_what_is_missing_is_told_by_kind() -> None:
    records = [
        {"op": "tags", "tags": {"a": "1", "b": "2"}},
        {"op": "metrics", "metrics": {"loss": 1.0}},
        {"op": "artifact", "path": "/a", "folder": ""},
        {"op": "finish", "status": "FINISHED"},
    ]
    assert told(records) == "1 point, 2 tags, 1 file or folder, the status"
    assert told([]) == ""
