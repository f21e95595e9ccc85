"""The one training loop: pretraining, fine-tuning, self-training and distillation all run through it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tenfold.augment.stream import Batch, ViewStream
from tenfold.config import Length, TrainConfig
from tenfold.errors import InterruptedTrainingError, NonFiniteError
from tenfold.fingerprint import canonical_json
from tenfold.optim.build import build_optimizer, peak_rate, rate_at, set_rate
from tenfold.ranks import any_of, from_first, mean, rank, world_size
from tenfold.training.checkpoint import Checkpoint, Checkpoints
from tenfold.training.objectives import Objective
from tenfold.training.replica import Replica
from tenfold.training.state import History, Training, check_same, part, repeat_curves
from tenfold.training.way import choose_way, determinism, kept_way, surroundings
from tenfold.work import Work

#: Opens a stream at its start, or with ``state=`` where an earlier one stood.
OpenStream = Callable[..., ViewStream]
#: Points of the curves, at most.
_POINTS = 200


def fit(
    objective: Objective, streams: Mapping[str, OpenStream], config: TrainConfig, length: Length, device: torch.device,
    work: Work, classes: Sequence[str] = (), phase: str = "training",
) -> History:  # fmt: skip
    """Train ``objective``, going on from the newest checkpoint of the same fingerprint.

    Args:
        objective: networks and loss; trained in place and left on ``device``.
        streams: name → how to open it; each step takes one batch of each.
        config: batch size, optimizer, how to compute.
        length: steps in all and of warm-up.
        device: where to compute.
        work: checkpoints, progress, tracking.
        classes: that labels stand for, in order.
        phase: shown in the progress line.

    Returns:
        The curves: every few steps, the figures' means since the last point, over all ranks.

    Raises:
        ResumeError: what is there was trained with other settings, classes or number of ranks.
        NonFiniteError: the loss or a gradient is NaN or infinite; nothing was updated by it.
        InterruptedTrainingError: SIGTERM came; the step at work was finished and saved.
    """
    with (
        determinism(config.deterministic),
        Checkpoints(work, writes=rank() == 0) as checkpoints,
        _told_to_end() as told,
    ):
        now = surroundings(config, list(classes), device)
        saved = _found(checkpoints, now, length.steps, work)
        replica = Replica(objective, config, device)
        optimizer = build_optimizer(config.optimizer, objective.trained(), config.batch_size)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        opened = {name: open_(state=part(saved, f"stream.{name}.") or None) for name, open_ in streams.items()}
        training = Training(objective, optimizer, opened)
        feed = _Feed(opened)
        start, steps, peak = saved.step if saved else 0, length.steps, peak_rate(config.optimizer, config.batch_size)
        if saved:
            work.reporter.note(f"goes on from the checkpoint of step {start} of {steps}")
            training.restore(saved)
            if not saved.folder.startswith(work.own):
                repeat_curves(saved, work.tracker)
            work.spent.append(float(saved.values["spent"]))
            way = kept_way(saved.values["way"], config, saved.values["surroundings"]["world_size"])
        else:
            if rank() > 0:  # ranks began alike, and shall not draw alike
                torch.manual_seed(torch.initial_seed() + rank())
            way = choose_way(config, objective, feed.peek(), steps, device, work.reporter)
        replica.take(way)
        curves, began, last_saved = _Curves(training, steps, work, phase), time.monotonic(), time.monotonic()
        for step in range(start, steps):
            set_rate(optimizer, rate_at(step, length, peak, config.optimizer.least))
            batches = next(feed)
            optimizer.zero_grad(set_to_none=True)
            figures = replica.backward(batches)
            figures["gradient_norm"] = replica.gradient_norm(parameters)
            if any_of(not bool(torch.isfinite(figures["loss"] + figures["gradient_norm"])))[0]:
                _stop(work, step, float(figures["loss"]), float(figures["gradient_norm"]), batches)
            optimizer.step()
            replica.follow()
            score = curves.add(step + 1, figures, feed)
            due = time.monotonic() - last_saved > work.environment.checkpoint_seconds
            ends, due, over = any_of(told.is_set(), due, objective.done())
            if step + 1 == steps or ends or due or over or score is not None:
                spent = time.monotonic() - began + sum(work.spent)
                values = {"spent": spent, "way": way.record(), "surroundings": now}
                # a training that is over counts as done to its end, for whatever starts from its checkpoint
                checkpoints.save(training.capture(steps if over else step + 1, values, score))
                last_saved = time.monotonic()
            if over:
                break
            if ends and step + 1 < steps:
                checkpoints.wait()
                raise InterruptedTrainingError(
                    f"told to end after step {step + 1} of {steps}, which a checkpoint holds; the same again goes on"
                )
        if start == steps and saved and not saved.folder.startswith(work.own):  # another run may remove its own
            checkpoints.save(saved)
        _publish(checkpoints, training, steps, work)
    objective.eval()
    return training.history


def _found(checkpoints: Checkpoints, now: Mapping[str, Any], steps: int, work: Work) -> Checkpoint | None:
    """Return what to go on from, the same on all ranks; what is done to its end may have been done anywhere."""
    saved = checkpoints.latest()
    folder = saved.folder if saved else ""
    if any_of(folder != from_first(folder))[0]:  # another run's came or went between two ranks' looks
        raise InterruptedTrainingError("the ranks found different checkpoints; the same again goes on")
    if saved and saved.step < steps:
        where = f"the checkpoint of step {saved.step} below {work.store.uri}/{work.shared}"
        check_same(saved.values["surroundings"], now, resized=work.environment.resume_resized, where=where)
    return saved


def _publish(checkpoints: Checkpoints, training: Training, steps: int, work: Work) -> None:
    """Make this training the fingerprint's result, or take the result of a run that was first."""
    other = checkpoints.publish(steps) if rank() == 0 else None
    if from_first(other is not None):
        other = other or checkpoints.latest()
        assert other is not None
        work.reporter.note("another run of the same stage was first to end; its result is taken")
        training.restore(other)


class _Feed:
    """Batches of all streams, and how long they were waited for."""

    def __init__(self, streams: Mapping[str, ViewStream]) -> None:
        self._streams = streams
        self._first: dict[str, Batch] | None = None
        self._began, self._waited, self.views = time.monotonic(), 0.0, 0

    def peek(self) -> dict[str, Batch]:
        """Return the batches that come next."""
        if self._first is None:
            self._first = self._take()
            self._began = time.monotonic()
        return self._first

    def __next__(self) -> dict[str, Batch]:
        start = time.monotonic()
        batches, self._first = self._first or self._take(), None
        self._waited += time.monotonic() - start
        self.views = world_size() * sum(len(batch.views) * len(batch.numbers) for batch in batches.values())
        return batches

    def _take(self) -> dict[str, Batch]:
        return {name: next(stream) for name, stream in self._streams.items()}

    def waiting(self) -> float:
        """Return the share of the time since the start that was spent waiting for data."""
        return self._waited / max(time.monotonic() - self._began, 1e-9)


class _Curves:
    """Collects the figures of the steps into points of the curves, and tells them."""

    def __init__(self, training: Training, steps: int, work: Work, phase: str) -> None:
        self._training, self._steps, self._work, self._phase = training, steps, work, phase
        self._every = max(1, steps // _POINTS)
        self._warned = False

    def add(self, step: int, figures: dict[str, torch.Tensor], feed: _Feed) -> float | None:
        """Take in a step; return how good the network is where that was measured."""
        training, work, steps = self._training, self._work, self._steps
        training.window.append(figures)
        point = step % self._every == 0 or step == steps
        observed = training.objective.observe(step, steps, point=point)
        if point or observed:
            stacked = torch.stack([torch.stack([seen[key].double() for key in figures]) for seen in training.window])
            means = dict(zip(figures, mean(stacked.mean(0)).tolist(), strict=True))
            means |= {"learning_rate": max(group["lr"] for group in training.optimizer.param_groups), **observed}
            training.history.append({"step": step, **means})
            training.window = []
            work.tracker.metrics(means, step)
            if not self._warned and (concern := training.objective.concern(means, step, steps)) is not None:
                self._warned = True
                work.reporter.warn(concern)
        shown = {"loss": training.history[-1]["loss"]} if training.history else {}
        shown["% waiting for data"] = round(100 * feed.waiting(), 1)
        work.reporter.progress(self._phase, step, steps, "views", feed.views, **shown)
        return observed.get(training.objective.score or "")


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets, instead of ending the process there and then."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(work: Work, step: int, loss: float, size: float, batches: Mapping[str, Batch]) -> None:
    numbers = {name: batch.numbers.tolist() for name, batch in batches.items()}
    key = f"{work.own}nonfinite{f'-{rank()}' if rank() else ''}.json"
    work.store.write(key, canonical_json({"step": step, "samples": numbers}).encode())
    what = "gradient" if math.isfinite(loss) else "loss"
    raise NonFiniteError(
        f"the {what} is not finite at step {step} (loss {loss}, gradient norm {size}); nothing was updated by it. "
        f"The batch's samples are listed in {work.store.uri}/{key}. A lower learning rate is the usual cure."
    )
