"""Losses and their gradients against the official code's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tenfold.losses.distillation import distillation, soften
from tenfold.losses.nt_xent import nt_xent


@pytest.mark.parametrize("case", range(20))
def test_nt_xent_its_gradient_and_accuracy_are_the_official_ones(case: int, arrays: Any) -> None:
    oracle, key = arrays("contrastive_loss"), f"c{case:02d}"
    count, _, temperature, normalize, accuracy, _, _ = oracle[f"{key}_meta"]
    hidden = torch.from_numpy(oracle[f"{key}_hidden"]).requires_grad_()
    first, second = hidden.split(int(count))
    found = nt_xent(first, second, float(temperature), normalize=bool(normalize))
    found.loss.backward()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(found.loss.item(), oracle[f"{key}_loss"], rtol=1e-4, atol=1e-5)
    assert hidden.grad is not None
    expected = oracle[f"{key}_grad"]
    np.testing.assert_allclose(hidden.grad.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert found.accuracy.item() == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("case", ["same_views", "zero_row"])
def test_nt_xent_of_equal_views_and_of_a_zero_projection_is_the_official_one(case: str, arrays: Any) -> None:
    oracle = arrays("contrastive_loss")
    first, second = torch.from_numpy(oracle[f"{case}_hidden"]).chunk(2)
    np.testing.assert_allclose(nt_xent(first, second, 0.1).loss.item(), oracle[f"{case}_loss_t0.1"], rtol=1e-4)


@pytest.mark.parametrize("case", range(6))
def test_distillation_and_supervised_losses_are_the_official_ones(case: int, arrays: Any) -> None:
    oracle, key = arrays("distill_loss"), f"k{case}"
    temperature = float(oracle[f"{key}_T"])
    student = torch.from_numpy(oracle[f"{key}_student"]).requires_grad_()
    teacher = torch.from_numpy(oracle[f"{key}_teacher"])
    loss = distillation(student, soften(teacher, temperature), temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(loss.item(), oracle[f"{key}_kd_loss"], rtol=1e-4, atol=1e-6)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), oracle[f"{key}_kd_grad"], rtol=1e-4, atol=1e-6)
    labels = torch.from_numpy(oracle[f"{key}_labels"]).long()
    supervised = F.cross_entropy(student.detach(), labels).item()
    np.testing.assert_allclose(supervised, oracle[f"{key}_sup_ce"], rtol=1e-4)
