"""What a checkpoint holds of a training, on several ranks and in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.config import OptimizerConfig
from tenfold.models.heads import Classifier
from tenfold.models.resnet import ResNet
from tenfold.optim.build import build_optimizer
from tenfold.training import state
from tenfold.training.objectives import Supervised
from tenfold.training.state import Training


def training() -> Training:
    """Return a training behind one step."""
    torch.manual_seed(0)
    objective = Supervised(Classifier(ResNet(10, 0.125), None, 0, 3), torch.tensor([0]), 0.0, 0.0)
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(OptimizerConfig(name="sgd", momentum=0.9), objective.trained(), 8)
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return Training(objective, optimizer, {})


def kernels(training: Training) -> list[nn.Parameter]:
    return [module.weight for module in training.objective.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(("ranks", "rank", "found"), [(2, 0, [1.0, 2.0]), (2, 1, [11.0, 12.0]), (4, 3, [6.0, 7.0])])
def test_each_rank_gets_its_own_figures_back_and_another_number_of_ranks_their_mean(
    ranks: int, rank: int, found: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = training()
    taken.window = [{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(2.0)}]
    with monkeypatch.context() as first:
        first.setattr(state, "all_gather", lambda t: torch.cat([t, t + 10 if t.is_floating_point() else t]))
        saved = taken.capture(1, {})
    monkeypatch.setattr(state, "world_size", lambda: ranks)
    monkeypatch.setattr(state, "rank", lambda: rank)
    again = training()
    again.restore(saved)
    assert [float(figures["loss"]) for figures in again.window] == found


def test_the_optimizer_s_memory_comes_back_in_the_layout_of_its_parameters() -> None:
    before, after = training(), training()
    after.restore(before.capture(1, {}))
    assert len(kernels(before)) > 3
    for mine, its in zip(kernels(after), kernels(before), strict=True):
        momentum = after.optimizer.state[mine]["momentum_buffer"]
        assert momentum.stride() == mine.stride()
        assert torch.equal(momentum, before.optimizer.state[its]["momentum_buffer"])
