from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tenfold.evaluation.view_check import recognised


def digits(per_class: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    data = load_digits()
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(np.flatnonzero(data.target == c), per_class, replace=False) for c in range(10)])
    images = torch.from_numpy(data.images[rows] / 16).float()[:, None].expand(-1, 3, -1, -1)
    return images, data.target[rows]


@pytest.mark.parametrize("seed", range(3))
def test_ten_digits_a_class_are_enough_to_see_that_a_mirrored_digit_is_another(seed: int) -> None:
    images, labels = digits(10, seed)
    found = recognised(images, images.flip(3), labels)
    assert found.suspect
    assert found.before > 70
    assert found.after < 60
    shown = found.lost[0]
    assert labels[found.nearest[shown]] != labels[shown]
    assert found.nearest[shown] != shown


@pytest.mark.parametrize("seed", range(3))
def test_a_shift_by_a_pixel_and_a_symmetric_world_raise_no_suspicion(seed: int) -> None:
    images, labels = digits(10, seed)
    assert not recognised(images, images, labels).suspect
    symmetric = (images + images.flip(3)) / 2
    assert not recognised(symmetric, symmetric.flip(3), labels).suspect


def test_two_images_a_class_say_nothing() -> None:
    images, labels = digits(2, 0)
    assert not recognised(images[:6], images[:6].flip(3), labels[:6]).suspect


def test_an_image_is_not_its_own_neighbour() -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = recognised(images, images, np.arange(6))
    assert found.before == found.after == 0
    assert (found.nearest != np.arange(6)).all()
