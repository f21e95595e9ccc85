"""How a training computes: precision, compilation, threads; chosen once and kept in its checkpoints.

What ``auto`` stands for is measured on the first batch, with the run's own networks, and nothing of it is left behind.
A run that goes on takes what the first start chose, so that its numbers do not change half-way.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tenfold.augment.stream import Batch
from tenfold.config import TrainConfig
from tenfold.environment import cores
from tenfold.models.norm import leave_uncompiled
from tenfold.progress import Reporter, clock
from tenfold.ranks import from_first, world_size
from tenfold.training.objectives import Objective

#: A run shorter than this many seconds is computed in float32: looking for something better would not pay.
WORTH_A_LOOK = 60.0
#: Compiling takes some 40 s on a CPU, and gains some per cent there.
WORTH_COMPILING = 1800.0
#: Something else is chosen where it takes at most this share of the time.
_GAIN = 0.95
_TIMED = 3


@dataclass(frozen=True)
class Way:
    """How it is computed.

    Attributes:
        precision: ``float32`` or ``bfloat16``, of the networks' products.
        compiled: whether the trained networks go through torch.compile.
        threads: of torch, in each process.
        layout: of images and kernels in memory, as :func:`layout_of` has it.
    """

    precision: str
    compiled: bool
    threads: int
    layout: str = "channels_last"

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def layout_of(config: TrainConfig) -> str:
    """Return the layout of images and kernels: channels last, which convolutions want; not where FSDP2 spreads them.

    FSDP2 takes no parameters in another order than their shape's.
    """
    return "contiguous_format" if config.sharding == "full" and world_size() > 1 else "channels_last"


def kept_way(record: Mapping[str, Any], config: TrainConfig, ranks: int) -> Way:
    """Return the way that a checkpoint recorded, and set its number of threads where that many cores are there.

    Args:
        record: what :meth:`Way.record` gave.
        config: of the training.
        ranks: how many recorded it; another number of processes has another share of the cores each.
    """
    way = Way(**record)
    if ranks != world_size():
        return replace(way, threads=torch.get_num_threads(), layout=layout_of(config))
    if way.threads <= cores():
        torch.set_num_threads(way.threads)
    return way


def choose_way(
    config: TrainConfig, objective: Objective, batches: Mapping[str, Batch], steps: int, device: torch.device,
    reporter: Reporter,
) -> Way:  # fmt: skip
    """Return what the configuration says, and where it says ``auto`` the fastest on ``batches``.

    With ``deterministic``, ``auto`` means float32 and no compilation: a measurement may come out otherwise next time.
    With several ranks the first one's clock decides. The objective's state and the random numbers stay as they were.

    Args:
        config: of the training.
        objective: on its device, neither compiled nor spread over ranks by DDP.
        batches: the first ones, of which a part is measured where they are passed in parts.
        steps: how many are to come.
        device: where it is computed.
        reporter: told what was chosen by measurement.
    """
    threads = torch.get_num_threads()
    precision = "float32" if config.precision == "auto" else config.precision
    compiled = config.compile == "always"
    open_ = config.precision == "auto", config.compile == "auto" and config.sharding == "none"
    if config.deterministic or not any(open_):
        return Way(precision, compiled, threads, layout_of(config))
    batches = {name: batch.split(config.accumulate)[0] for name, batch in batches.items()}
    passes = steps * config.accumulate
    with _left_as_it_was(objective):
        took = _seconds(objective, batches, precision, device, timed=1)
        if open_[0] and took * passes > WORTH_A_LOOK:
            took = min(took, _seconds(objective, batches, "float32", device)) if math.isfinite(took) else took
            half = _seconds(objective, batches, "bfloat16", device)
            if half < _GAIN * took:
                precision, took = "bfloat16", half
        if open_[1] and took * passes > WORTH_COMPILING:
            compile_networks(objective)
            fused = _seconds(objective, batches, precision, device)
            compiled = fused < _GAIN * took
            took = min(took, fused)
            if not compiled:
                compile_networks(objective, undo=True)
    if WORTH_A_LOOK < took * passes < math.inf:
        told = f"{precision}{', compiled' if compiled else ''}"
        reporter.note(f"computes in {told}: {clock(took * passes)} for {steps} steps, without data")
    return Way(precision, compiled, threads, layout_of(config))


def compile_networks(objective: Objective, *, undo: bool = False) -> None:
    """Compile the trained networks in place, so that the names in their state stay what they are."""
    leave_uncompiled()
    for network in objective.trained():
        if undo:
            network._compiled_call_impl = None  # torch has no public way back
        else:
            network.compile()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which products are computed in ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _seconds(
    objective: Objective, batches: Mapping[str, Batch], precision: str, device: torch.device, timed: int = _TIMED
) -> float:
    """Return the median time of a forward and backward pass after a first one; infinite where memory is too small."""
    took = []
    try:
        for _ in range(1 + timed):
            start = time.perf_counter()
            with autocast(device, precision):
                loss, _ = objective.loss(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            objective.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:  # of a GPU
        objective.zero_grad(set_to_none=True)
        took = [math.inf, math.inf]
    return float(from_first(statistics.median(took[1:])))


@contextlib.contextmanager
def _left_as_it_was(objective: Objective) -> Iterator[None]:
    state = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        objective.load_state_dict(state)


@contextlib.contextmanager
def determinism(wanted: bool | None) -> Iterator[None]:
    """Take only algorithms that give the same bits each time."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's products refuse
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def surroundings(config: TrainConfig, classes: list[str], device: torch.device) -> dict[str, Any]:
    """Return what a training may not change half-way, name → value.

    That is its configuration, its classes and the number of ranks; and for a deterministic one torch's version, its
    threads, and the processor's or GPU's kind.
    """
    values: dict[str, Any] = {"world_size": world_size(), "classes": classes}
    values |= {f"config.{key}": value for key, value in _flat(config.model_dump(mode="json")).items()}
    if config.deterministic:
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        values |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": kind}
    return values


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: inner for name, part in value.items() for key, inner in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): value}
