"""Going on from a checkpoint: with other settings, a full disk, a wrong clock, no pseudo-labels (F4, F6, F18, F23)."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.augment.spec import ViewSpec
from tenfold.augment.stream import ViewStream
from tenfold.config import JitterConfig, SelfTrainConfig, TrainConfig, ViewConfig
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import NoPseudoLabelsError, ResumeError, StorageError
from tenfold.fingerprint import canonical_json, digest
from tenfold.models.heads import Classifier
from tenfold.models.resnet import ResNet
from tenfold.storage import FileStore
from tenfold.storage.store import Content
from tenfold.tracking import NoTracker
from tenfold.training import way
from tenfold.training.loop import fit
from tenfold.training.objectives import Objective, Supervised
from tenfold.training.self_training import SelfTraining
from tenfold.training.state import History, check_same
from tenfold.work import Work

MakeWork = Callable[..., Work]
CPU = torch.device("cpu")
STEPS = 6


class Stop(Exception):
    """Ends a training in the middle, as a kill would."""


@pytest.fixture(scope="module")
def reader(digits: Dataset) -> SplitReader:
    return SplitReader(digits, "labelled")


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"steps": STEPS, "batch_size": 8, "deterministic": True, **values})


def supervised(reader: SplitReader) -> Objective:
    torch.manual_seed(0)
    return Supervised(Classifier(ResNet(10, 0.125), None, 0, 10), torch.from_numpy(reader.labels()), 0.0, 0.9)


def opener(reader: SplitReader, views: int = 1) -> Any:
    spec = ViewSpec(backend="torchvision", image_size=16, view=ViewConfig(jitter=JitterConfig()))
    return partial(ViewStream, reader, [spec] * views, 8, 0, CPU, 1)


def train(
    reader: SplitReader, work: Work, stop: int | None = None, settings: TrainConfig | None = None,
    classes: list[str] | None = None, save: bool = True,
) -> tuple[Objective, History]:  # fmt: skip
    """Train, saving each step; ``stop`` ends it after that many checkpoints' steps and the next one."""
    objective, settings, done = supervised(reader), settings or config(), 0
    follow = objective.after_step

    def after_step() -> None:
        nonlocal done
        follow()
        done += 1
        if stop is not None and done > stop:
            raise Stop

    objective.after_step = after_step  # type: ignore[method-assign]
    seconds = 0.0 if save else 1e9
    work = replace(work, environment=replace(work.environment, checkpoint_seconds=seconds))
    names = reader.classes if classes is None else classes
    return objective, fit(objective, {"labelled": opener(reader)}, settings, settings.length(1), CPU, work, names)


def assert_same(a: tuple[Objective, History], b: tuple[Objective, History]) -> None:
    state = b[0].state_dict()
    assert [name for name, tensor in a[0].state_dict().items() if not torch.equal(tensor, state[name])] == []
    assert a[1] == b[1]


def stopped(reader: SplitReader, work: Work, after: int = 3, **values: Any) -> None:
    with pytest.raises(Stop):
        train(reader, work, after, **values)


# --- F4: what may not differ -----------------------------------------------------------------------------


def refused(reader: SplitReader, work: Work, **values: Any) -> str:
    before = {entry.key: entry.tag for entry in work.store.list()}
    with pytest.raises(ResumeError) as caught:
        train(reader, work, **values)
    assert {entry.key: entry.tag for entry in work.store.list()} == before, "nothing is lost by asking"
    assert "checkpoint of step 3" in str(caught.value)
    return str(caught.value)


def test_other_settings_are_refused_naming_each_key_with_both_values(reader: SplitReader, make_work: MakeWork) -> None:
    stopped(reader, make_work())
    told = refused(reader, make_work(), settings=config(accumulate=2, optimizer={"learning_rate": 0.7}))
    assert "config.accumulate (1 then, 2 now); config.optimizer.learning_rate (0.3 then, 0.7 now)" in told
    assert len(re.findall(r"\(\S+ then, \S+ now\)", told)) == 2, "what is the same is not told"
    assert train(reader, make_work())[1][-1]["step"] == STEPS, "with what was there then it goes on"


@pytest.mark.parametrize("other", ["order", "one less", "none"])
def test_other_classes_are_refused(reader: SplitReader, make_work: MakeWork, other: str) -> None:
    stopped(reader, make_work())
    classes = {"order": reader.classes[::-1], "one less": reader.classes[1:], "none": []}[other]
    told = refused(reader, make_work(), classes=list(classes))
    assert f"classes ({list(reader.classes)} then, {list(classes)} now)" in told


def test_another_number_of_ranks_is_refused_and_allowed_by_a_switch(
    reader: SplitReader, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(way, "world_size", lambda: 2)  # what the first start would have recorded
        stopped(reader, make_work())
    work = make_work()
    told = refused(reader, work)
    assert "world_size (2 then, 1 now)" in told
    assert "TENFOLD_RESUME_RESIZED=1" in told
    resized = replace(work, environment=replace(work.environment, resume_resized=True))
    assert [point["step"] for point in train(reader, resized)[1]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("key", ["torch", "threads", "processor"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_deterministic_run_alone_refuses_another_torch_processor_or_number_of_threads(
    reader: SplitReader, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch, key: str, deterministic: bool
) -> None:
    settings = config(deterministic=deterministic)
    stopped(reader, make_work(), settings=settings)
    if key == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9.9")
    elif key == "processor":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    else:
        torch.set_num_threads(2)
    if deterministic:
        told = refused(reader, make_work(), settings=settings)
        assert f": {key} (" in told
        assert {"torch": "9.9.9 now", "processor": "ABACUS now", "threads": "1 then, 2 now"}[key] in told
    else:
        assert train(reader, make_work(), settings=settings)[1][-1]["step"] == STEPS


def test_what_differs_is_named_in_order_and_long_values_are_cut() -> None:
    saved = {"a": 1, "same": [1], "gone": True, "world_size": 2, "long": "x" * 500}
    now = {"a": 2, "same": [1], "new": None, "other": 3, "world_size": 4, "long": "y" * 500}
    with pytest.raises(ResumeError) as caught:
        check_same(saved, now, resized=True, where="the checkpoint")
    told = str(caught.value)
    assert told.startswith("the checkpoint cannot be gone on from: a (1 then, 2 now); gone (True then, not there now)")
    assert "other (not there then, 3 now)" in told
    assert "world_size" not in told
    assert f"long ({'x' * 197}... then, {'y' * 197}... now)" in told
    check_same(saved, saved, resized=False, where="the checkpoint")
    check_same({"world_size": 2}, {"world_size": 4}, resized=True, where="the checkpoint")
    with pytest.raises(ResumeError, match=r"world_size \(2 then, 4 now\)"):
        check_same({"world_size": 2}, {"world_size": 4}, resized=False, where="the checkpoint")


def test_two_ranks_and_one_take_the_images_in_the_same_order_across_a_restart(reader: SplitReader) -> None:
    """Batches of 2 ranks of 4 are those of one rank of 8, and a state of the one opens the other."""
    spec = ViewSpec(backend="torchvision", image_size=16, view=ViewConfig())

    def stream(batch: int, part: tuple[int, int], state: Any = None) -> ViewStream:
        return ViewStream(reader, [spec], batch, 0, CPU, 1, state, part=part)

    whole = stream(8, (0, 1))
    straight = [next(whole).numbers.tolist() for _ in range(12)]
    pair = [stream(4, (rank, 2)) for rank in (0, 1)]
    first = [sorted(number for each in pair for number in next(each).numbers.tolist()) for _ in range(5)]
    alone = stream(8, (0, 1), pair[0].state())
    second = [sorted(next(alone).numbers.tolist()) for _ in range(3)]
    pair = [stream(4, (rank, 2), alone.state()) for rank in (0, 1)]
    third = [sorted(number for each in pair for number in next(each).numbers.tolist()) for _ in range(4)]
    assert first + second + third == [sorted(numbers) for numbers in straight]
    assert len({tuple(numbers) for numbers in straight}) > 6, "they are not the same images each time"


# --- F6: a full disk -------------------------------------------------------------------------------------


class Full(FileStore):
    """A disk that is full in the middle of one write, and of all that follow."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self.left = writes

    def write(self, key: str, content: Content) -> None:
        self.left -= 1
        if self.left < 0:
            with self._errors(key):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(key, content)


@pytest.mark.parametrize("writes", [0, 1, 2, 6, 7, 8])
def test_a_disk_that_fills_up_stops_the_training_and_the_same_goes_on_with_room(
    reader: SplitReader, make_work: MakeWork, tmp_path: Path, writes: int
) -> None:
    straight = train(reader, make_work(fingerprint="a" * 64))
    full = make_work(store=Full(tmp_path / "full", writes))
    with pytest.raises(StorageError, match="No space left on device") as caught:
        train(reader, full)
    assert f"{full.own}checkpoints/{writes // 3 + 1:09d}/" in str(caught.value)
    store = FileStore(tmp_path / "full")
    whole = {entry.key.split("/")[-2] for entry in store.list() if entry.key.endswith("complete.json")}
    assert whole == {f"{step:09d}" for step in range(1, writes // 3 + 1)}
    for name in whole:
        folder = f"{full.own}checkpoints/{name}/"
        told = json.loads(store.read(f"{folder}complete.json"))["sha256"]
        assert all(digest(store.read(folder + file)) == value for file, value in told.items())
    assert not list((tmp_path / "full").rglob(".*")), "no half-written file stays"
    assert_same(straight, train(reader, make_work(store=store)))


def test_what_is_done_to_its_end_is_taken_by_another_number_of_processes_which_keeps_a_copy(
    reader: SplitReader, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = train(reader, make_work())
    record = replace(make_work(run_id="other"), tracker=(points := Points()))
    monkeypatch.setattr(way, "world_size", lambda: 2)
    taken = train(reader, record)
    assert_same(done, taken)
    assert [step for step, _ in points.seen] == list(range(1, STEPS + 1)), "the curves are whole in the new run too"
    store = record.store
    for entry in list(store.list(make_work().own)):  # the first run and its reader are over
        store.delete(entry.key)
    capfd.readouterr()
    assert_same(done, train(reader, make_work(run_id="third")))
    assert f"goes on from the checkpoint of step {STEPS} of {STEPS}" in capfd.readouterr().err


class Points(NoTracker):
    """Remembers the points of the curves."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.seen.append((step, dict(metrics)))


# --- F18: nothing that the teacher is sure of ------------------------------------------------------------


def self_train(
    digits: Dataset, reader: SplitReader, work: Work, patience: int, steps: int, stop: int | None = None
) -> tuple[SelfTraining, History]:
    unlabelled = SplitReader(digits, "unlabelled")
    torch.manual_seed(0)
    objective = SelfTraining(
        Classifier(ResNet(10, 0.125), None, 0, 10), torch.from_numpy(reader.labels()),
        SelfTrainConfig(threshold=0.9999, patience=patience), 0.9,
    )  # fmt: skip
    if stop is not None:
        follow = objective.after_step

        def after_step() -> None:
            follow()
            if int(objective.dry) > stop:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
    settings = config(steps=steps)
    work = replace(work, environment=replace(work.environment, checkpoint_seconds=0.0))
    streams = {"labelled": opener(reader), "unlabelled": opener(unlabelled, 2)}
    return objective, fit(objective, streams, settings, settings.length(1), CPU, work)


def test_without_any_pseudo_label_the_loss_is_finite_and_one_warning_comes(
    digits: Dataset, reader: SplitReader, make_work: MakeWork, capfd: pytest.CaptureFixture[str]
) -> None:
    _, history = self_train(digits, reader, make_work(), patience=200, steps=4)
    assert [point["confident_share"] for point in history] == [0.0] * 4
    assert all(point["loss"] == point["supervised_loss"] > 0 for point in history)
    assert capfd.readouterr().err.count("no pseudo-label reached the threshold 0.9999") == 1


def test_without_any_pseudo_label_for_the_patience_self_training_stops_and_counts_across_a_restart(
    digits: Dataset, reader: SplitReader, make_work: MakeWork
) -> None:
    with pytest.raises(Stop):
        self_train(digits, reader, make_work(), patience=5, steps=9, stop=3)
    with pytest.raises(NoPseudoLabelsError) as caught:
        self_train(digits, reader, make_work(), patience=5, steps=9)
    assert "threshold 0.9999 in the last 5 of 5 steps" in str(caught.value)
    assert "Lower self_train.threshold" in str(caught.value)
    with pytest.raises(NoPseudoLabelsError, match="in the last 5 of 5 steps"):
        self_train(digits, reader, make_work(), patience=5, steps=9)


# --- F23: the clock --------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_a_day_changes_nothing(
    reader: SplitReader, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    straight = train(reader, make_work(fingerprint="a" * 64))
    work, real, calls = make_work(), time.time, [0]
    assert isinstance(work.store, FileStore)

    def jumping() -> float:
        calls[0] += 1
        return real() + 86_400 * days * (calls[0] % 2)

    monkeypatch.setattr(time, "time", jumping)
    stopped(reader, work)
    for place in (work.store.root / work.shared).rglob("*"):  # the newer, the older by its time
        if place.is_file():
            step = int(place.parent.name)
            os.utime(place, (real() - 86_400 * step * days,) * 2)
    again = train(reader, make_work(run_id="another"))
    assert_same(straight, again)
    taken = {entry.key.split("/")[-2] for entry in work.store.list(f"{work.shared}another/checkpoints/")}
    assert taken == {"000000005", "000000006"}


def test_a_checkpoint_s_record_that_was_changed_with_a_matching_digest_is_refused_by_its_values(
    reader: SplitReader, make_work: MakeWork
) -> None:
    work = make_work()
    stopped(reader, work)
    folder = f"{work.own}checkpoints/000000003/"
    values = json.loads(work.store.read(f"{folder}state.json"))
    values["surroundings"]["torch"] = "1.0"
    record = json.loads(work.store.read(f"{folder}complete.json"))
    data = canonical_json(values).encode()
    record["sha256"]["state.json"] = digest(data)
    work.store.write(f"{folder}state.json", data)
    work.store.write(f"{folder}complete.json", canonical_json(record).encode())
    assert f"torch (1.0 then, {torch.__version__} now)" in refused(reader, work)
