"""All that the next step of a training depends on, and how it goes into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tenfold.augment.stream import ViewStream
from tenfold.errors import ResumeError
from tenfold.ranks import all_gather, is_spread, placed_like, rank, whole, world_size
from tenfold.tracking import Tracker
from tenfold.training.checkpoint import Checkpoint
from tenfold.training.objectives import Figures, Objective

History = list[dict[str, float]]


@dataclass
class Training:
    """A training between two steps.

    Attributes:
        objective: networks, averages, queues.
        optimizer: with its buffers.
        streams: name → views that come.
        history: the points of the curves so far.
        window: figures of the steps since the last point, so that its mean is the same after a restart.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    streams: Mapping[str, ViewStream]
    history: History = field(default_factory=list)
    window: list[Figures] = field(default_factory=list)

    def capture(self, step: int, values: Mapping[str, Any], score: float | None = None) -> Checkpoint:
        """Return a copy of everything; all ranks must ask at once, and the first alone gets the tensors.

        Args:
            step: steps done.
            values: what else the checkpoint holds.
            score: how good the network is.
        """
        tensors = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        for name, stream in self.streams.items():
            tensors |= {f"stream.{name}.{part}": value for part, value in stream.state().items()}
        if self.window:
            for key in self.window[0]:  # each rank has figures of its own
                tensors[f"window.{key}"] = all_gather(torch.stack([seen[key] for seen in self.window])[None])
        for number, state in enumerate(all_gather(torch.get_rng_state()[None])):
            tensors[f"rng.{number}.cpu"] = state
        if torch.cuda.is_available():
            for number, state in enumerate(all_gather(torch.cuda.get_rng_state()[None])):
                tensors[f"rng.{number}.cuda"] = state
        # in one order on all ranks: what was read from a checkpoint may stand in any
        copied = {}
        for name in sorted(tensors):
            gathered = whole(tensors[name])
            if rank() == 0:
                copied[name] = _copied(gathered)
        return Checkpoint(step, copied, {"history": list(self.history), **values}, score)

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where ``saved`` was taken; the streams are opened there by their own state."""
        known = self.objective.state_dict()
        self.objective.load_state_dict(
            {name: placed_like(tensor, known.get(name, tensor)) for name, tensor in part(saved, "objective.").items()}
        )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in part(saved, "optimizer.").items():
            index, _, key = name.partition(".")
            like = tensor.ndim > 0 and tensor.shape == parameters[int(index)].shape
            state.setdefault(int(index), {})[key] = _laid_like(tensor, parameters[int(index)]) if like else tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        device = parameters[0].device
        columns = {key: _of_rank(column).to(device) for key, column in part(saved, "window.").items()}
        count = len(next(iter(columns.values()))) if columns else 0
        self.window = [{key: column[row] for key, column in columns.items()} for row in range(count)]
        self.history = list(saved.values["history"])
        own = part(saved, f"rng.{rank()}.")
        if "cpu" in own:  # a rank that was not there then starts anew
            torch.set_rng_state(own["cpu"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])


def repeat_curves(saved: Checkpoint, tracker: Tracker) -> None:
    """Record the points of the curves that another run made, so that this run's are whole."""
    for point in saved.values["history"]:
        tracker.metrics({key: value for key, value in point.items() if key != "step"}, int(point["step"]))


def part(saved: Checkpoint | None, prefix: str) -> dict[str, Tensor]:
    """Return the checkpoint's tensors whose names start with ``prefix``, without it; empty where there is none."""
    tensors = saved.tensors if saved else {}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _of_rank(column: Tensor) -> Tensor:
    """Return this rank's row; their mean where there were other ranks, which leaves the mean over ranks as it was."""
    return column[rank()] if len(column) == world_size() else column.mean(0)


def _laid_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return ``tensor`` spread over the ranks and laid out in memory as ``model`` is; updates of both are then fast."""
    placed = placed_like(tensor, model)
    return placed if is_spread(model) else torch.empty_like(model, dtype=tensor.dtype).copy_(placed)


def _copied(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU, which the next step does not change."""
    there = tensor.detach().to("cpu", memory_format=torch.contiguous_format)
    return there.clone() if there.data_ptr() == tensor.data_ptr() else there


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], *, resized: bool, where: str) -> None:
    """Refuse to go on where something differs that may not.

    Args:
        saved: the surroundings that the checkpoint was made in.
        now: those of this start.
        resized: another number of ranks is allowed.
        where: what the checkpoint is called.

    Raises:
        ResumeError: names each key that differs, with both values.
    """
    passed = {"world_size"} if resized else set[str]()
    differing = [
        f"{key} ({_shown(saved, key)} then, {_shown(now, key)} now)"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key) and key not in passed
    ]
    if not differing:
        return
    cure = "start with what was there then, or remove the checkpoint to begin anew"
    if "world_size" in {key.partition(" ")[0] for key in differing}:
        cure += (
            f" (TENFOLD_PROCESSES={saved.get('world_size')} for the processes); TENFOLD_RESUME_RESIZED=1 allows "
            "another number of them: the images keep their order, sums do not"
        )
    raise ResumeError(f"{where} cannot be gone on from: {'; '.join(differing)}. To mend it, {cure}")


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = str(values.get(key, "not there"))
    return text if len(text) <= 200 else f"{text[:197]}..."
