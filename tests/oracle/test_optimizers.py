"""Optimizers and schedules against the official code's steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tenfold.config import OptimizerConfig, TrainConfig
from tenfold.optim.build import peak_rate, rate_at
from tenfold.optim.lars import LARS

#: Parameters without weight decay and trust ratio: batch norm, the supervised head.
EXCLUDED = {1, 2, 4, 5}


def parameters(oracle: Any) -> list[nn.Parameter]:
    return [nn.Parameter(torch.from_numpy(oracle[f"w0_{i}"].copy())) for i in range(8)]


@pytest.mark.parametrize(
    ("name", "decay", "classic"),
    [("pretrain_wd1e-4", 1e-4, True), ("finetune_wd0", 0.0, True), ("popular_momentum", 1e-4, False),
     ("const_lr", 1e-4, True)],
)  # fmt: skip
def test_lars_takes_the_official_steps(name: str, decay: float, classic: bool, arrays: Any) -> None:
    oracle = arrays("lars_steps")
    weights = parameters(oracle)
    groups = [
        {"params": [w for i, w in enumerate(weights) if i not in EXCLUDED]},
        {"params": [w for i, w in enumerate(weights) if i in EXCLUDED], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = LARS(groups, 0.1, 0.9, decay, classic=classic)
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = float(oracle[f"{name}/lr"][step])
        for i, weight in enumerate(weights):
            weight.grad = torch.from_numpy(oracle[f"g{step}_{i}"].copy())
        optimizer.step()
        if step + 1 in (1, 2, 5):
            for i, weight in enumerate(weights):
                key = f"after{step + 1}_{i}"
                buffer = optimizer.state[weight]["momentum_buffer"]
                np.testing.assert_allclose(weight.detach(), oracle[f"{name}/w_{key}"], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(buffer, oracle[f"{name}/m_{key}"], rtol=1e-5, atol=1e-6)


def test_nesterov_sgd_of_torch_takes_the_official_steps(arrays: Any) -> None:
    start, oracle = arrays("lars_steps"), arrays("sgd_nesterov_lr0.1_m0.9")
    weights = parameters(start)
    optimizer = torch.optim.SGD(weights, 0.1, momentum=0.9, nesterov=True)
    for step in range(5):
        for i, weight in enumerate(weights):
            weight.grad = torch.from_numpy(start[f"g{step}_{i}"].copy())
        optimizer.step()
    for i, weight in enumerate(weights):
        np.testing.assert_allclose(weight.detach(), oracle[f"w_after5_{i}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", range(5))
def test_the_learning_rate_of_every_step_is_the_official_one(case: int, arrays: Any) -> None:
    oracle = arrays("lr_schedule")
    rate, root, batch, epochs, warmup_epochs, images, warmup, total = oracle[f"s{case}_cfg"].tolist()
    optimizer = OptimizerConfig(
        learning_rate=rate, scaling="sqrt" if root else "linear", warmup=0, warmup_epochs=warmup_epochs
    )
    config = TrainConfig(batch_size=int(batch), epochs=epochs, optimizer=optimizer)
    length = config.length(int(images))
    assert (length.steps, length.warmup) == (total, warmup)
    peak = peak_rate(optimizer, int(batch))
    found = [rate_at(int(step), length, peak) for step in oracle[f"s{case}_steps"]]
    np.testing.assert_allclose(found, oracle[f"s{case}_lr"], rtol=1e-4, atol=1e-5)
