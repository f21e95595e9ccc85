"""Reverse validation, class shares of unlabelled images, and images of no known class, where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.evaluation.foreign import Nearness
from tenfold.losses.self_training import estimated_prior
from tenfold.training.health import Health, nearest

PRIOR = torch.tensor([0.5, 0.3, 0.2])
RNG = np.random.default_rng(0)
TRUTH = RNG.choice(3, 600, p=PRIOR.numpy() / PRIOR.numpy().sum())
LABELS = RNG.choice(3, 120)
#: Of each labelled image four unlabelled ones, most of its own class.
NEIGHBOURS = np.stack([np.concatenate([RNG.choice(np.flatnonzero(c == TRUTH), 3), RNG.choice(600, 1)]) for c in LABELS])


class Guesser(nn.Module):
    """Guesses right but for a share of the images, which it calls class 0."""

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.register_buffer("wrong", torch.tensor(wrong))
        self.wrong: Tensor


def look(model: nn.Module) -> NDArray[np.float64]:
    guesses = np.full((600, 3), 0.1)
    wrong = np.random.default_rng(1).random(600) < float(model.get_buffer("wrong"))
    guesses[np.arange(600), np.where(wrong, 0, TRUTH)] = 0.8
    return guesses


def monitor(wrong: float, points: int = 5) -> Health:
    return Health(Guesser(wrong), look, NEIGHBOURS, LABELS, PRIOR, points)


def test_a_teacher_that_gets_worse_is_harm_and_the_best_one_is_kept() -> None:
    health = monitor(0.3)
    better = health.measure(Guesser(0.1), 10)
    assert not health.harmed()
    assert health.chosen() is None
    assert health.verdict() == ""
    worse = health.measure(Guesser(0.9), 20)
    assert worse["neighbour_accuracy"] < better["neighbour_accuracy"]
    assert worse["class_divergence"] > better["class_divergence"] + 0.1
    assert health.harmed()
    kept = health.chosen()
    assert kept is not None
    assert kept.get_buffer("wrong") == pytest.approx(0.1)
    assert health.verdict().startswith("self-training did harm and was ended: of 120 labelled images ")
    assert health.verdict().endswith("; the teacher of step 10 is kept")


def test_the_fine_tuned_teacher_is_kept_where_nothing_was_ever_better() -> None:
    health = monitor(0.2)
    health.measure(Guesser(0.8), 10)
    assert health.harmed()
    assert health.verdict().endswith("; the fine-tuned teacher is kept")


def test_a_fall_within_chance_is_no_harm() -> None:
    health = monitor(0.10)
    health.measure(Guesser(0.12), 10)
    assert not health.harmed()


def fluctuating(trend: float, trainings: int) -> tuple[float, float]:
    """Return the shares of trainings that are ended, and that yield an earlier teacher: ten points, 100 images.

    At each point a tenth of the images is guessed anew; the accuracy changes by ``trend`` in all.
    """
    rng = np.random.default_rng(4)
    ended, earlier = 0, 0
    for _ in range(trainings):
        chance, luck = rng.beta(1.2, 0.8, 100), rng.random(100)
        guesses = np.zeros((100, 2))

        def measured(point: int) -> None:
            right = luck < chance + trend * point / 10  # noqa: B023
            guesses[:] = np.stack([~right, right], 1)  # noqa: B023

        measured(0)
        model, each = Guesser(0.0), np.arange(100)[:, None]
        health = Health(model, lambda _: guesses.copy(), each, np.ones(100, dtype=np.int64), torch.ones(2) / 2, 10)  # noqa: B023
        for point in range(1, 11):
            luck = np.where(rng.random(100) < 0.9, luck, rng.random(100))
            measured(point)
            health.measure(model, point)
            if health.harmed():
                break
        ended, earlier = ended + health.harmed(), earlier + (health.chosen() is not None)
    return ended / trainings, earlier / trainings


def test_teachers_that_only_fluctuate_are_seldom_ended_and_ones_that_fall_mostly_are_not_kept() -> None:
    ended, earlier = fluctuating(0.0, 150)
    assert ended < 0.08
    assert earlier < 0.2
    assert fluctuating(0.1, 150)[0] < 0.03
    ended, earlier = fluctuating(-0.2, 150)
    assert ended > 0.6
    assert earlier > 0.85


def test_a_fall_of_a_few_images_is_none() -> None:
    labels = np.ones(20, dtype=np.int64)
    guesses = np.tile([0.0, 1.0], (20, 1))
    health = Health(Guesser(0.0), lambda _: guesses.copy(), np.arange(20)[:, None], labels, torch.ones(2) / 2, 4)
    for lost, chosen in ((4, False), (10, True)):
        guesses[:lost] = [1.0, 0.0]
        health.measure(Guesser(0.0), 1)
        assert (health.chosen() is not None) == chosen


def test_what_was_found_is_part_of_the_state() -> None:
    first, second = monitor(0.3), monitor(0.5)
    first.measure(Guesser(0.05), 10)
    second.load_state_dict(first.state_dict())
    assert int(second.best_step) == 10
    second.measure(Guesser(0.9), 20)
    kept = second.chosen()
    assert kept is not None
    assert kept.get_buffer("wrong") == pytest.approx(0.05)


def test_it_measures_at_equal_intervals_and_at_the_end() -> None:
    health = monitor(0.3, points=4)
    assert [step for step in range(1, 11) if health.due(step, 10)] == [3, 5, 8, 10]


def test_neighbours_are_those_of_the_smallest_angle() -> None:
    others = np.array([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]])
    assert nearest(np.array([[10.0, 1.0], [0.1, 0.2]]), others, 1).tolist() == [[0], [2]]
    assert nearest(np.array([[1.0, 0.0]]), others, 9).shape == (1, 3)


def drawn(shares: list[float], count: int, noise: float) -> tuple[Tensor, NDArray[np.int64]]:
    """Return calibrated guesses of a classifier that was trained with even classes, and the truth."""
    rng = np.random.default_rng(2)
    truth = rng.choice(len(shares), count, p=shares)
    centres = 3 * np.eye(len(shares))
    x = centres[truth] + noise * rng.normal(size=(count, len(shares)))
    scores = -((x[:, None] - centres) ** 2).sum(2) / (2 * noise**2)
    return torch.softmax(torch.from_numpy(scores), 1), truth


@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.15, 0.05], [0.25] * 4, [0.77, 0.08, 0.08, 0.07]])
def test_class_shares_are_estimated_better_than_by_counting_guesses(shares: list[float]) -> None:
    guesses, truth = drawn(shares, 4000, 2.5)
    even = torch.full((4,), 0.25, dtype=torch.float64)
    found = estimated_prior(guesses, even, weight=0.0)
    real = torch.from_numpy(np.bincount(truth, minlength=4) / len(truth))
    assert found.sum() == pytest.approx(1)
    assert (found - real).abs().max() < 0.04
    if max(shares) > 0.3:
        assert (found - real).abs().max() < 0.5 * (guesses.mean(0) - real).abs().max()
    held = estimated_prior(torch.eye(4, dtype=torch.float64)[[0, 0, 0]], even, weight=0.1)
    assert held.min() == pytest.approx(0.025)


def test_known_images_are_lost_at_the_stated_rate_and_foreign_ones_far_more() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(5, 16))

    def images(count: int) -> NDArray[np.float64]:
        return centres[rng.integers(0, 5, count)] + 0.3 * rng.normal(size=(count, 16))

    lost, caught = [], []
    for _ in range(20):
        labelled = images(200)
        nearness = Nearness(labelled)
        lost.append((nearness.p_values(images(500)) <= 0.1).mean())
        caught.append((nearness.p_values(rng.normal(size=(500, 16))) <= 0.1).mean())
    assert np.mean(lost) == pytest.approx(0.1, abs=0.03)
    assert np.mean(caught) > 0.9
    assert (nearness.p_values(labelled) > 0.9).all()  # at no distance from themselves
