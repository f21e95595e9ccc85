"""Hostile or broken records in the work place are never unpickled, and end in one message or are passed over (F24).

And what two runs of a fingerprint make of the published result, in the same process (F28).
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold import execution, launch, worker
from tenfold.errors import LaunchError, StorageError, TrainJobError
from tenfold.execution import _clean
from tenfold.storage import FileStore
from tenfold.training.checkpoint import Checkpoint, Checkpoints
from tenfold.work import FINAL, Work, published
from tenfold.worker import FAILURE, REQUEST, RESULT

MakeWork = Callable[..., Work]


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture(params=["pickle", "text", "list", "other"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    kinds = {"pickle": pickle.dumps(_Canary(tmp_path / "canary")), "text": b"so", "list": b"[1]", "other": b'{"a":1}'}
    return kinds[request.param]


def at(step: int, value: float) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.tensor([value])}, {"history": []})


def test_a_hostile_final_record_is_passed_over_with_a_warning_and_replaced(
    make_work: MakeWork, tmp_path: Path, hostile: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    work = make_work()
    work.store.write(f"{work.shared}{FINAL}", hostile)
    with Checkpoints(work) as kept:
        kept.save(at(3, 1.0))
        kept.wait()
        found = kept.latest()
        assert found is not None
        assert found.step == 3
        assert kept.publish(3) is None
    assert published(work) == (3, f"{work.own}checkpoints/000000003/")
    assert "final.json cannot be read" in capfd.readouterr().err
    assert not (tmp_path / "canary").exists()


def test_a_final_record_that_names_a_place_outside_the_store_is_passed_over(make_work: MakeWork) -> None:
    work = make_work()
    with Checkpoints(work) as kept:
        kept.save(at(3, 1.0))
        kept.wait()
        work.store.write(f"{work.shared}{FINAL}", b'{"folder":"../../etc/","step":9}')
        found = kept.latest()
    assert found is not None
    assert found.step == 3


def afar(work: Work, patch: pytest.MonkeyPatch, end: Callable[[str], None]) -> Any:
    """Run a stage as a TrainJob whose end is ``end``, given the place of its records."""
    spec = launch.TrainJobSpec(image="train@sha256:" + "a" * 64, nodes=1, gpus_per_node=1, deadline_seconds=3600)
    work = replace(work, environment=replace(work.environment, trainjob=spec.to_json()))
    patch.setattr(launch, "run_trainjob", lambda *_, **__: end(f"{work.own}launch/"))
    return launch.launch("baseline", "finetune", "{}", {}, {}, work)


def test_a_hostile_result_is_one_message(
    make_work: MakeWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: bytes
) -> None:
    work = make_work()
    with pytest.raises(LaunchError, match=r"result\.json is no result; remove it"):
        afar(work, monkeypatch, lambda place: work.store.write(place + RESULT, hostile))
    assert not (tmp_path / "canary").exists()


def test_a_hostile_reason_of_a_failure_is_one_message(
    make_work: MakeWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: bytes
) -> None:
    work = make_work()

    def fail(place: str) -> None:
        work.store.write(place + FAILURE, hostile)
        raise TrainJobError("it failed")

    with pytest.raises(LaunchError, match=r"failure\.json cannot be read; see its log"):
        afar(work, monkeypatch, fail)
    assert not (tmp_path / "canary").exists()


def test_a_hostile_request_ends_a_rank_with_one_reason(make_work: MakeWork, tmp_path: Path, hostile: bytes) -> None:
    work, place = make_work(), "work/place/"
    work.store.write(place + REQUEST, hostile)
    variables = {"TENFOLD_STORE": work.store.uri, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    variables |= {"PYTHONPATH": ":".join(path for path in sys.path if path), "TENFOLD_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "tenfold.worker", place + REQUEST]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert b"request.json is no request that this version can read" in work.store.read(place + FAILURE)
    assert not (tmp_path / "canary").exists()


def test_the_first_rank_to_fail_tells_the_launcher_and_those_that_lost_it_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(worker.REASON, str(tmp_path / "reason.json"))
    worker._tell_launcher(RuntimeError("[gloo/pair.cc:5] Connection closed by peer"))
    assert not (tmp_path / "reason.json").exists()
    worker._tell_launcher(ValueError("boom"))
    worker._tell_launcher(StorageError("the server cannot be reached", again=True))
    assert json.loads((tmp_path / "reason.json").read_text()) == {"message": "defect: ValueError: boom", "again": False}
    (tmp_path / "reason.json").unlink()
    worker._tell_launcher(StorageError("the server cannot be reached", again=True))
    assert json.loads((tmp_path / "reason.json").read_text())["again"] is True


def test_ranks_that_wait_for_one_that_failed_are_ended(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch) -> None:
    work, place = make_work(), "work/place/"
    monkeypatch.setattr(launch, "_LOOK", 0.05)
    monkeypatch.setattr(launch, "_GRACE", 0.2)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    work.store.write(place + FAILURE, b"{}")
    assert launch._ended(process, work, place) == -signal.SIGTERM


# --- F28 -------------------------------------------------------------------------------------------------


def test_the_second_run_to_end_takes_the_first_s_result_though_its_own_differs(make_work: MakeWork) -> None:
    first, second = make_work(run_id="a"), make_work(run_id="b")
    with Checkpoints(first) as ours, Checkpoints(second) as theirs:
        ours.save(at(5, 1.0))
        theirs.save(at(5, 2.0))
        assert ours.publish(5) is None
        taken = theirs.publish(5)
        assert taken is not None
        assert taken.tensors["weight"].tolist() == [1.0]
        assert ours.publish(5) is None, "a second time says the same"
    assert published(second) == (5, f"{first.own}checkpoints/000000005/")


def test_cleaning_keeps_the_published_result_for_a_run_at_work_and_removes_all_after_the_last(
    make_work: MakeWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, dead = (make_work(run_id=name) for name in ("a", "b", "dead"))
    for work, value in ((first, 1.0), (second, 2.0), (dead, 3.0)):
        with Checkpoints(work) as kept:
            kept.save(at(4, value))
            kept.save(at(5, value))
            if work is first:
                kept.publish(5)
    its = {entry.key for entry in second.store.list(second.own)}
    assert isinstance(first.store, FileStore)
    halves = [first.store.root / run.own / ".writing-half" for run in (first, second, dead)]
    for half in halves:
        half.write_bytes(b"half")
    monkeypatch.setattr(execution, "ended_tasks", lambda *_: {"dead"})
    _clean(first, result=False)
    kept_result = {f"{first.own}checkpoints/000000005/{name}" for name in ("state.safetensors", "state.json")}
    kept_result |= {f"{first.own}checkpoints/000000005/complete.json", f"{first.shared}{FINAL}"}
    assert {entry.key for entry in first.store.list()} == its | kept_result
    assert [half.exists() for half in halves] == [False, True, False], "the second may be writing it now"
    monkeypatch.setattr(execution, "ended_tasks", lambda *_: {"a", "dead"})
    with Checkpoints(second) as kept:
        taken = kept.publish(5)
    assert taken is not None
    assert taken.tensors["weight"].tolist() == [1.0]
    _clean(second, result=True)
    assert {entry.key for entry in first.store.list()} == kept_result
    _clean(second, result=False)
    assert list(first.store.list()) == []
