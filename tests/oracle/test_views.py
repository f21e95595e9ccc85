"""The views' operations against TensorFlow's, by both backends; docs/views.md has the table of what remains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp
from views import TORCH, boxes, by_dali, by_fused, by_torch, cases, dali_boxes, dali_evaluation

from tenfold.augment.evaluation import evaluation_view
from tenfold.config import CropConfig, EvalViewConfig

EXACT = sorted(set(TORCH) - {"saturation_matrix", "hue_matrix"})


@pytest.mark.parametrize("operation", EXACT)
@pytest.mark.parametrize("apply", [by_torch, by_fused])
def test_colours_and_blur_are_tensorflow_s(operation: str, apply: Any, arrays: Any) -> None:
    oracle = arrays("augment_ops")
    found = cases(oracle, operation)
    assert found
    for value, expected in found:
        np.testing.assert_allclose(apply(operation, oracle["x64"], value), expected, atol=2e-5)


@pytest.mark.parametrize("operation", EXACT)
def test_dali_s_colours_and_blur_are_tensorflow_s_to_a_grey_level(operation: str, arrays: Any) -> None:
    oracle = arrays("augment_ops")
    for value, expected in cases(oracle, operation):
        difference = np.abs(by_dali(operation, oracle["x64"], value) - expected)
        assert difference.max() < 1.2 / 255
        assert difference.mean() < 0.4 / 255


@pytest.mark.parametrize("operation", ["bright_mul", "contrast", "saturation"])
def test_a_factor_of_1_changes_no_grey_level(operation: str) -> None:
    image = (np.arange(64 * 64 * 3).reshape(64, 64, 3) % 256 / 255).astype(np.float32)
    np.testing.assert_allclose(by_dali(operation, image, 1.0), image, atol=1e-6)


@pytest.mark.parametrize("operation", ["saturation_matrix", "hue_matrix"])
def test_all_have_the_same_matrix_on_chroma(operation: str, arrays: Any) -> None:
    image = arrays("augment_ops")["x64"]
    for value in (0.1, 0.2) if operation == "hue_matrix" else (0.5, 1.5):
        expected = by_torch(operation, image, value)
        np.testing.assert_allclose(by_fused(operation, image, value), expected, atol=2e-6)
        assert np.abs(by_dali(operation, image, value) - expected).max() < 2 / 255


@pytest.mark.parametrize("number", range(5))
def test_the_evaluation_view_is_tensorflow_s(number: int, arrays: Any) -> None:
    oracle = arrays("augment_ops")
    image, expected = oracle[f"img{number}"], oracle[f"eval{number}_96"]
    view = evaluation_view(image, EvalViewConfig(), 96).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(view, expected, atol=3e-4)
    difference = np.abs(dali_evaluation(image, 96) - expected)
    assert difference.max() < 3 / 255
    assert difference.mean() < 0.5 / 255


def test_crops_are_spread_as_tensorflow_s(arrays: Any) -> None:
    expected = arrays("augment_ops")["crop_boxes_300x400_y_x_h_w"].astype(np.int64)
    found = boxes(CropConfig(), 4000, 300, 400)
    assert (found[:, 0] >= 0).all()
    assert (found[:, 0] + found[:, 2] <= 300).all()
    assert (found[:, 1] + found[:, 3] <= 400).all()
    for what in (
        lambda b: b[:, 2] * b[:, 3] / 120_000,
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        # the largest distance of two distributions of 4,000 draws is above 0.043 once in a thousand times
        assert ks_2samp(what(found), what(expected)).statistic < 0.043


@pytest.mark.parametrize("sampling", ["height", "area"])
@pytest.mark.parametrize("size", [(300, 400), (31, 17), (500, 20), (1, 1)])
def test_dali_s_graph_cuts_the_same_boxes_but_for_float32_s_rounding(sampling: Any, size: tuple[int, int]) -> None:
    crop = CropConfig(sampling=sampling)
    found, expected = dali_boxes(crop, 500, *size), boxes(crop, 500, *size)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).any(1).mean() < 0.02


def test_crops_by_area_are_spread_as_torchvision_s() -> None:
    import torch
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(8, (0.08, 1.0), antialias=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [crop.make_params([torch.empty(3, 300, 400)]) for _ in range(4000)]
    expected = np.array([[box["top"], box["left"], box["height"], box["width"]] for box in theirs])
    found = boxes(CropConfig(sampling="area", area=(0.08, 1.0)), 4000, 300, 400)
    for column in range(4):
        assert ks_2samp(found[:, column], expected[:, column]).statistic < 0.043
