"""A training task on several processes: what it computes, what dies and comes back, and the same as a TrainJob."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from chain import Made, make_chain
from conftest import free_port
from fake_kubernetes import FakeKubernetes, serve
from tasks import Task

from tenfold.data.manifest import Dataset
from tenfold.trainjob import TrainJobSpec


@pytest.fixture(scope="module")
def made(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_chain(tmp_path_factory.mktemp("stages"), digits)


def assert_close(a: Task, b: Task, tolerance: float) -> None:
    """Check that two trainings came to nearly the same weights and curves."""
    (weights, history), (others, other) = a.result(), b.result()
    losses = [[point["loss"] for point in points] for points in (history, other)]
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=tolerance)
    assert losses[0] == pytest.approx(losses[1], abs=100 * tolerance)  # rounding grows from step to step
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=100 * tolerance, msg=name)


@pytest.mark.slow
def test_two_processes_compute_what_one_does_and_spread_parameters_change_nothing(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    """The same order, views, negatives, batch norm and momentum encoder; sums differ by rounding alone."""
    config = {"memory": {"size": 32, "momentum": 0.5}, "optimizer": {"learning_rate": 0.01}}
    one = Task("pretrain", digits, made, tmp_path / "one", steps=5, config=config)
    two = Task("pretrain", digits, made, tmp_path / "two", steps=5, processes=2, config=config)
    spread = Task(
        "pretrain", digits, made, tmp_path / "spread", steps=5, processes=2, config={**config, "sharding": "full"}
    )
    for task in (one, two, spread):
        status, written = task.run()
        assert status == 0, written
    assert_close(one, two, 1e-4)
    assert_close(two, spread, 1e-4)


@pytest.mark.slow
def test_spread_parameters_survive_a_kill_and_keep_lars_and_recomputed_blocks(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    config = {"sharding": "full", "checkpoint_activations": True, "average": 0.9, "optimizer": {"learning_rate": 0.05}}
    plain = Task("finetune", digits, made, tmp_path / "plain", processes=2, config=config | {"sharding": "none"})
    killed = Task("finetune", digits, made, tmp_path / "killed", processes=2, config=config)
    status, written = plain.run()
    assert status == 0, written
    killed.kill_at(6)
    status, written = killed.run()
    assert status == 0, written
    assert "goes on from the checkpoint of step" in written
    assert_close(plain, killed, 1e-4)


@pytest.mark.slow
def test_a_masked_autoencoder_spread_over_two_processes_computes_what_whole_ones_do(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    config = {
        "method": "mae", "network": {"vit": "tiny", "width": 24, "heads": 3, "depth": 2, "patch": 4},
        "mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    }  # fmt: skip
    whole = Task("pretrain", digits, made, tmp_path / "whole", steps=5, processes=2, config=config)
    more = {"sharding": "full", "checkpoint_activations": True}
    spread = Task("pretrain", digits, made, tmp_path / "spread", steps=5, processes=2, config=config | more)
    for task in (whole, spread):
        status, written = task.run()
        assert status == 0, written
    assert_close(whole, spread, 1e-4)


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again_with_the_others_and_they_go_on(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    """Elastic restart: torchrun notices, and the task itself never ends."""
    straight, hit = (Task("baseline", digits, made, tmp_path / name, processes=2) for name in ("straight", "hit"))
    status, written = straight.run()
    assert status == 0, written
    process = hit.start()
    hit.checkpoint(process, 5)
    ranks = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "tenfold.worker" in _line(child)
    ]
    last = next(rank for rank in ranks if "torch.distributed.run" not in _line(rank))
    last.send_signal(signal.SIGKILL)
    written, _ = process.communicate(timeout=240)
    assert process.returncode == 0, written
    assert "goes on from the checkpoint of step" in written
    assert straight.result()[1] == hit.result()[1]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_a_batch_that_the_processes_cannot_share_is_one_clear_message_and_no_new_start(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    task = Task("baseline", digits, made, tmp_path / "odd", processes=2, config={"batch_size": 15})
    status, written = task.run()
    assert status == 2
    assert "baseline.batch_size is 15, which 2 processes cannot share evenly; give a multiple of 2" in written
    assert "Traceback" not in written
    assert not (tmp_path / "odd/run").exists()


@pytest.mark.slow
def test_sigterm_reaches_the_ranks_which_save_the_same_step_and_the_task_says_again(
    digits: Dataset, made: Made, tmp_path: Path
) -> None:
    task = Task("baseline", digits, made, tmp_path / "ended", processes=2, steps=150)
    process = task.start()
    task.checkpoint(process, 3)
    process.send_signal(signal.SIGTERM)
    written, _ = process.communicate(timeout=120)
    assert process.returncode == 75, written
    (status, written) = task.run(TENFOLD_CHECKPOINT_SECONDS="1000")
    assert status == 0, written
    assert "goes on from the checkpoint of step" in written


# --- as a TrainJob ------------------------------------------------------------------------------------------


class Kubelet(threading.Thread):
    """Runs the pods of each job that the API server is given, as processes here, and tells how they ended."""

    def __init__(self, fake: FakeKubernetes, references: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._fake, self._references = fake, references
        self.ended = threading.Event()
        self.written: list[str] = []
        self.pods: list[subprocess.Popen[str]] = []
        fake.lives = [["running"]]

    def run(self) -> None:
        done = 0
        while not self.ended.wait(0.02):
            if len(self._fake.sent) == done:
                continue
            job, done = self._fake.sent[done], done + 1
            trainer = job["spec"]["trainer"]
            told = {each["name"]: each.get("value", self._references.get(each["name"])) for each in trainer["env"]}
            count, port = trainer["numNodes"], str(free_port())
            base = {**os.environ, **{name: value for name, value in told.items() if value is not None}}
            base["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{base['PATH']}"
            for node in range(count):
                own = {
                    "PET_NNODES": str(count), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                    "PET_NODE_RANK": str(node), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port,
                }  # fmt: skip
                self.pods.append(
                    subprocess.Popen(
                        trainer["command"], env={**base, **own}, text=True, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                    )
                )  # fmt: skip
            self.written = [pod.communicate()[0] for pod in self.pods[-count:]]
            good = all(pod.returncode == 0 for pod in self.pods[-count:])
            self._fake.jobs[job["metadata"]["name"]].life = ["complete" if good else "failed"]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeKubernetes]:
    for each in serve():
        each.kubeconfig(tmp_path / "kubeconfig")
        yield each


@pytest.mark.slow
def test_a_trainjob_s_pods_get_their_inputs_and_leave_their_result_through_the_store(
    fake: FakeKubernetes, digits: Dataset, made: Made, tmp_path: Path
) -> None:
    """The launcher is killed while the pods work, and attaches to the same job when it is started again."""
    local = Task("finetune", digits, made, tmp_path / "local", processes=2)
    job = Task("finetune", digits, made, tmp_path / "job")
    status, written = local.run()
    assert status == 0, written
    home = tmp_path / "job/home"
    kubelet = Kubelet(
        fake,
        {"TENFOLD_STORE": (home / "store").as_uri(), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'pods.db'}",
         "MLFLOW_EXPERIMENT_NAME": "pods", "TENFOLD_CHECKPOINT_SECONDS": "0"},
    )  # fmt: skip
    kubelet.start()
    spec = TrainJobSpec(image="registry/tenfold@sha256:0", nodes=2, gpus_per_node=0, deadline_seconds=600)
    variables = {
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
        "TENFOLD_TRAINJOB": spec.to_json(),
        "TENFOLD_DEVICE": "cpu",
    }
    process = job.start(**variables)
    job.checkpoint(process, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status, written = job.run(**variables)
    kubelet.ended.set()
    assert status == 0, (written, kubelet.written)
    assert len(fake.sent) == 1, "the second launcher attached to the job of the first"
    kept = {path.relative_to(home).parts[-1] for path in (home / "store/work").rglob("*.*")}
    result = {"final.json", "complete.json", "state.json", "state.safetensors"}
    assert kept == result, "what the pods worked with is removed"
    a, b = local.result(), job.result()
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    lineage = json.loads((tmp_path / "job/run/lineage.json").read_text())
    assert lineage["inputs"]["encoder"]["fingerprint"] == "encoder"


@pytest.mark.slow
def test_a_trainjob_that_fails_tells_the_training_s_own_reason(
    fake: FakeKubernetes, digits: Dataset, made: Made, tmp_path: Path
) -> None:
    job = Task("baseline", digits, made, tmp_path / "job", config={"optimizer": {"learning_rate": 1e38}})
    kubelet = Kubelet(
        fake,
        {"TENFOLD_STORE": (tmp_path / "job/home/store").as_uri(), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/p.db"},
    )
    kubelet.start()
    spec = TrainJobSpec(image="registry/tenfold@sha256:0", nodes=1, gpus_per_node=0, deadline_seconds=600)
    start = time.monotonic()
    status, written = job.run(KUBECONFIG=str(tmp_path / "kubeconfig"), TENFOLD_TRAINJOB=spec.to_json())
    kubelet.ended.set()
    assert time.monotonic() - start < 200
    assert status == 2, written
    assert "is not finite at step" in written
