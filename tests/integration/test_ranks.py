"""Two ranks on gloo compute what one rank computes on the whole batch: batch norm, negatives, LARS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PROGRAM = Path(__file__).with_name("ranks_program.py")


def train(folder: Path, world: int, dtype: str, steps: int) -> Any:
    output = folder / f"{world}.pt"
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), "--rank", str(rank), "--world", str(world), "--steps", str(steps),
             "--rendezvous", str(folder / "rendezvous"), "--output", str(output), "--dtype", dtype],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return torch.load(output, weights_only=True)


def test_in_float64_losses_and_weights_of_20_steps_are_equal(tmp_path: Path) -> None:
    one, two = (train(tmp_path, world, "float64", 20) for world in (1, 2))
    assert len(one["losses"]) == 20
    assert one["losses"][-1] < one["losses"][0]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=0, atol=1e-9)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=1e-9, msg=name)


def test_in_float32_the_first_step_s_loss_and_gradients_are_equal_to_rounding(tmp_path: Path) -> None:
    one, two = (train(tmp_path, world, "float32", 1) for world in (1, 2))
    torch.testing.assert_close(two["losses"], one["losses"], rtol=0, atol=1e-5)
    for name, gradient in one["gradients"].items():
        # a gradient's rounding grows with the largest entry of its tensor
        tolerance = 1e-3 * float(gradient.abs().max())
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0, atol=tolerance, msg=name)
