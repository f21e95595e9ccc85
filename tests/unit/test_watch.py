"""Watching pretraining: alignment, uniformity, and the rule for which network is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tenfold.config import Description, HeadConfig, ResNetConfig
from tenfold.evaluation.probes import leave_one_out_accuracy, nearest_neighbours
from tenfold.models.heads import SimCLRModel
from tenfold.models.saved import build
from tenfold.training.watch import Watch, alignment, spread, uniformity


def small_model() -> SimCLRModel:
    torch.manual_seed(0)
    network = ResNetConfig(depth=10, width=0.125, zero_gain=False)
    model = build(Description(kind="simclr", network=network, head=HeadConfig(layers=1, features=8), image_size=16))
    assert isinstance(model, SimCLRModel)
    return model


def test_alignment_is_the_mean_squared_distance_and_uniformity_tells_collapse_from_spread() -> None:
    a, b = torch.eye(4), torch.eye(4).flip(0)
    assert alignment(a, a) == 0
    assert alignment(a, b) == pytest.approx(2)
    assert uniformity(torch.ones(5, 3) / 3**0.5).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(4)).item() == pytest.approx(-4)  # all pairs have the squared distance 2


def test_one_row_alone_has_no_uniformity_that_is_no_number() -> None:
    assert float(uniformity(torch.ones(1, 4))) == 0.0


def test_the_spread_is_none_of_equal_rows_and_near_one_of_rows_that_fill_the_sphere() -> None:
    assert spread(torch.ones(5, 4) / 2) == 0
    # of each one-hot column, one entry of four is 1: its deviation is sqrt(1/4 - 1/16)
    assert spread(torch.eye(4)).item() == pytest.approx(2 * (3 / 16) ** 0.5)
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert spread(rows / rows.norm(dim=1, keepdim=True)).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(0.5**0.5)


def test_nearest_neighbours_weigh_their_votes_by_the_cosine() -> None:
    features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    found = nearest_neighbours(features, np.array([0, 0, 1]), np.array([[1.0, 0.05], [0.1, 1.0]]), 2, 3)
    assert found.argmax(1).tolist() == [0, 1]
    assert found.sum(1) == pytest.approx(1)
    close, far = 1 / math.sqrt(1.0025), 0.05 / math.sqrt(1.0025)
    assert found[0, 1] == pytest.approx(
        math.exp(far / 0.07)
        / (math.exp(far / 0.07) + math.exp(close / 0.07) + math.exp((0.9 * close + 0.1 * far) / 0.82**0.5 / 0.07))
    )


def test_no_image_votes_for_itself() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    assert leave_one_out_accuracy(features, np.array([0, 1, 1, 0]), 1) == 0
    assert leave_one_out_accuracy(features, np.array([0, 0, 1, 1]), 1) == 1


def test_a_watch_measures_as_often_as_asked_and_at_the_end() -> None:
    watch = Watch(small_model(), torch.rand(4, 3, 16, 16), np.array([0, 0, 1, 1]), 3, keep_best=False)
    assert [step for step in range(1, 11) if watch.due(step, 10)] == [4, 7, 10]
    assert [step for step in range(1, 3) if watch.due(step, 2)] == [1, 2]


@pytest.mark.parametrize(("accuracies", "kept"), [((0.9, 0.2), 0), ((0.21, 0.2), None), ((0.2, 0.9), None)])
def test_an_earlier_network_is_kept_where_it_is_better_by_more_than_a_standard_error(
    accuracies: tuple[float, float], kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    watch = Watch(model, torch.rand(40, 3, 16, 16), np.arange(40) % 2, 2, keep_best=True)
    states = []
    for accuracy in accuracies:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        monkeypatch.setattr("tenfold.training.watch.leave_one_out_accuracy", lambda *_, a=accuracy: a)
        assert watch.measure(model.train()) == accuracy
        assert model.training
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    chosen = watch.chosen()
    assert (chosen is None) == (kept is None)
    if chosen is not None and kept is not None:
        assert all(torch.equal(value, states[kept][name]) for name, value in chosen.state_dict().items())
