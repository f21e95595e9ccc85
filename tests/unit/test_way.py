"""How a training computes: what is measured, what is decided by it, and that nothing of the measuring stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tenfold.augment.stream import Batch
from tenfold.config import MemoryConfig, SelfTrainConfig, TrainConfig
from tenfold.errors import ResumeError
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.resnet import ResNet
from tenfold.progress import Reporter
from tenfold.training import way as ways
from tenfold.training.loop import fit
from tenfold.training.objectives import Contrastive, Objective
from tenfold.training.self_training import SelfTraining
from tenfold.training.way import Way, choose_way, kept_way
from tenfold.work import Work

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
FLOAT32 = Way("float32", False, 1)


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"steps": 10, "batch_size": 8, **values})


def batch(count: int = 8, views: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch([torch.rand(count, 3, 8, 8, generator=generator) for _ in range(views)], torch.arange(count))


def contrastive(memory: bool = True) -> Contrastive:
    torch.manual_seed(0)
    model = SimCLRModel(ResNet(10, 0.125), ProjectionHead(64, 2, 8))
    return Contrastive(model, 0.5, MemoryConfig(size=16, momentum=0.9) if memory else None).train()


def self_training() -> SelfTraining:
    torch.manual_seed(0)
    model = Classifier(ResNet(10, 0.125), None, 0, 3)
    return SelfTraining(model, LABELS, SelfTrainConfig(threshold=0.99), 0.9).train()


class Clock:
    """Stands for the stopwatch: seconds by precision, and of compiled networks; the first look is in float32."""

    def __init__(self, patch: pytest.MonkeyPatch, full: float, half: float, compiled: float) -> None:
        self.asked: list[tuple[str, bool, int]] = []

        def seconds(objective: Objective, batches: Any, precision: str, device: Any, timed: int = 3) -> float:
            fused = all(network._compiled_call_impl is not None for network in objective.trained())
            self.asked.append((precision, fused, timed))
            return compiled if fused else half if precision == "bfloat16" else full

        patch.setattr(ways, "_seconds", seconds)


def choose(objective: Objective, steps: int, **values: Any) -> Way:
    return choose_way(config(**values), objective, {"train": batch()}, steps, CPU, Reporter("stage"))


@pytest.mark.parametrize("build", [contrastive, self_training])
def test_measuring_leaves_state_random_numbers_and_gradients_as_they_were(
    build: Callable[[], Objective], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = build()
    monkeypatch.setattr(ways, "WORTH_A_LOOK", 0.0)
    asked = []
    whole = ways._seconds

    def seconds(*given: Any, **named: Any) -> float:
        asked.append(given[2])
        torch.rand(3)  # as dropout would
        return whole(*given, **named)

    monkeypatch.setattr(ways, "_seconds", seconds)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    random = torch.get_rng_state()
    batches = {"train": batch()} if build is contrastive else {"labelled": batch(views=1), "unlabelled": batch(seed=1)}
    choose_way(config(compile="never"), objective, batches, 1000, CPU, Reporter("stage"))
    assert asked == ["float32", "float32", "bfloat16"]
    after = objective.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert objective.training


def test_a_short_run_is_computed_in_float32_after_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, full=1.0, half=0.1, compiled=0.1)
    assert choose(contrastive(), 59) == FLOAT32
    assert clock.asked == [("float32", False, 1)]


@pytest.mark.parametrize(("half", "precision"), [(0.94, "bfloat16"), (0.96, "float32"), (1.5, "float32")])
def test_bfloat16_is_taken_where_it_gains_more_than_a_twentieth(
    monkeypatch: pytest.MonkeyPatch, half: float, precision: str
) -> None:
    clock = Clock(monkeypatch, full=1.0, half=half, compiled=0.1)
    assert choose(contrastive(), 100) == replace(FLOAT32, precision=precision)
    assert ("float32", True, 3) not in clock.asked, "100 seconds do not pay for compiling"


@pytest.mark.parametrize(
    ("steps", "fused", "compiled"), [(1799, 0.5, False), (1801, 0.94, True), (1801, 0.96, False), (1801, 1.5, False)]
)
def test_networks_are_compiled_where_the_run_is_long_and_it_gains(
    monkeypatch: pytest.MonkeyPatch, steps: int, fused: float, compiled: bool
) -> None:
    clock, objective = Clock(monkeypatch, full=1.0, half=1.0, compiled=fused), contrastive()
    assert choose(objective, steps) == replace(FLOAT32, compiled=compiled)
    assert (("float32", True, 3) in clock.asked) == (steps > 1800)
    assert (objective.model._compiled_call_impl is not None) == compiled, "what is slower is undone"


def test_compiling_is_judged_in_the_precision_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, full=1.0, half=0.5, compiled=0.4)
    assert choose(contrastive(), 4000) == Way("bfloat16", True, 1)
    assert clock.asked == [("float32", False, 1), ("float32", False, 3), ("bfloat16", False, 3), ("bfloat16", True, 3)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"deterministic": True}, FLOAT32),
        ({"deterministic": True, "precision": "bfloat16", "compile": "always"}, Way("bfloat16", True, 1)),
        ({"precision": "float32", "compile": "never"}, FLOAT32),
        ({"precision": "bfloat16", "compile": "always"}, Way("bfloat16", True, 1)),
        ({"precision": "bfloat16", "sharding": "full"}, Way("bfloat16", False, 1)),
    ],
)
def test_what_is_told_or_deterministic_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], expected: Way
) -> None:
    clock = Clock(monkeypatch, full=1.0, half=0.1, compiled=0.1)
    assert choose(contrastive(), 10**6, **values) == expected
    assert clock.asked == []


def test_what_was_told_stays_where_the_other_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, full=1.0, half=0.1, compiled=0.1)
    assert choose(contrastive(), 10**6, precision="float32") == Way("float32", True, 1)
    assert {precision for precision, _, _ in clock.asked} == {"float32"}


def test_threads_are_those_of_the_first_start_where_the_machine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "cores", lambda: 2)
    assert kept_way(Way("float32", False, 2).record(), config(), 1).threads == 2
    assert torch.get_num_threads() == 2
    assert kept_way(Way("float32", False, 3).record(), config(), 1) == Way("float32", False, 3)
    assert torch.get_num_threads() == 2, "three are not there"


def test_threads_of_another_number_of_processes_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "cores", lambda: 16)
    here = torch.get_num_threads()
    assert kept_way(Way("bfloat16", True, here + 5).record(), config(), 4) == Way("bfloat16", True, here)
    assert torch.get_num_threads() == here


class Fixed:
    """A stream of the same images again and again."""

    def __init__(self, state: dict[str, torch.Tensor] | None = None) -> None:
        self.count = int(state["batches"]) if state else 0

    def __next__(self) -> Batch:
        self.count += 1
        return batch(seed=self.count)

    def state(self) -> dict[str, torch.Tensor]:
        return {"batches": torch.tensor(self.count)}


def test_a_run_that_goes_on_computes_as_its_first_start_chose(
    make_work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start would choose otherwise by its own clock, which is not asked."""
    work = make_work()
    work = replace(work, environment=replace(work.environment, checkpoint_seconds=0.0))
    settings = config(steps=100, compile="never")
    Clock(monkeypatch, full=1.0, half=0.5, compiled=9.0)
    kinds: list[torch.dtype] = []

    def train(stop: int | None) -> None:
        objective = contrastive(memory=False)
        objective.model.encoder.register_forward_hook(lambda *call: kinds.append(call[-1].dtype))

        def after_step() -> None:
            if len(kinds) == stop:
                raise ResumeError("the machine is gone")

        objective.after_step = after_step  # type: ignore[method-assign]
        fit(objective, {"train": Fixed}, settings, settings.length(8), CPU, work)  # type: ignore[dict-item]

    with pytest.raises(ResumeError, match="the machine"):
        train(stop=2)
    clock = Clock(monkeypatch, full=0.001, half=1.0, compiled=9.0)
    with pytest.raises(ResumeError, match="the machine"):
        train(stop=5)
    assert kinds == [torch.bfloat16] * 5
    assert clock.asked == []
