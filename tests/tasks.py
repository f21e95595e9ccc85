"""Training tasks on the digits, each in a process of its own, that tests may kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from chain import HEAD, TINY, Made
from safetensors.torch import load_file

from tenfold.augment.spec import ViewSpec
from tenfold.config import (
    AffineConfig,
    BaselineConfig,
    BlurConfig,
    DistillConfig,
    EvalViewConfig,
    FinetuneConfig,
    JitterConfig,
    PretrainConfig,
    SelfTrainConfig,
    ViewConfig,
)
from tenfold.data.manifest import Dataset
from tenfold.environment import Environment
from tenfold.tracking import client

PROGRAM = Path(__file__).with_name("task_program.py")
FULL = ViewConfig(affine=AffineConfig(rotate=10), jitter=JitterConfig(), blur=BlurConfig())
CONFIGS: dict[str, Any] = {
    "pretrain": PretrainConfig, "finetune": FinetuneConfig, "baseline": BaselineConfig,
    "self_train": SelfTrainConfig, "distill": DistillConfig,
}  # fmt: skip
#: Of the tasks' settings, what makes them small.
SMALL: dict[str, dict[str, Any]] = {
    "pretrain": {"network": TINY.model_dump(), "head": HEAD.model_dump()},
    "finetune": {},
    "baseline": {"network": TINY.model_dump()},
    "self_train": {"ratio": 2, "threshold": 0.1},
    "distill": {"network": TINY.model_dump(), "average": 0.9},
}


@dataclass
class Task:
    """A task with its settings, and where it works."""

    name: str
    dataset: Dataset
    made: Made
    folder: Path
    backend: str = "dali"
    processes: int = 1
    steps: int = 20
    config: dict[str, Any] = field(default_factory=dict)
    every: float = 0.0

    def command(self, output: Path) -> list[str]:
        kind: Any = self.backend
        view = ViewSpec(backend=kind, image_size=16, view=FULL).encoded()
        plain = ViewSpec(backend=kind, image_size=16, evaluation=EvalViewConfig()).encoded()
        parameters: dict[str, str | None] = {"dataset": self.dataset.uri}
        artifacts: dict[str, Path] = {}
        if self.name == "self_train":
            parameters |= {"weak": view, "strong": view, "evaluation": plain}
            artifacts = {"teacher": self.made.finetuned, "encoder": self.made.encoder}
        else:
            parameters |= {"views": view, "evaluation": plain}
        if self.name == "finetune":
            artifacts = {"encoder": self.made.encoder}
        if self.name == "baseline":
            parameters["encoder"] = None
        if self.name == "distill":
            artifacts = {"soft_labels": self.made.soft_labels, "teacher": self.made.teacher,
                         "finetuned": self.made.finetuned}  # fmt: skip
        for folder in artifacts.values():
            lineage = {"stage": folder.name, "fingerprint": folder.name, "mlflow_run_id": None, "seconds": 0.0}
            (folder / "lineage.json").write_text(json.dumps(lineage))
        values = {"steps": self.steps, "epochs": None, "batch_size": 16, "seed": 0, "deterministic": True}
        config = CONFIGS[self.name].model_validate(values | SMALL[self.name] | self.config)
        outputs = {"pretrain": "encoder", "finetune": "classifier", "baseline": "classifier", "self_train": "teacher",
                   "distill": "student"}  # fmt: skip
        what = {
            "task": self.name, "room": "finetune" if self.name == "baseline" else None,
            "config": config.model_dump_json(), "parameters": parameters,
            "artifacts": {name: str(folder) for name, folder in artifacts.items()},
            "outputs": {outputs[self.name]: str(output)},
        }  # fmt: skip
        return [sys.executable, str(PROGRAM), json.dumps(what)]

    def start(self, run_id: str = "run", **variables: str) -> subprocess.Popen[str]:
        """Start the task; its process leads a group of its own."""
        environment = {
            **os.environ, "TENFOLD_HOME": str(self.folder / "home"), "TENFOLD_RUN_ID": run_id,
            "TENFOLD_PROCESSES": str(self.processes), "TENFOLD_CHECKPOINT_SECONDS": str(self.every),
            "TENFOLD_THREADS": str(self.processes), "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": tracking(self.made.root), "MLFLOW_EXPERIMENT_NAME": str(self.folder), **variables,
        }  # fmt: skip
        return subprocess.Popen(
            self.command(self.folder / run_id), env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, run_id: str = "run", **variables: str) -> tuple[int, str]:
        """Run the task to its end; return its exit status and what it wrote."""
        process = self.start(run_id, **variables)
        written, _ = process.communicate(timeout=240)
        return process.returncode, written

    def checkpoint(self, process: subprocess.Popen[str], step: int) -> int:
        """Wait for a checkpoint of at least ``step`` steps, and return how many it has; the process is at work."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            steps = [
                int(path.parent.name) for path in self.folder.glob("home/store/work/*/*/checkpoints/*/complete.json")
            ]
            if steps and max(steps) >= step:
                return max(steps)
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.002)
        raise TimeoutError(f"no checkpoint of step {step}")

    def kill_at(self, step: int, run_id: str = "run", **variables: str) -> int:
        """Start the task, kill all of its processes without notice after ``step`` steps or more; return how many.

        Ranks have groups of their own, and would follow their launcher half a second later, a few steps on.
        """
        process = self.start(run_id, **variables)
        done = self.checkpoint(process, step)
        ranks = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        for each in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()
        return done

    def result(self, run_id: str = "run") -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        """Return weights and curves."""
        folder = self.folder / run_id
        return load_file(folder / "model.safetensors"), json.loads((folder / "history.json").read_text())


def tracking(folder: Path) -> str:
    """Return the address of an MLflow database in ``folder``, made at the first call: making one takes seconds."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    if not (folder / "mlflow.db").is_file():
        client(replace(Environment.read(), tracking_uri=uri)).search_experiments()
    return uri


def assert_same(a: tuple[dict[str, torch.Tensor], Any], b: tuple[dict[str, torch.Tensor], Any]) -> None:
    """Check that weights and curves are the same to the bit."""
    assert a[0].keys() == b[0].keys()
    assert [name for name in a[0] if not torch.equal(a[0][name], b[0][name])] == []
    assert a[1] == b[1]
