"""Labels saved, read off the curve of labels alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.cli.label_curve import summarize
from tenfold.errors import ConfigError
from tenfold.evaluation.figures import save_label_curve_png
from tenfold.evaluation.label_curve import Equal, equal_labels

CURVE = {20.0: 0.5, 40.0: 0.6, 80.0: 0.58, 160.0: 0.8}


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (0.5, Equal(20)),
        (0.4, Equal(20, below=True)),
        (0.55, Equal(20 * 2**0.5)),
        (0.6, Equal(40)),
        (0.7, Equal(80 * 2**0.5)),  # from the best so far, 60%, which a fall at 80 labels does not take away
        (0.8, Equal(160)),
        (0.9, Equal(160, beyond=True)),
    ],
)
def test_the_curve_is_read_in_the_logarithm_of_the_labels(accuracy: float, expected: Equal) -> None:
    found = equal_labels(CURVE, accuracy)
    assert found.labels == pytest.approx(expected.labels)
    assert (found.beyond, found.below) == (expected.beyond, expected.below)


def evaluation(labels: int, alone: float, student: float) -> dict[str, Any]:
    rungs = [{"id": "baseline", "top1": {"value": alone}}, {"id": "finetuned", "top1": {"value": 0.1}},
             {"id": "student", "top1": {"value": student}}]  # fmt: skip
    return {"rungs": rungs, "counts": {"labelled": labels}, "test_images": 500}


def test_a_curve_tells_how_many_times_the_labels_are_saved(tmp_path: Path) -> None:
    cells = {4: [evaluation(40, 0.6, 0.85), evaluation(40, 0.7, 0.95)], 2: [evaluation(20, 0.4, 0.6)],
             8: [evaluation(80, 0.8, 0.9)]}  # fmt: skip
    points = summarize(cells)["points"]
    assert [point["per_class"] for point in points] == [2, 4, 8]
    first, second, third = (point["equal_labels"] for point in points)
    assert first["factor"] == pytest.approx(2 ** (0.2 / 0.25))
    assert second == {"labels": 80, "beyond": True, "below": False, "factor": 2}
    assert third["factor"] == 1
    assert points[1]["alone"] == [0.6, 0.7]
    save_label_curve_png(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    json.dumps(points)


@pytest.mark.parametrize("budgets", ["5", "0,5", "a,b", ""])
def test_budgets_that_make_no_curve_are_refused(budgets: str) -> None:
    told = CliRunner().invoke(app, ["label-curve", "--budgets", budgets])
    assert isinstance(told.exception, ConfigError)
    assert "two numbers of labels a class at least" in str(told.exception)


def test_labels_that_a_file_names_are_not_drawn_from(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a.png\n")
    told = CliRunner().invoke(
        app, ["label-curve", "--budgets", "1,2", "--set", f"data.labels={{file: {tmp_path / 'labels.txt'}}}"]
    )
    assert isinstance(told.exception, ConfigError)
    assert "label-curve draws the labelled images itself" in str(told.exception)
