"""Trees of processes: one as on Kubeflow that is killed, ranks that diverge, two runs at once (F3, F16, F28)."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from chain import Made, make_chain
from tasks import PROGRAM, Task, assert_same

from tenfold.data.manifest import Dataset
from tenfold.storage import FileStore
from tenfold.work import FINAL


@pytest.fixture(scope="module")
def made(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_chain(tmp_path_factory.mktemp("stages"), digits)


def test_a_run_that_a_command_made_ends_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the same command, given again, would start a second run of the same name beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path / "home"))
    program = [sys.executable, "-c", "from tenfold.cli import main; main()"]
    with (tmp_path / "told").open("w") as told:
        curve = subprocess.Popen([*program, "label-curve", "--budgets", "1,2"], stdout=told, stderr=told)
    found: list[psutil.Process] = []
    end = time.monotonic() + 120
    while len(found) < 2 and time.monotonic() < end and curve.poll() is None:  # the run, and its first task
        found = psutil.Process(curve.pid).children(recursive=True)
        time.sleep(0.2)
    assert len(found) >= 2, (tmp_path / "told").read_text()
    curve.terminate()
    curve.wait(30)
    _, alive = psutil.wait_procs(found, timeout=30)
    for process in alive:
        process.kill()
    assert not alive


# --- F3 --------------------------------------------------------------------------------------------------

#: Runs what its arguments say, passes no signal on, and waits.
_PARENT = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]


class Step(Task):
    """A task as a Kubeflow step has it: first process, launcher, sh that stays, python."""

    def command(self, output: Path) -> list[str]:
        return [*_PARENT, *_PARENT, "sh", "-c", f"{shlex.join(super().command(output))}; true"]


class Events:
    """What a process told so far."""

    def __init__(self, path: Path, process: subprocess.Popen[str]) -> None:
        self._path, self._process = path, process

    def told(self) -> list[dict[str, Any]]:
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def steps(self) -> list[tuple[int, float]]:
        """Return the steps that were told, and when."""
        return [(event["done"], event["time"]) for event in self.told() if event["kind"] == "progress"]

    def wait(self, until: Any) -> Any:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if found := until(self):
                return found
            assert self._process.poll() is None, self._process.stdout.read() if self._process.stdout else ""
            time.sleep(0.02)
        raise TimeoutError(self.told()[-3:])


def kill_tree(process: subprocess.Popen[str]) -> int:
    """Kill every process of the tree without notice, the first one first; return how many there were."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in tree:
        each.kill()
    process.communicate()
    return len(tree)


def test_a_kubeflow_step_killed_without_notice_loses_no_more_work_than_the_time_between_checkpoints(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    every, config = 0.5, {"network": {"depth": 10, "width": 0.5}}
    task = Step("baseline", digits, made, tmp_path / "step", "torchvision", steps=100_000, every=every, config=config)
    process = task.start(TENFOLD_EVENTS=str(tmp_path / "first"))
    first = Events(tmp_path / "first", process)
    began, start = first.wait(Events.steps)[0]
    first.wait(lambda events: events.steps()[-1][1] - start > 5 * every)
    assert kill_tree(process) >= 4
    last, end = first.steps()[-1]
    step_seconds = (end - start) / (last - began)
    process = task.start(TENFOLD_EVENTS=str(tmp_path / "second"))
    second = Events(tmp_path / "second", process)
    text = second.wait(lambda events: [e["text"] for e in events.told() if "goes on from" in e.get("text", "")])[0]
    kill_tree(process)
    step = int(text.split("step ")[1].split()[0])
    # one interval until the checkpoint is due, and as much for the one that was being written
    assert step >= last - (2 * every + 1) / step_seconds - 1
    assert step > began + 1, "so it is no start anew"


# --- F16 -------------------------------------------------------------------------------------------------


def test_ranks_that_diverge_stop_together_and_are_not_started_again(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    task = Task(
        "baseline", digits, made, tmp_path / "task", "torchvision", processes=2,
        config={"optimizer": {"learning_rate": 1e38}},
    )  # fmt: skip
    status, written = task.run()
    assert status == 2, written
    assert written.count("is not finite at step") == 1
    assert "goes on from" not in written
    assert not (task.folder / "run").exists()
    place = task.folder / "home/store/work"
    left = [json.loads(path.read_text()) for path in place.rglob("nonfinite*.json")]
    assert len({record["step"] for record in left}) == 1
    assert all(len(record["samples"]["labelled"]) == 8 for record in left)


# --- F28 -------------------------------------------------------------------------------------------------

#: Runs a task and notes each change of the store.
_NOTING = """
import json, os, runpy, sys, time
from tenfold.storage import FileStore

def noted(name, whole):
    def change(self, key, *given, **named):
        with open(os.environ["TEST_CHANGES"], "a") as file:
            record = [time.monotonic(), os.environ["TENFOLD_RUN_ID"], name, key]
            file.write(json.dumps(record) + "\\n")
        return whole(self, key, *given, **named)
    return change

for name in ("write", "create", "delete", "sweep"):
    setattr(FileStore, name, noted(name, getattr(FileStore, name)))
program = sys.argv.pop(1)
runpy.run_path(program, run_name="__main__")
"""


class Noted(Task):
    """A task that notes what it changes in the store."""

    def command(self, output: Path) -> list[str]:
        return [sys.executable, "-c", _NOTING, str(PROGRAM), super().command(output)[-1]]


def test_two_runs_of_the_same_fingerprint_at_once_are_both_right_and_write_no_file_of_the_other(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    task = Noted("baseline", digits, made, tmp_path / "task", "torchvision", steps=40)
    changes = {run: tmp_path / f"changes-{run}" for run in "ab"}
    processes = [task.start(run, TEST_CHANGES=str(path)) for run, path in changes.items()]
    for process in processes:
        written, _ = process.communicate(timeout=240)
        assert process.returncode == 0, written
    assert_same(task.result("a"), task.result("b"))
    noted = [tuple(json.loads(line)) for path in changes.values() for line in path.read_text().splitlines()]
    records = sorted(record for record in noted if record[3].startswith("work/"))
    times: dict[str, list[float]] = defaultdict(list)
    for when, run, what, key in records:
        owner = key.split("/")[2] if key.count("/") > 2 else None
        if owner == run and what == "write":
            times[run].append(when)
        assert owner in (None, run) or what in ("delete", "sweep"), f"{run} wrote {key}"
    assert max(times["a"][0], times["b"][0]) < min(times["a"][-1], times["b"][-1]), "they were at work at once"
    for when, run, _, key in records:
        owner = key.split("/")[2] if key.count("/") > 2 else run
        assert owner == run or when > times[owner][-1], f"{run} removed {key} while it was in use"
    store = FileStore(tmp_path / "task/home/store")
    kept = {entry.key.split("/", 2)[2] for entry in store.list("work/")}
    final = json.loads(next(store.read(entry.key) for entry in store.list("work/") if entry.key.endswith(FINAL)))
    folder = final["folder"].split("/", 2)[2]
    files = {f"{folder}{name}" for name in ("complete.json", "state.json", "state.safetensors")}
    assert kept == {FINAL, *files}, "the result stays until the next stage has read its output, and nothing else"
