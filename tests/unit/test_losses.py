from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.losses import nt_xent as tiled
from tenfold.losses.distillation import distillation, sharpen, soften
from tenfold.losses.nt_xent import nt_xent
from tenfold.losses.self_training import align, pseudo_label_loss, update_running


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 of SimCLR, view by view; the mean over all 2N views."""
    views = [v / v.norm() for v in [*first, *second]]
    count = len(first)
    total = 0.0
    for i, view in enumerate(views):
        positive = (i + count) % (2 * count)
        others = [math.exp(float(view @ views[k]) / temperature) for k in range(2 * count) if k != i]
        total -= math.log(math.exp(float(view @ views[positive]) / temperature) / sum(others))
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 7])
def test_nt_xent_equals_the_double_loop_of_equation_1(count: int, temperature: float) -> None:
    first, second = draw(count, 5), draw(count, 5, seed=1)
    expected = naive(first, second, temperature)
    assert nt_xent(first, second, temperature, "per_view").loss.item() == pytest.approx(expected, rel=1e-12)
    assert nt_xent(first, second, temperature, "per_pair").loss.item() == pytest.approx(2 * expected, rel=1e-12)
    assert nt_xent(first, second, temperature).loss.item() == pytest.approx(2 * expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["per_pair", "per_view"])
def test_nt_xent_has_the_right_gradient(reduction: str) -> None:
    inputs = [draw(4, 3, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5, reduction).loss, inputs)  # type: ignore[arg-type]


def test_nt_xent_ignores_the_projections_length() -> None:
    first, second = draw(6, 4), draw(6, 4, seed=1)
    assert nt_xent(first * 7, second / 3, 0.2).loss.item() == pytest.approx(nt_xent(first, second, 0.2).loss.item())


def test_nt_xent_treats_both_views_alike() -> None:
    first, second = draw(6, 4), draw(6, 4, seed=1)
    assert nt_xent(second, first, 0.2).loss.item() == pytest.approx(nt_xent(first, second, 0.2).loss.item())


def test_nt_xent_of_a_vanished_projection_is_finite_in_value_and_gradient() -> None:
    first = torch.zeros(4, 3, requires_grad=True)
    loss = nt_xent(first, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), 0.1).loss
    loss.backward()
    assert loss.isfinite()
    assert first.grad is not None
    assert first.grad.isfinite().all()


def plain(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent by the whole matrices, as the official code has it."""
    a, b = F.normalize(first), F.normalize(second)
    target, itself = torch.arange(len(a)), torch.eye(len(a), dtype=torch.bool)
    ab, aa = a @ b.T / temperature, (a @ a.T / temperature).masked_fill(itself, -torch.inf)
    bb = (b @ b.T / temperature).masked_fill(itself, -torch.inf)
    one, other = torch.cat([ab, aa], 1), torch.cat([ab.T, bb], 1)
    return F.cross_entropy(one, target) + F.cross_entropy(other, target), (ab.argmax(1) == target).float().mean()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tile", [3, 8, 512])
@pytest.mark.parametrize("temperature", [0.002, 0.1, 1.0])
@pytest.mark.parametrize("count", [1, 2, 8, 21])
def test_the_tiles_give_the_whole_matrix_loss_and_gradient(
    monkeypatch: pytest.MonkeyPatch, count: int, temperature: float, tile: int, threads: int
) -> None:
    """In float64; at the lowest temperature rows are shifted one by one."""
    monkeypatch.setattr(tiled, "TILE", tile)
    torch.set_num_threads(threads)
    pairs = [[draw(count, 5, seed=seed).requires_grad_() for seed in (0, 1)] for _ in range(2)]
    loss, accuracy = nt_xent(*pairs[0], temperature)
    expected, share = plain(*pairs[1], temperature)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert accuracy == share
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    assert torch.get_num_threads() == threads


def test_threads_that_share_the_tiles_add_up_to_the_same_bits_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "TILE", 16)
    torch.set_num_threads(3)
    found = []
    for _ in range(5):
        first, second = (draw(100, 16, seed=seed).float().requires_grad_() for seed in (0, 1))
        loss, _ = nt_xent(first, second, 0.1)
        loss.backward()
        found.append(torch.cat([loss.detach()[None], first.grad.flatten(), second.grad.flatten()]))
    assert all(torch.equal(other, found[0]) for other in found)


def test_autocast_does_not_lower_the_losss_precision() -> None:
    first, second = draw(40, 16).float(), draw(40, 16, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = nt_xent(first, second, 0.1).loss
    assert lowered == nt_xent(first, second, 0.1).loss


def test_contrastive_accuracy_counts_the_positives_that_are_most_similar() -> None:
    basis = torch.eye(4)
    assert nt_xent(basis, basis, 0.1).accuracy == 1
    swapped = basis[[1, 0, 2, 3]]
    assert nt_xent(basis, swapped, 0.1).accuracy == 0.5


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_distillation_is_soft_cross_entropy_times_the_temperature_squared(temperature: float) -> None:
    student, teacher = draw(5, 3), draw(5, 3, seed=1)
    targets = soften(teacher, temperature)
    expected = F.cross_entropy(student / temperature, targets) * temperature**2
    assert distillation(student, targets, temperature).item() == pytest.approx(expected.item(), rel=1e-12)


def test_distillation_has_no_gradient_where_the_student_equals_the_teacher() -> None:
    teacher = draw(5, 3)
    student = teacher.clone().requires_grad_()
    distillation(student, soften(teacher, 2.0), 2.0).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_sharpening_probabilities_equals_softening_their_logits() -> None:
    logits = draw(5, 4)
    for temperature in (0.3, 1.0, 3.0):
        assert torch.allclose(sharpen(F.softmax(logits, 1), temperature), soften(logits, temperature))


def test_sharpening_below_1_raises_the_confidence_and_above_1_lowers_it() -> None:
    soft = torch.tensor([[0.6, 0.3, 0.1]])
    assert torch.allclose(sharpen(soft, 1.0), soft)
    assert torch.allclose(sharpen(soft, 0.5), torch.tensor([[0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]]))
    assert sharpen(soft, 2.0)[0, 0] < 0.6


def test_sharpening_a_certain_label_stays_finite() -> None:
    sharp = sharpen(torch.tensor([[1.0, 0.0, 0.0]]), 0.1)
    assert sharp.isfinite().all()
    assert sharp[0, 0] == 1


def test_unconfident_pseudo_labels_give_a_loss_and_gradient_of_zero() -> None:
    student = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = pseudo_label_loss(student, torch.zeros(6, dtype=torch.long), torch.full((6,), 1 / 3), 0.7)
    found.loss.backward()
    assert found.loss == 0
    assert found.share == 0
    assert student.grad is not None
    assert student.grad.eq(0).all()


def test_the_pseudo_label_loss_is_a_mean_over_all_images_confident_or_not() -> None:
    student = draw(4, 3)
    teacher = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.3, 0.3], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], dtype=torch.float64)
    found = pseudo_label_loss(student, teacher.argmax(1), teacher.amax(1), 0.7)
    logs = F.log_softmax(student, 1)
    assert found.loss.item() == pytest.approx(-(logs[0, 0] + logs[2, 2]).item() / 4)
    assert found.share == 0.5


def test_alignment_gives_back_distributions_and_changes_nothing_when_aligned() -> None:
    guess = F.softmax(draw(6, 3), 1)
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert torch.allclose(align(guess, prior, prior), guess)
    assert torch.allclose(align(guess, guess.mean(0), prior).sum(1), torch.ones(6, dtype=torch.float64))


def test_alignment_moves_predictions_towards_the_class_that_is_predicted_too_rarely() -> None:
    guess = torch.tensor([[0.6, 0.4], [0.8, 0.2]], dtype=torch.float64)
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    aligned = align(guess, guess.mean(0), even)
    assert aligned[0].tolist() == pytest.approx(
        [0.6 / 0.7 / (0.6 / 0.7 + 0.4 / 0.3), 0.4 / 0.3 / (0.6 / 0.7 + 0.4 / 0.3)]
    )
    assert (aligned[:, 1] > guess[:, 1]).all()


def test_alignment_to_a_class_never_predicted_is_finite() -> None:
    guess = torch.tensor([[1.0, 0.0]])
    assert align(guess, torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])).isfinite().all()


def test_the_running_prediction_keeps_its_decay_of_the_past() -> None:
    running = update_running(torch.tensor([0.5, 0.5]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), decay=0.9)
    assert torch.allclose(running, torch.tensor([0.525, 0.475]))
