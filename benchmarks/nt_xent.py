"""NT-Xent, forward and backward, side by side with its peers in time and memory; a part of train.py.

Each measurement is a process of its own with the same number of threads, the sides in turn, several times over; a ratio
is the median of the paired ratios. The peers are lightly's NTXentLoss and the whole matrices by torch's cross-entropy.
Extra memory is the peak of what lies in memory in the first forward and backward pass, less what lay there before it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TIMED, THREADS, WIDTH, TEMPERATURE = 5, 2, 128, 0.1
#: From so many pairs on, which take long, fewer are timed.
MANY, TIMED_OF_MANY = 16_384, 2


def losses(kind: str) -> Callable[[Any, Any], Any]:
    """Return NT-Xent of two batches of projections as ``kind`` computes it."""
    import torch
    import torch.nn.functional as F

    from tenfold.losses.nt_xent import nt_xent

    if kind == "lightly":
        from lightly.loss import NTXentLoss

        loss: Callable[[Any, Any], Any] = NTXentLoss(temperature=TEMPERATURE)
        return loss

    def whole(first: Any, second: Any) -> Any:
        a, b, target = F.normalize(first), F.normalize(second), torch.arange(len(first))
        itself = torch.eye(len(a), dtype=torch.bool)
        ab, aa = a @ b.T / TEMPERATURE, (a @ a.T / TEMPERATURE).masked_fill(itself, -1e9)
        bb = (b @ b.T / TEMPERATURE).masked_fill(itself, -1e9)
        return F.cross_entropy(torch.cat([ab, aa], 1), target) + F.cross_entropy(torch.cat([ab.T, bb], 1), target)

    return whole if kind == "matrix" else lambda a, b: nt_xent(a, b, TEMPERATURE).loss


def measure_one(kind: str, pairs: int) -> dict[str, float]:
    """Return the median seconds of forward and backward, and the extra memory in MiB."""
    import torch

    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(pairs, WIDTH, generator=generator, requires_grad=True) for _ in range(2)]
    loss = losses(kind)
    small = [view[:64].detach().requires_grad_() for view in views]
    loss(*small).backward()  # libraries load what they need
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, took = resident("VmRSS"), []
    for number in range(1 + (TIMED if pairs < MANY else TIMED_OF_MANY)):
        start = time.perf_counter()
        loss(*views).backward()
        took.append(time.perf_counter() - start)
        if number == 0:
            extra = resident("VmHWM") - before
    return {"seconds": float(np.median(took[1:])), "extra_mib": extra}


def resident(kind: str) -> float:
    """Return MiB of this process in memory: ``VmRSS`` now, ``VmHWM`` at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def measure(kind: str, pairs: int) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, kind, str(pairs)]
    found = subprocess.run(command, env={**os.environ}, check=True, capture_output=True, text=True)
    told: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return told


def compare(repeats: int, sides: dict[str, int]) -> list[dict[str, dict[str, float]]]:
    """Measure ``sides``, kind → pairs, forwards and backwards in turn; returns kind → measurement of each run."""
    order = list(sides)
    return [{kind: measure(kind, sides[kind]) for kind in order[:: 1 if turn % 2 else -1]} for turn in range(repeats)]


if __name__ == "__main__":
    print(json.dumps(measure_one(sys.argv[1], int(sys.argv[2]))))
