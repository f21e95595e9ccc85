"""MoCo's memory: the loss against a plain loop, the queue's order, the momentum encoder."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.augment.stream import Batch
from tenfold.config import MemoryConfig
from tenfold.losses.momentum_contrast import momentum_contrast
from tenfold.losses.nt_xent import unit
from tenfold.models.heads import ProjectionHead, SimCLRModel
from tenfold.models.resnet import ResNet
from tenfold.training.objectives import Contrastive


def draw(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_the_cross_entropy_of_each_key_among_batch_and_memory() -> None:
    queries, keys, memory = draw(3, 4, 0), draw(3, 4, 1), unit(draw(5, 4, 2))
    found = momentum_contrast(queries, keys, memory, 0.2)
    q, k = unit(queries), unit(keys)
    losses, right = [], 0
    for i in range(3):
        logits = torch.stack([q[i] @ other for other in [*k, *memory]]) / 0.2
        losses.append(-logits[i] + torch.logsumexp(logits, 0))
        right += int(logits.argmax() == i)
    assert found.loss.item() == pytest.approx(torch.stack(losses).mean().item())
    assert found.accuracy.item() == pytest.approx(right / 3)


def test_no_gradient_flows_into_keys() -> None:
    queries, keys = draw(3, 4, 0).requires_grad_(), draw(3, 4, 1).requires_grad_()
    momentum_contrast(queries, keys, unit(draw(5, 4, 2)), 0.2).loss.backward()
    assert queries.grad is not None
    assert keys.grad is None


def objective(size: int, momentum: float = 0.5) -> Contrastive:
    torch.manual_seed(0)
    model = SimCLRModel(ResNet(10, 0.125, zero_gain=False), ProjectionHead(64, 2, 8))
    return Contrastive(model, 0.5, MemoryConfig(size=size, momentum=momentum)).train()


def batch(seed: int) -> dict[str, Any]:
    views = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed + k)) for k in range(2)]
    return {"train": Batch(views, torch.arange(4))}


def test_the_queue_takes_the_momentum_encoder_s_keys_in_turn_and_forgets_the_oldest() -> None:
    trained = objective(10)
    start = trained.queue.clone()
    assert trained.momentum is not None
    keys = []
    for step in range(3):
        twin = copy.deepcopy(trained.momentum.model)
        views = batch(10 * step)["train"].views
        with torch.no_grad():
            keys.append(unit(twin(torch.cat(views)))[:4])
        trained.loss(batch(10 * step))
    expected = start.clone()
    expected[0:4], expected[4:8], expected[8:10], expected[0:2] = keys[0], keys[1], keys[2][:2], keys[2][2:]
    assert torch.allclose(trained.queue, expected, atol=1e-5)
    assert trained.oldest == 2
    assert {"queue", "oldest"} <= trained.state_dict().keys()


def test_the_momentum_encoder_follows_by_its_decay_and_gets_no_gradient() -> None:
    trained = objective(8, momentum=0.75)
    assert trained.momentum is not None
    before = copy.deepcopy(trained.momentum.model.state_dict())
    loss, _ = trained.loss(batch(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in trained.momentum.parameters())
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(1.0)
    trained.after_step()
    name = "encoder.stem.0.0.weight"
    now = trained.momentum.model.state_dict()[name]
    assert torch.allclose(now, 0.75 * before[name] + 0.25 * trained.model.state_dict()[name])


def test_a_memory_shorter_than_the_batch_holds_its_last_keys() -> None:
    trained = objective(3)
    trained.loss(batch(0))
    assert trained.queue.shape == (3, 8)
    assert trained.oldest == 0
