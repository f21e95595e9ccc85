"""F1: a training that is killed without notice ends bit for bit as one that was not.

Whole tasks, as their KFP components run them: the process group is killed with SIGKILL at a random step, and the same
is given again. ``make test`` has two kills; ``make test-faults`` has the rest.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chain import Made, make_chain
from tasks import Task, assert_same

from tenfold.data.manifest import Dataset


class Case(NamedTuple):
    task: str
    backend: str
    processes: int
    kills: int
    config: dict[str, Any]


MEMORY = {"memory": {"size": 64, "momentum": 0.9}}
MASKED = {
    "method": "mae", "network": {"vit": "tiny", "width": 24, "heads": 3, "depth": 2, "patch": 4}, "head": {"layers": 0},
    "mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}},
}  # fmt: skip
MIXED = {
    "pseudo_mixup": True, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "foreign": 0.2, "align": "estimated",
    "monitor": 4,
}  # fmt: skip
FEW = [
    Case("pretrain", "dali", 1, 1, MEMORY),
    Case("finetune", "torchvision", 1, 1, {}),
]
MANY = [
    Case("pretrain", "torchvision", 1, 3, MEMORY),
    Case("pretrain", "dali", 2, 3, MEMORY),
    Case("pretrain", "dali", 2, 2, {"batch_norm": "local", "accumulate": 2, "checkpoint_activations": True}),
    Case("finetune", "dali", 2, 3, {"average": 0.9}),
    Case("distill", "dali", 1, 3, {"alpha": 0.5}),
    Case("distill", "torchvision", 2, 3, {}),
    Case("self_train", "dali", 2, 2, {}),
    Case("self_train", "dali", 1, 3, MIXED),
    Case("pretrain", "torchvision", 2, 2, MASKED),
    Case("baseline", "torchvision", 1, 1, {}),
    Case("pretrain", "dali", 1, 1, {"compile": "always", "precision": "bfloat16"}),
]


@pytest.fixture(scope="module")
def made(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_chain(tmp_path_factory.mktemp("stages"), digits)


def name(case: Case) -> str:
    return f"{case.task}-{case.backend}-{case.processes}-{'-'.join(case.config)}"


def kill_and_go_on(case: Case, digits: Dataset, made: Made, tmp_path: Path) -> None:
    def task(folder: str) -> Task:
        return Task(case.task, digits, made, tmp_path / folder, case.backend, case.processes, config=case.config)

    straight, killed = task("straight"), task("killed")
    status, written = straight.run()
    assert status == 0, written
    seed = random.randrange(2**32)
    print(f"steps are drawn by the seed {seed}")
    draw, done = random.Random(seed), 0
    for number in range(case.kills):
        left = killed.steps - 2 - done
        done = killed.kill_at(done + draw.randint(1, max(1, left // (case.kills - number))))
        assert not (tmp_path / "killed/run").exists()
    status, written = killed.run()
    assert status == 0, written
    assert "goes on from the checkpoint of step" in written
    assert_same(straight.result(), killed.result())


@pytest.mark.parametrize("case", FEW, ids=name)
def test_a_killed_training_ends_bit_for_bit_as_one_that_was_not(
    case: Case, digits: Dataset, made: Made, tmp_path: Path
) -> None:
    kill_and_go_on(case, digits, made, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", MANY, ids=name)
def test_a_training_killed_several_times_ends_bit_for_bit_as_one_that_was_not(
    case: Case, digits: Dataset, made: Made, tmp_path: Path
) -> None:
    kill_and_go_on(case, digits, made, tmp_path)
