from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.augment.spec import ViewSpec
from tenfold.augment.stream import Batch, ViewStream
from tenfold.config import AffineConfig, BlurConfig, JitterConfig, SelfTrainConfig, TrainConfig, ViewConfig
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import NonFiniteError
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.resnet import ResNet
from tenfold.tracking import NoTracker
from tenfold.training.loop import OpenStream, fit
from tenfold.training.objectives import Contrastive, Figures, Objective, Supervised
from tenfold.training.self_training import SelfTraining
from tenfold.training.state import History
from tenfold.work import Work

MakeWork = Callable[..., Work]
CPU = torch.device("cpu")
VIEW = ViewConfig(
    flip=0.5, affine=AffineConfig(rotate=15, translate=0.1), jitter=JitterConfig(), grayscale=0.2, blur=BlurConfig()
)


PLAIN = ViewConfig(crop=None, flip=0)


class Stop(Exception):
    """Ends a training in the middle, as a kill would."""


class Recorder(NoTracker):
    """Remembers the points that reach the tracker."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.points.append((step, dict(metrics)))


@pytest.fixture(scope="module")
def reader(digits: Dataset) -> SplitReader:
    return SplitReader(digits, "labelled")


def config(steps: int, **optimizer: Any) -> TrainConfig:
    return TrainConfig.model_validate({"steps": steps, "batch_size": 8, "optimizer": optimizer})


def opener(
    reader: SplitReader, backend: Any, views: int = 1, seed: int = 0, batch: int = 8, view: ViewConfig = VIEW
) -> OpenStream:
    spec = ViewSpec(backend=backend, image_size=16, view=view)
    return partial(ViewStream, reader, [spec] * views, batch, seed, CPU, 1)


def make_supervised(reader: SplitReader) -> Supervised:
    torch.manual_seed(0)
    model = Classifier(ResNet(10, 0.125), None, 0, len(reader.classes))
    return Supervised(model, torch.from_numpy(reader.labels()), 0.0, 0.9)


def stopping(objective: Objective, after: int) -> Objective:
    """Let ``objective`` raise in the step ``after`` that many whole ones."""
    follow, done = objective.after_step, 0

    def after_step() -> None:
        nonlocal done
        follow()
        done += 1
        if done > after:
            raise Stop

    objective.after_step = after_step  # type: ignore[method-assign]
    return objective


def each_step(work: Work) -> Work:
    return replace(work, environment=replace(work.environment, checkpoint_seconds=0.0))


def assert_same(a: tuple[Objective, History], b: tuple[Objective, History]) -> None:
    for name, tensor in a[0].state_dict().items():
        assert torch.equal(tensor, b[0].state_dict()[name]), name
    assert a[1] == b[1]


def build(kind: str, reader: SplitReader, backend: str) -> tuple[Objective, dict[str, OpenStream]]:
    torch.manual_seed(0)
    if kind == "contrastive":
        model = SimCLRModel(ResNet(10, 0.125), ProjectionHead(64, 2, 8))
        return Contrastive(model, 0.5), {"train": opener(reader, backend, 2)}
    if kind == "supervised":
        return make_supervised(reader), {"labelled": opener(reader, backend)}
    labels = torch.from_numpy(reader.labels())
    classifier = Classifier(ResNet(10, 0.125), None, 0, 10)
    streams = {"labelled": opener(reader, backend), "unlabelled": opener(reader, backend, 2, seed=1, batch=12)}
    return SelfTraining(classifier, labels, SelfTrainConfig(threshold=0.2), 0.9), streams


@pytest.mark.parametrize(
    ("kind", "optimizer", "backend"),
    [
        ("contrastive", "lars", "torchvision"),
        ("contrastive", "lars", "dali"),
        ("supervised", "adamw", "torchvision"),
        ("supervised", "sgd", "dali"),
        ("self_training", "lars", "dali"),
    ],
)
def test_a_training_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(
    make_work: MakeWork, reader: SplitReader, kind: str, optimizer: str, backend: str
) -> None:
    settings = config(7, name=optimizer, learning_rate=0.1)

    def train(work: Work, stop: int | None = None) -> tuple[Objective, History]:
        objective, streams = build(kind, reader, backend)
        if stop is not None:
            objective = stopping(objective, stop)
        return objective, fit(objective, streams, settings, settings.length(1), CPU, work)

    straight = train(make_work(fingerprint="a" * 64))
    work = each_step(make_work(fingerprint="b" * 64))
    with pytest.raises(Stop):
        train(work, stop=3)
    with pytest.raises(Stop):
        train(work, stop=2)  # a second time, from step 3 on
    torch.manual_seed(99)  # what a new process would have
    assert_same(straight, train(work))


def test_another_run_of_the_same_fingerprint_goes_on_where_the_first_was_stopped(
    make_work: MakeWork, reader: SplitReader, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, streams = config(6), {"labelled": opener(reader, "torchvision", view=PLAIN)}
    straight = make_supervised(reader)
    history = fit(straight, streams, settings, settings.length(1), CPU, make_work(fingerprint="a" * 64))
    with pytest.raises(Stop):
        fit(
            stopping(make_supervised(reader), 3),
            streams,
            settings,
            settings.length(1),
            CPU,
            each_step(make_work(run_id="first")),
        )
    second, seen = make_supervised(reader), Recorder()
    work = replace(make_work(run_id="second"), tracker=seen)
    assert_same((straight, history), (second, fit(second, streams, settings, settings.length(1), CPU, work)))
    assert "goes on from the checkpoint of step 3 of 6" in capfd.readouterr().err
    assert [step for step, _ in seen.points] == [1, 2, 3, 4, 5, 6], "the first run's points are in it too"


def test_a_finished_training_is_not_trained_again(make_work: MakeWork, reader: SplitReader) -> None:
    settings, streams = config(3), {"labelled": opener(reader, "torchvision", view=PLAIN)}
    first, again, seen = make_supervised(reader), make_supervised(reader), Recorder()
    history = fit(first, streams, settings, settings.length(1), CPU, make_work())
    work = replace(make_work(), tracker=seen)
    assert_same((first, history), (again, fit(again, streams, settings, settings.length(1), CPU, work)))
    assert seen.points == []


class Slope(Objective):
    """A few weights on the mean pixel: the least that can be trained."""

    def __init__(self, bad_step: int | None = None, bad: str = "loss") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.steps: Tensor
        self.bad_step, self.bad = bad_step, bad

    def trained(self) -> list[nn.Module]:
        return [self.layer]

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        out = self.layer(batches["train"].views[0].mean((2, 3))).squeeze(1)
        loss = (out - batches["train"].numbers / 20).square().mean()
        if self.steps == self.bad_step:
            if self.bad == "gradient":  # sqrt at 0: a finite value with an infinite slope
                loss = loss + (self.layer.weight * 0).abs().sum().sqrt()
            else:
                loss = loss * float(self.bad)
        return loss, {"first": out[0].detach()}

    def after_step(self) -> None:
        self.steps += 1


def test_a_stop_between_two_points_of_the_curves_leaves_them_as_they_would_have_been(
    make_work: MakeWork, reader: SplitReader
) -> None:
    """From 400 steps on a point is the mean of several steps, of which some lie before the checkpoint."""
    settings = config(400, name="sgd", learning_rate=0.01)
    streams = {"train": opener(reader, "torchvision", batch=2, view=PLAIN)}
    straight = Slope()
    history = fit(straight, streams, settings, settings.length(1), CPU, make_work(fingerprint="a" * 64))
    assert len(history) == 200
    with pytest.raises(Stop):
        fit(stopping(Slope(), 11), streams, settings, settings.length(1), CPU, each_step(make_work()))
    resumed = Slope()
    assert_same((straight, history), (resumed, fit(resumed, streams, settings, settings.length(1), CPU, make_work())))


@pytest.mark.parametrize("collapsed", [True, False])
def test_features_that_collapsed_are_warned_of_once_and_healthy_ones_not(
    make_work: MakeWork, reader: SplitReader, capfd: pytest.CaptureFixture[str], collapsed: bool
) -> None:
    objective, streams = build("contrastive", reader, "torchvision")
    assert isinstance(objective, Contrastive)
    if collapsed:  # whatever is seen, the projection is nearly the same

        def constant(_: object, __: object, z: Tensor) -> Tensor:
            return z * 1e-4 + torch.ones_like(z)

        objective.model.register_forward_hook(constant)
    settings = config(12, learning_rate=0.01)
    history = fit(objective, streams, settings, settings.length(1), CPU, make_work())
    assert all((point["spread"] < 0.01) == collapsed for point in history)
    told = capfd.readouterr().err
    assert told.count("the features have collapsed") == collapsed
    if collapsed:
        assert "after step 2 of 12" in told, "the first tenth of the steps is left alone"


def test_a_point_of_the_curves_is_the_mean_of_its_steps_and_reaches_the_tracker(
    make_work: MakeWork, reader: SplitReader
) -> None:
    streams, seen = {"train": opener(reader, "torchvision", view=PLAIN)}, Recorder()
    work = replace(make_work(), tracker=seen)
    history = fit(
        Slope(),
        streams,
        config(20, learning_rate=0.1, warmup=0.5),
        config(20, learning_rate=0.1, warmup=0.5).length(1),
        CPU,
        work,
    )
    assert [point["step"] for point in history] == list(range(1, 21))
    assert [{"step": step, **values} for step, values in seen.points] == history
    assert history[0].keys() == {"step", "loss", "first", "gradient_norm", "learning_rate"}
    assert [point["learning_rate"] for point in history[:10]] == pytest.approx([0.01 * step for step in range(10)])


def test_training_lowers_the_loss_and_leaves_the_networks_in_evaluation_mode(
    make_work: MakeWork, reader: SplitReader
) -> None:
    objective = make_supervised(reader)
    streams = {"labelled": opener(reader, "torchvision", batch=20, view=PLAIN)}
    history = fit(
        objective,
        streams,
        config(20, name="sgd", learning_rate=0.1),
        config(20, name="sgd", learning_rate=0.1).length(1),
        CPU,
        make_work(),
    )
    assert history[0]["loss"] == pytest.approx(math.log(10), abs=1e-5), "the classifier starts at zero"
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    for model in (objective.model, objective.result()):
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update_and_names_the_samples(
    make_work: MakeWork, reader: SplitReader, bad: str
) -> None:
    streams = {"train": opener(reader, "torchvision", view=PLAIN)}
    healthy = Slope()
    fit(healthy, streams, config(5), config(5).length(1), CPU, make_work(fingerprint="a" * 64, run_id="healthy"))
    sick, work = Slope(bad_step=3, bad=bad), each_step(make_work())
    with pytest.raises(
        NonFiniteError, match=f"the {'gradient' if bad == 'gradient' else 'loss'} is not finite at step 3"
    ):
        fit(sick, streams, config(5), config(5).length(1), CPU, work)
    assert all(parameter.isfinite().all() for parameter in sick.parameters())
    assert sick.steps == 3
    recorded = json.loads(work.store.read(f"{work.own}nonfinite.json"))
    expected = [next(stream).numbers.tolist() for stream in [streams["train"]()] for _ in range(4)][3]
    assert recorded == {"step": 3, "samples": {"train": expected}}


def test_a_non_finite_step_leaves_the_weights_of_the_step_before(make_work: MakeWork, reader: SplitReader) -> None:
    streams, settings = {"train": opener(reader, "torchvision", view=PLAIN)}, config(5, learning_rate=0.5)
    sick, stopped = Slope(bad_step=3, bad="nan"), stopping(Slope(), 2)
    with pytest.raises(NonFiniteError):
        fit(sick, streams, settings, settings.length(1), CPU, make_work(fingerprint="a" * 64))
    with pytest.raises(Stop):
        fit(stopped, streams, settings, settings.length(1), CPU, make_work(fingerprint="b" * 64))
    assert torch.equal(sick.layer.weight, stopped.layer.weight)  # type: ignore[arg-type]
    assert NonFiniteError.exit_code == 2, "the same again would fail the same way"


def test_a_checkpoint_that_is_due_by_time_alone_is_written_and_one_that_is_not_is_not(
    make_work: MakeWork, reader: SplitReader
) -> None:
    streams = {"train": opener(reader, "torchvision", view=PLAIN)}
    for seconds, expected in ((0.0, {"000000003", "000000004"}), (1e9, set[str]())):
        work = make_work(fingerprint=str(int(seconds > 0)) * 64)
        work = replace(work, environment=replace(work.environment, checkpoint_seconds=seconds))
        with pytest.raises(Stop):
            fit(stopping(Slope(), 4), streams, config(9), config(9).length(1), CPU, work)
        found = {e.key.split("/checkpoints/")[1].split("/")[0] for e in work.store.list(work.own)}
        assert found == expected
