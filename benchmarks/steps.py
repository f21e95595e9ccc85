"""One measurement of our training step, in a process or a rank of its own: the real training loop, timed from outside.

The only argument is a :class:`Side` as JSON; the last line written is the result. The loop is timed where it asks for
its next batch, and told to end by SIGTERM, as a cluster tells it, when enough steps are done. Its length is such that
``auto`` looks for the faster precision; nothing is compiled.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

BATCH, SIZE, THREADS = 256, 32, 2
LEARNING_RATE, MOMENTUM, TEMPERATURE = 0.06, 0.9, 0.5
#: Of the training that is measured, not of the measurement: long enough for ``auto`` to look for a faster precision.
STEPS = 2000


@dataclass(frozen=True)
class Side:
    """What is measured.

    Attributes:
        dataset: URI of the images.
        store: URI of a store for checkpoints, shared by the ranks.
        width: multiplier of the channel counts.
        precision: of the networks' products.
        data: whether the views are made, or one batch of them comes again and again.
        batch_norm: over all ranks, or each for itself.
        warm: steps ahead of those that are timed.
        timed: steps that are timed.
        every: a checkpoint is saved at the first step of every second window of that many timed steps; 0: none.
    """

    dataset: str
    store: str
    width: float = 0.25
    precision: str = "auto"
    data: bool = True
    batch_norm: str = "global"
    warm: int = 10
    timed: int = 40
    every: int = 0

    def encoded(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


def view() -> Any:
    """Return the view of lightly's ``SimCLRTransform(input_size=32)``, by our DALI backend."""
    from tenfold.augment.spec import ViewSpec
    from tenfold.config import BlurConfig, CropConfig, JitterConfig, ViewConfig

    crop = CropConfig(area=(0.08, 1.0), sampling="area", interpolation="linear")
    jitter = JitterConfig(probability=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    blur = BlurConfig(probability=0.5, sigma=(0.1, 2.0))
    config = ViewConfig(crop=crop, flip=0.5, jitter=jitter, grayscale=0.2, blur=blur)
    return ViewSpec(backend="dali", image_size=SIZE, view=config)


def network(width: float) -> Any:
    """Return ResNet-18 for small images with a projection head of two layers, freshly made."""
    import torch

    from tenfold.config import Description, HeadConfig, ResNetConfig
    from tenfold.models.saved import build

    torch.manual_seed(0)
    head = HeadConfig(layers=2, features=128)
    return build(Description(kind="simclr", network=ResNetConfig(depth=18, width=width), head=head, image_size=SIZE))


class Preloaded:
    """One batch, again and again."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __next__(self) -> Any:
        return self._batch

    def state(self) -> dict[str, Any]:
        """Return nothing: there is nothing to go on from."""
        return {}


class Watched:
    """A stream that notes when each batch is asked for, and tells the training to end after the last."""

    def __init__(self, stream: Any, last: int, ask: Callable[[int], None]) -> None:
        self._stream, self._last, self._ask = stream, last, ask
        self.times: list[float] = []
        self.state = stream.state

    def __next__(self) -> Any:
        step = len(self.times)  # the first batch is asked for ahead of its step
        self.times.append(time.perf_counter())
        self._ask(step)
        if step == self._last:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self._stream)


def measure(side: Side) -> dict[str, Any]:
    """Train by the real loop, and return views a second of all ranks, and what checkpoints cost."""
    from tenfold.config import Length, OptimizerConfig, PretrainConfig
    from tenfold.environment import Environment
    from tenfold.errors import InterruptedTrainingError
    from tenfold.progress import Reporter
    from tenfold.storage import open_store
    from tenfold.training.checkpoint import Checkpoints
    from tenfold.training.device import prepare
    from tenfold.training.group import process_group
    from tenfold.training.loop import fit
    from tenfold.training.objectives import Contrastive
    from tenfold.work import Work

    environment = replace(Environment.read(), device="cpu", run_id="bench", checkpoint_seconds=float("inf"))
    device = prepare(environment)
    optimizer = OptimizerConfig(name="sgd", learning_rate=LEARNING_RATE, momentum=MOMENTUM, weight_decay=0.0)
    config = PretrainConfig.model_validate(
        {"steps": STEPS, "epochs": None, "batch_size": BATCH, "optimizer": optimizer, "precision": side.precision,
         "compile": "never", "batch_norm": side.batch_norm, "seed": 0, "deterministic": False}
    )  # fmt: skip
    work = Work("pretrain", "bench", open_store(side.store), environment, Reporter("pretrain", quiet=True))
    streams: list[Watched] = []
    first = side.warm + 1

    def ask(step: int) -> None:
        due = side.every > 0 and step >= first and (step - first) % (2 * side.every) == side.every
        object.__setattr__(environment, "checkpoint_seconds", -1.0 if due else float("inf"))

    def watched(state: Any) -> Any:
        streams.append(Watched(stream(side, environment.threads), first + side.timed, ask))
        return streams[0]

    with process_group(environment):
        objective = Contrastive(network(side.width), TEMPERATURE)
        spent = clocked_checkpoints()
        with contextlib.suppress(InterruptedTrainingError):
            fit(objective, {"train": watched}, config, Length(STEPS, 0), device, work)
    saved = Checkpoints(work, writes=False).latest()  # outside of the group: the ranks have met, and it is there
    assert saved is not None
    assert saved.step == first + side.timed + 1, saved.step
    times = streams[0].times[first:]
    took = [after - before for before, after in itertools.pairwise(times)]
    told: dict[str, Any] = {
        "views_per_second": 2 * BATCH * side.timed / (times[-1] - times[0]),
        "median_step": sorted(took)[len(took) // 2], "way": saved.values["way"],
    }  # fmt: skip
    return {**told, **checkpoint_cost(times, side.every, spent)} if side.every else told


def stream(side: Side, threads: int) -> Any:
    """Return the views of this rank, or one batch of them."""
    import torch

    from tenfold.augment.stream import ViewStream
    from tenfold.data.manifest import open_dataset
    from tenfold.data.reader import SplitReader
    from tenfold.ranks import share

    opened = ViewStream(
        SplitReader(open_dataset(side.dataset), "unlabelled"), [view(), view()], share(BATCH, "batch"), 0,
        torch.device("cpu"), threads,
    )  # fmt: skip
    return opened if side.data else Preloaded(next(opened))


def clocked_checkpoints() -> dict[str, list[float]]:
    """Clock what the training's own thread spends in taking and handing over checkpoints, and the writer in writing."""
    from tenfold.training.checkpoint import Checkpoints
    from tenfold.training.state import Training

    spent: dict[str, list[float]] = {}

    def clocked(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            spent.setdefault(name, []).append(time.perf_counter() - start)

    for kind, name in ((Training, "capture"), (Checkpoints, "save"), (Checkpoints, "_write")):
        call = getattr(kind, name)
        setattr(kind, name, lambda *given, _name=name, _call=call: partial(clocked, _name, _call)(*given))
    return spent


def checkpoint_cost(times: list[float], every: int, spent: dict[str, list[float]]) -> dict[str, Any]:
    """Return the seconds of each window, and the share of the time that checkpoints took.

    ``lost`` is what a window with a checkpoint took more than the one before it, each pair; ``lost_directly`` is what
    the training's own thread spent on one, of the time of the windows without.
    """
    windows = [times[k + every] - times[k] for k in range(0, len(times) - every, every)]
    without, having = windows[::2], windows[1::2]
    usual = sum(without) / len(without)
    inner = {name: sum(took[: len(having)]) / len(having) for name, took in spent.items()}  # the last one is the end's
    return {
        "windows": windows, "lost": [b / a - 1 for a, b in zip(without, having, strict=True)],
        "lost_directly": (inner["capture"] + inner["save"]) / usual,
        "seconds": {"capture": inner["capture"], "save": inner["save"], "written_by_another_thread": inner["_write"]},
    }  # fmt: skip


if __name__ == "__main__":
    result = measure(Side(**json.loads(sys.argv[1])))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result), flush=True)
