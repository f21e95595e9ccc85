"""What a kill, a flipped bit, bad numbers and hostile files do to a training (FAULTS.md F1, F2, F5, F16, F24)."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tenfold.data.manifest import Dataset

#: Fine-tunes through the stage's plain function; argv: dataset, view, evaluation view, encoder or "", output,
#: store, run id, steps, and the write into the store at which the process kills itself (0: never).
_TRAIN = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tenfold.components.finetune.stage import Inputs, Outputs, run
from tenfold.config import BaselineConfig, OptimizerConfig, ResNetConfig
from tenfold.environment import Environment
from tenfold.errors import InterruptedTrainingError
from tenfold.progress import Reporter
from tenfold.storage import FileStore
from tenfold.work import Work

dataset, view, evaluation, output, store, run_id, steps, kill = sys.argv[1:]

class Mortal(FileStore):
    writes = 0
    def write(self, key, data):
        Mortal.writes += 1
        if Mortal.writes == int(kill):
            half = self.root / (key.rpartition("/")[0] + "/.writing-half")  # as far as the disk had it
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(key, data)

class Warned(Reporter):
    def progress(self, phase, done, *rest, **figures):
        if done == int(os.environ.get("TEST_SIGTERM", "0")):
            os.kill(os.getpid(), signal.SIGTERM)
        super().progress(phase, done, *rest, **figures)

every = float(os.environ.get("TEST_EVERY", "0"))
environment = replace(Environment.read(), run_id=run_id, device="cpu", threads=1, checkpoint_seconds=every)
work = Work("baseline", "f" * 64, Mortal(Path(store)), environment, Warned("baseline"))
config = BaselineConfig(
    steps=int(steps), batch_size=8, average=0.9, network=ResNetConfig(depth=10, width=0.125),
    optimizer=OptimizerConfig(learning_rate=float(os.environ.get("TEST_RATE", "0.1"))),
)
try:
    run(config, Inputs(dataset, view, evaluation, None), Outputs(Path(output)), work)
except InterruptedTrainingError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

STEPS = 8


class Trainer:
    """Trains in a process of its own."""

    def __init__(self, dataset: Dataset, folder: Path, backend: str) -> None:
        from tenfold.augment.spec import ViewSpec
        from tenfold.config import AffineConfig, BlurConfig, EvalViewConfig, JitterConfig, ViewConfig

        full = ViewConfig(affine=AffineConfig(rotate=10), jitter=JitterConfig(), blur=BlurConfig())
        self._views = [
            ViewSpec(backend=backend, image_size=16, view=full).encoded(),  # type: ignore[arg-type]
            ViewSpec(backend=backend, image_size=16, evaluation=EvalViewConfig()).encoded(),  # type: ignore[arg-type]
        ]
        self._dataset, self.folder = dataset, folder

    def __call__(
        self, name: str, store: str, kill: int = 0, rate: float = 0.1, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable, "-c", _TRAIN, self._dataset.uri, *self._views, str(self.folder / name),
            str(self.folder / store), name, str(STEPS), str(kill),
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TEST_RATE": str(rate), **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)

    def result(self, name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        weights = load_file(self.folder / name / "model.safetensors")
        return weights, json.loads((self.folder / name / "history.json").read_text())

    def assert_same(self, first: str, second: str) -> None:
        (a, history), (b, other) = self.result(first), self.result(second)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert history == other


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.rglob("complete.json"))


@pytest.mark.parametrize("backend", ["torchvision", pytest.param("dali", marks=pytest.mark.slow)])
def test_a_training_killed_with_sigkill_while_it_writes_a_checkpoint_ends_bit_for_bit_as_one_that_was_not(
    digits: Dataset, tmp_path: Path, backend: str
) -> None:
    """F1 and F2: killed inside the fourth checkpoint's weights, then the same again, then another run."""
    train = Trainer(digits, tmp_path, backend)
    done = train("straight", "straight-store")
    assert done.returncode == 0, done.stderr
    killed = train("killed", "store", kill=3 * 3 + 1)  # three files a checkpoint
    assert killed.returncode == -signal.SIGKILL
    assert [path.parent.name for path in checkpoints(tmp_path / "store")] == ["000000002", "000000003"]
    assert not (tmp_path / "killed").exists()
    again = train("killed", "store", kill=2 * 3 + 3)  # inside the sixth one's complete.json
    assert again.returncode == -signal.SIGKILL
    assert "goes on from the checkpoint of step 3 of 8" in again.stderr
    assert checkpoints(tmp_path / "store")[-1].parent.name == "000000005"
    other = train("other-run", "store")
    assert other.returncode == 0, other.stderr
    assert "goes on from the checkpoint of step 5 of 8" in other.stderr
    train.assert_same("straight", "other-run")


def test_sigterm_finishes_the_step_saves_it_and_exits_with_the_status_for_again(
    digits: Dataset, tmp_path: Path
) -> None:
    """F3. No checkpoint is due by its time, so what is there is what the signal made."""
    train = Trainer(digits, tmp_path, "dali")
    seldom = {"TEST_EVERY": "1000"}
    assert train("straight", "straight-store", **seldom).returncode == 0
    ended = train("ended", "store", TEST_SIGTERM="3", **seldom)
    assert ended.returncode == 75
    assert "told to end after step 3 of 8, which a checkpoint holds" in ended.stderr
    assert [path.parent.name for path in checkpoints(tmp_path / "store")] == ["000000003"]
    assert not (tmp_path / "ended").exists()
    last = train("ended", "store", TEST_SIGTERM=str(STEPS), **seldom)  # nothing is left to do again
    assert last.returncode == 0, last.stderr
    assert "goes on from the checkpoint of step 3 of 8" in last.stderr
    train.assert_same("straight", "ended")


def test_a_flipped_bit_in_the_newest_checkpoint_goes_back_to_the_one_before_and_says_so(
    digits: Dataset, tmp_path: Path
) -> None:
    """F5."""
    train = Trainer(digits, tmp_path, "torchvision")
    assert train("straight", "straight-store").returncode == 0
    assert train("killed", "store", kill=5 * 3 + 1).returncode == -signal.SIGKILL
    newest = checkpoints(tmp_path / "store")[-1].with_name("state.safetensors")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again = train("killed", "store")
    assert again.returncode == 0, again.stderr
    assert "000000005/ is damaged" in again.stderr
    assert "goes on from the checkpoint of step 4 of 8" in again.stderr
    train.assert_same("straight", "killed")


def test_a_diverging_training_stops_saves_the_samples_and_writes_no_model(digits: Dataset, tmp_path: Path) -> None:
    """F16."""
    train = Trainer(digits, tmp_path, "torchvision")
    done = train("diverging", "store", rate=1e38)
    assert done.returncode != 0
    assert "NonFiniteError" in done.stderr
    (record,) = (tmp_path / "store").rglob("nonfinite.json")
    found = json.loads(record.read_text())
    assert len(found["samples"]["labelled"]) == 8
    assert set(found["samples"]["labelled"]) <= set(range(20))
    assert not (tmp_path / "diverging").exists()


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_hostile_pickle_in_the_place_of_a_checkpoint_is_never_run(digits: Dataset, tmp_path: Path) -> None:
    """F24: with digests that hold, so that it is the format alone that protects."""
    from tenfold.fingerprint import canonical_json, digest

    canary, folder = tmp_path / "canary", tmp_path / "store" / "work" / ("f" * 64) / "evil/checkpoints/000000004"
    folder.mkdir(parents=True)
    contents = {"state.safetensors": pickle.dumps(_Canary(canary)), "state.json": pickle.dumps(_Canary(canary))}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    digests = {name: digest(data) for name, data in contents.items()}
    (folder / "complete.json").write_text(canonical_json({"step": 4, "sha256": digests}))
    train = Trainer(digits, tmp_path, "torchvision")
    done = train("victim", "store")
    assert not canary.exists()
    assert done.returncode == 0, done.stderr
    assert "cannot be read" in done.stderr
    assert len(train.result("victim")[1]) == STEPS, "it started at the beginning"
