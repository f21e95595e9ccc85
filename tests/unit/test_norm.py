"""Batch norm: what it computes, and the statistics that it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.models.norm import BatchNorm, _GlobalNorm


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 5)])
def test_the_moving_variance_is_the_biased_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(shape) + 2
    norm = BatchNorm(4)
    norm.train()(x)
    dims = [0, *range(2, x.ndim)]
    assert torch.allclose(norm.running_mean, 0.1 * x.mean(dims))
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * x.var(dims, correction=0))


@pytest.mark.parametrize("training", [True, False])
def test_output_and_gradients_are_torch_s(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4).double().train(training), nn.BatchNorm2d(4).double().train(training)
    nn.init.uniform_(ours.weight)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    weight = torch.randn_like(x)
    for norm, given in ((ours, x), (theirs, twin)):
        (norm(given) * weight).sum().backward()
    assert x.grad is not None
    assert twin.grad is not None
    assert torch.allclose(x.grad, twin.grad)
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    assert torch.allclose(ours.weight.grad, theirs.weight.grad)


def test_the_gradient_over_ranks_is_that_of_its_own_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    # one rank of a world of one: the collectives are the identity, the formula is the same
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, dtype=torch.float64, requires_grad=True)
    bias = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: _GlobalNorm.apply(*given, 1e-5)[0], (x, weight, bias))
