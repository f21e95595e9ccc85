"""The benchmarks' own arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from cifar10 import labels_saved
from grid import Grid, interval

CURVE = {50: 0.40, 100: 0.50, 250: 0.65, 500: 0.75}


def test_labels_saved_are_read_off_the_curve_in_the_logarithm_of_the_labels() -> None:
    found = labels_saved(CURVE, 0.45)
    assert found["labels_a_class"] == pytest.approx((50 * 100) ** 0.5)
    assert found["factor"] == pytest.approx(2**0.5)
    assert not found["beyond"]
    assert labels_saved(CURVE, 0.65)["labels_a_class"] == pytest.approx(250)


def test_an_accuracy_beyond_the_curve_gives_a_lower_bound_and_one_below_it_saves_nothing() -> None:
    assert labels_saved(CURVE, 0.80) == {"labels_a_class": 500, "factor": 10, "beyond": True}
    assert labels_saved(CURVE, 0.30) == {"labels_a_class": 50, "factor": 1, "beyond": False}


def test_an_interval_over_three_subsets_is_student_s() -> None:
    found = interval([0.4, 0.5, 0.6])
    assert found["mean"] == pytest.approx(0.5)
    assert found["high"] - found["mean"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)


def test_a_cell_is_made_again_where_its_settings_are_others(tmp_path: Path) -> None:
    settings = {"steps": 3}
    grid = Grid(tmp_path, lambda name: {"cell": name, **settings})
    assert not grid.held("one")
    made = grid.made("one")
    grid.keep("one", {"top1": 0.5})
    assert grid.held("one")
    assert not grid.held("two")
    assert grid.results()["one"]["top1"] == 0.5
    settings["steps"] = 4
    assert not grid.held("one")
    assert grid.made("one") != made
