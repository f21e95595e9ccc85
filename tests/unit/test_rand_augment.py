"""RandAugment's operations against timm's on Pillow, and what is drawn for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment

from tenfold.augment.draws import Drawn, parameters, uniforms
from tenfold.augment.fused import FusedView, places_of
from tenfold.augment.rand_augment import Operation, erase, operate, rand_augment
from tenfold.augment.torchvision import random_view
from tenfold.config import EraseConfig, RandAugmentConfig, ViewConfig, load_config
from tenfold.errors import ConfigError

FILL = (124, 116, 104)
NAMES = {
    Operation.AUTO_CONTRAST: "AutoContrast", Operation.EQUALIZE: "Equalize", Operation.INVERT: "Invert",
    Operation.ROTATE: "Rotate", Operation.POSTERIZE: "PosterizeIncreasing", Operation.SOLARIZE: "SolarizeIncreasing",
    Operation.SOLARIZE_ADD: "SolarizeAdd", Operation.COLOR: "ColorIncreasing",
    Operation.CONTRAST: "ContrastIncreasing", Operation.BRIGHTNESS: "BrightnessIncreasing",
    Operation.SHARPNESS: "SharpnessIncreasing", Operation.SHEAR_X: "ShearX", Operation.SHEAR_Y: "ShearY",
    Operation.TRANSLATE_X: "TranslateXRel", Operation.TRANSLATE_Y: "TranslateYRel",
}  # fmt: skip
BARE = ViewConfig(crop=None, flip=0.0)


def picture(seed: int, side: int = 24) -> NDArray[np.uint8]:
    """Return a smooth coloured picture (S, S, 3) that does not use all levels."""
    small = np.random.default_rng(seed).integers(20, 220, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def test_all_of_timm_s_increasing_operations_are_there_and_no_other() -> None:
    assert sorted(NAMES.values()) == sorted(auto_augment._RAND_INCREASING_TRANSFORMS)
    assert set(NAMES) == set(Operation)


@pytest.mark.parametrize("level", [2.5, 9.0, 10.0])
@pytest.mark.parametrize("operation", Operation)
def test_an_operation_with_a_drawn_argument_is_timm_s(operation: Operation, level: float) -> None:
    config = RandAugmentConfig(operations=1, magnitude=level, deviation=0.0, probability=1.0)
    drawn = uniforms(7, np.arange(400), 0)
    p = parameters(BARE.model_copy(update={"rand_augment": config}), 24, drawn)
    rows = np.flatnonzero(p[:, Drawn.OPERATIONS] == operation)
    signs = set()
    for row in rows[:8]:
        argument = float(p[row, Drawn.OPERATIONS + 1])
        signs.add(np.sign(argument))
        convert = auto_augment.LEVEL_TO_ARG[NAMES[operation]]
        if convert is not None:
            allowed = {abs(round(value - 1, 5)) if operation in (8, 9, 10, 11) else abs(round(value, 5))
                       for _ in range(20) for value in convert(level, {})}  # fmt: skip
            held = abs(round(argument - 1, 5)) if operation in (8, 9, 10, 11) else abs(round(argument, 5))
            assert any(held == pytest.approx(value, abs=1e-4) for value in allowed)
        image = picture(int(row))
        function = auto_augment.NAME_TO_OP[NAMES[operation]]
        if operation == Operation.POSTERIZE and argument == 0:  # which newer releases of Pillow refuse
            continue
        whole = operation in (Operation.POSTERIZE, Operation.SOLARIZE, Operation.SOLARIZE_ADD)
        arguments = [] if convert is None else [int(argument) if whole else argument]
        wanted = function(Image.fromarray(image), *arguments, fillcolor=FILL, resample=Image.Resampling.BILINEAR)
        mine = np.ascontiguousarray(image.transpose(2, 0, 1))
        operate(mine, int(operation), argument)
        difference = np.abs(np.asarray(wanted, dtype=np.int64).transpose(2, 0, 1) - mine)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.1  # of roundings
    if operation in (Operation.ROTATE, Operation.SHEAR_X, Operation.TRANSLATE_Y):
        assert signs == {-1.0, 1.0}


def test_operations_are_drawn_evenly_with_replacement_and_happen_by_chance() -> None:
    view = BARE.model_copy(update={"rand_augment": RandAugmentConfig()})
    p = parameters(view, 24, uniforms(0, np.arange(20_000), 0))
    first, second = p[:, Drawn.OPERATIONS], p[:, Drawn.OPERATIONS + 2]
    assert (first > 0).mean() == pytest.approx(0.5, abs=0.02)
    counts = np.bincount(first[first > 0].astype(int), minlength=16)[1:]
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert (first == second)[(first > 0) & (second > 0)].mean() == pytest.approx(1 / 15, abs=0.02)
    bright = p[first == Operation.BRIGHTNESS, Drawn.OPERATIONS + 1]
    assert np.abs(bright - 1).mean() == pytest.approx(0.9 * 0.88, abs=0.03)  # 9 ± 0.5, cut at 10


def test_both_backends_make_the_same_view_and_nothing_drawn_changes_nothing() -> None:
    erased = EraseConfig(probability=0.5, area=(0.1, 0.3), aspect=(0.3, 3.3), fill="noise")
    view = ViewConfig(crop=None, flip=0.5, rand_augment=RandAugmentConfig(operations=3), erase=erased)
    images = [picture(seed) for seed in range(12)]
    drawn = uniforms(3, np.arange(12), 0)
    with ThreadPoolExecutor(1) as pool:
        fused = FusedView(view, None, 24)(*places_of(images), drawn, pool, 1)
    p = parameters(view, 24, drawn)
    apart = torch.stack([random_view(image, view, 24, row) for image, row in zip(images, p, strict=True)])
    # a rounding to levels may fall to either side
    assert (fused - apart).abs().median() < 1e-5
    assert ((fused - apart).abs() > 1.5 / 255).float().mean() < 0.02
    still = torch.rand(3, 8, 8).numpy()
    before = still.copy()
    rand_augment(still, np.zeros(4, np.float32))
    assert (still == before).all()


def test_noise_is_normal_its_rectangle_has_the_drawn_shape_and_is_repeated_by_its_number() -> None:
    config = EraseConfig(probability=1.0, area=(0.2, 0.2), aspect=(0.25, 4.0), fill="noise")
    p = parameters(BARE.model_copy(update={"erase": config}), 64, uniforms(0, np.arange(500), 0))
    ratio = p[:, Drawn.ERASED] / p[:, Drawn.ERASED_WIDE]
    assert (p[:, Drawn.ERASED] * p[:, Drawn.ERASED_WIDE]) == pytest.approx(0.2, abs=1e-5)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.1)
    assert ratio.min() == pytest.approx(0.25, abs=0.02)
    one, again, other = (np.zeros((3, 64, 64), np.float32) for _ in range(3))
    erase(one, 0.5, 0.25, 0.25, 0.5, 0.3)
    erase(again, 0.5, 0.25, 0.25, 0.5, 0.3)
    erase(other, 0.5, 0.25, 0.25, 0.5, 0.30001)
    assert (one == again).all()
    assert not (one == other).all()
    assert (one[:, 16:48, 32:48] != 0).all()
    assert (one != 0).sum() == 3 * 32 * 16
    normal = (one[:, 16:48, 32:48] - np.array([0.485, 0.456, 0.406])[:, None, None]) / 0.225
    assert normal.mean() == pytest.approx(0, abs=0.1)
    assert normal.std() == pytest.approx(1, abs=0.1)


def test_rand_augment_is_refused_where_there_are_no_three_colours() -> None:
    with pytest.raises(ConfigError, match="rand_augment needs red, green and blue"):
        load_config("multichannel", assignments=["data.source=x", "augment.strong.rand_augment={}"])
