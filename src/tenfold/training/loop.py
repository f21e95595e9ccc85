"""The one training loop: pretraining, fine-tuning, self-training and distillation all run through it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.augment.stream import Batch, ViewStream
from tenfold.config import Length, TrainConfig
from tenfold.errors import InterruptedTrainingError, NonFiniteError
from tenfold.fingerprint import canonical_json
from tenfold.optim.build import build_optimizer, peak_rate, rate_at
from tenfold.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from tenfold.work import Work

Figures = dict[str, Tensor]
History = list[dict[str, float]]
#: Opens a stream at its start, or with ``state=`` where an earlier one stood.
OpenStream = Callable[..., ViewStream]


class Objective(nn.Module):
    """What is trained: the networks as submodules, and the loss of a step.

    Everything that the next step depends on is in the module's state, so a checkpoint is its state_dict.
    """

    def trained(self) -> list[nn.Module]:
        """Return the networks whose parameters the optimizer changes."""
        raise AssertionError("an objective says what it trains")

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """Return the loss of one batch of every stream, and figures to watch."""
        raise AssertionError("an objective has a loss")

    def after_step(self) -> None:
        """Follow up an update, with a moving average for example."""

    def observe(self, step: int, steps: int) -> dict[str, float]:
        """Return what is measured after ``step`` of ``steps`` steps; empty where nothing is due."""
        return {}


def fit(
    objective: Objective, streams: Mapping[str, OpenStream], config: TrainConfig, length: Length, device: torch.device,
    work: Work, phase: str = "training",
) -> History:  # fmt: skip
    """Train ``objective``, going on from the newest checkpoint of the same fingerprint.

    Args:
        objective: networks and loss; trained in place and left on ``device``.
        streams: name → how to open it; each step takes one batch of each.
        config: batch size, optimizer, seed.
        length: steps in all and of warm-up.
        device: where to compute.
        work: checkpoints, progress, tracking.
        phase: shown in the progress line.

    Returns:
        The curves: every few steps, the figures' means since the last point.

    Raises:
        NonFiniteError: the loss or a gradient is NaN or infinite; nothing was updated by it.
        InterruptedTrainingError: SIGTERM came; the step at work was finished and saved.
    """
    objective.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective.train()
    optimizer = build_optimizer(config.optimizer, objective.trained(), config.batch_size)
    peak, steps = peak_rate(config.optimizer, config.batch_size), length.steps
    history: History = []
    saved = latest_checkpoint(work)
    start = saved.step if saved else 0
    if saved:
        work.reporter.note(f"goes on from the checkpoint of step {start} of {steps}")
        _restore(saved, objective, optimizer)
        history = list(saved.values["history"])
        work.spent.append(float(saved.values["spent"]))
    opened = {name: open_(state=_stream_state(saved, name)) for name, open_ in streams.items()}
    every = max(1, steps // 200)
    window = _window(saved, device)
    began = last_saved = time.monotonic()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with _told_to_end() as told:
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, length, peak)
            batches = {name: next(stream) for name, stream in opened.items()}
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss, figures = objective.loss(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            size = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if not torch.isfinite(loss + size):
                _stop(work, step, float(loss.detach()), float(size), batches)
            optimizer.step()
            objective.after_step()
            window.append({"loss": loss.detach(), **figures, "gradient_norm": size})
            observed = objective.observe(step + 1, steps)
            if (step + 1) % every == 0 or step + 1 == steps or observed:
                means = {key: float(torch.stack([f[key] for f in window]).mean()) for key in window[0]}
                means |= {"learning_rate": optimizer.param_groups[0]["lr"], **observed}
                history.append({"step": step + 1, **means})
                work.tracker.metrics(means, step + 1)
                window = []
            work.reporter.progress(
                phase,
                step + 1,
                steps,
                "views",
                _views(batches),
                **({"loss": history[-1]["loss"]} if history else {}),
            )
            values = {"history": history, "spent": time.monotonic() - began + sum(work.spent)}
            due = time.monotonic() - last_saved > work.environment.checkpoint_seconds
            if step + 1 == steps or due or told.is_set():
                save_checkpoint(work, _capture(step + 1, objective, optimizer, opened, window, values))
                began = last_saved = time.monotonic()
            if told.is_set() and step + 1 < steps:
                raise InterruptedTrainingError(
                    f"told to end after step {step + 1} of {steps}, which a checkpoint holds; the same again goes on"
                )
    objective.eval()
    return history


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


def _views(batches: Mapping[str, Batch]) -> int:
    return sum(len(batch.views) * len(batch.numbers) for batch in batches.values())


def _stop(work: Work, step: int, loss: float, size: float, batches: Mapping[str, Batch]) -> None:
    numbers = {name: batch.numbers.tolist() for name, batch in batches.items()}
    key = f"{work.own}nonfinite.json"
    work.store.write(key, canonical_json({"step": step, "samples": numbers}).encode())
    what = "loss" if loss != loss or loss in (float("inf"), float("-inf")) else "gradient"
    raise NonFiniteError(
        f"the {what} is not finite at step {step} (loss {loss}, gradient norm {size}); nothing was updated by it. "
        f"The batch's samples are listed in {work.store.uri}/{key}. A lower learning rate is the usual cure."
    )


def _capture(
    step: int, objective: Objective, optimizer: torch.optim.Optimizer, streams: Mapping[str, ViewStream],
    window: list[Figures], values: dict[str, Any],
) -> Checkpoint:  # fmt: skip
    tensors = {f"objective.{name}": tensor.clone() for name, tensor in objective.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.clone() for name, value in state.items()}
    for name, stream in streams.items():
        tensors |= {f"stream.{name}.{part}": value for part, value in stream.state().items()}
    if window:  # the points since the curves' last one, so that its mean is the same after a restart
        tensors |= {f"window.{key}": torch.stack([figures[key] for figures in window]) for key in window[0]}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return Checkpoint(step, tensors, values)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _restore(saved: Checkpoint, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
    objective.load_state_dict(_part(saved.tensors, "objective."))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in _part(saved.tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(saved.tensors["rng.cpu"])
    if "rng.cuda" in saved.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.tensors["rng.cuda"])


def _window(saved: Checkpoint | None, device: torch.device) -> list[Figures]:
    columns = _part(saved.tensors, "window.") if saved else {}
    count = len(next(iter(columns.values()))) if columns else 0
    return [{key: column[row].to(device) for key, column in columns.items()} for row in range(count)]


def _stream_state(saved: Checkpoint | None, name: str) -> dict[str, Tensor] | None:
    return _part(saved.tensors, f"stream.{name}.") if saved else None
