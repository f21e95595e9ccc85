"""Three implementations of one definition: an operation at a time in torch, one compiled pass, and DALI's graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.augment import compiled, fused
from tenfold.augment.dali import DaliViews
from tenfold.augment.draws import Drawn, parameters, uniforms
from tenfold.augment.fused import BY_AREA, BY_HEIGHT, box
from tenfold.augment.spec import ViewSpec
from tenfold.augment.torchvision import TorchvisionViews
from tenfold.config import (
    AffineConfig,
    BlurConfig,
    CropConfig,
    EraseConfig,
    EvalViewConfig,
    JitterConfig,
    ViewConfig,
)
from tenfold.data.reader import RankOrder, SplitReader

SIDE = 40
PLAIN = ViewConfig(crop=None, flip=0)
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}


def jitter(**strengths: Any) -> dict[str, Any]:
    return {"jitter": JitterConfig.model_validate({**dict.fromkeys(STRONG, 0.0), "probability": 1.0, **strengths})}


#: What each view has beside PLAIN. DALI's graph rounds to grey levels after each operation.
VIEWS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "cubic crop": {"crop": CropConfig()},
    "linear crop by area": {"crop": CropConfig(sampling="area", interpolation="linear")},
    "tight crop": {"crop": CropConfig(sampling="area", area=(1.0, 1.0), aspect=(0.9, 0.95))},
    "flip": {"flip": 0.5},
    "affine": {"affine": AffineConfig(rotate=15, translate=0.1, scale=(0.8, 1.2), shear=5)},
    "brightness": jitter(brightness=0.8),
    "additive": jitter(brightness=0.3, additive=True),
    "contrast": jitter(contrast=0.8),
    "saturation": jitter(saturation=0.8),
    "hue": jitter(hue=0.5),
    "matrix": jitter(**STRONG, colours="matrix", order="fixed"),
    "jitter": jitter(**STRONG),
    "grey": {"grayscale": 0.5},
    "blur": {"blur": BlurConfig(probability=0.7)},
    "erase": {"erase": EraseConfig()},
}


def three(coloured: SplitReader, view: ViewConfig | None, evaluation: EvalViewConfig | None = None) -> list[Tensor]:
    """Return the second batch's views by torch, compiled, and by DALI's graph."""
    spec = ViewSpec(backend="dali", image_size=SIDE, view=view, evaluation=evaluation)

    def order() -> RankOrder:  # each walks one of its own: they read ahead in threads
        return RankOrder(coloured.order(12, 5, shuffle=True), 12, 0, 1)

    makers: list[Any] = [TorchvisionViews(coloured, [spec], 12, order(), 12, 5)]
    makers += [
        DaliViews(coloured, [spec], 12, order(), 12, 5, torch.device("cpu"), 2, graph=graph) for graph in (False, True)
    ]
    return [maker.next()[0] for maker in makers]


@pytest.mark.parametrize("name", VIEWS)
def test_three_implementations_make_one_view(coloured: SplitReader, name: str) -> None:
    by_torch, compiled, graph = three(coloured, PLAIN.model_copy(update=VIEWS[name]))
    assert (compiled - by_torch).abs().max() < 2e-5
    difference = 255 * (graph - by_torch).abs()
    assert difference.mean() < 0.6
    assert difference.max() < 8


@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
@pytest.mark.parametrize("proportion", [0.875, 0.5, 1.0])
def test_three_implementations_make_one_evaluation_view(
    coloured: SplitReader, interpolation: Any, proportion: float
) -> None:
    config = EvalViewConfig(crop_proportion=proportion, interpolation=interpolation)
    by_torch, compiled, graph = three(coloured, None, config)
    assert (compiled - by_torch).abs().max() < 2e-6
    assert 255 * (graph - by_torch).abs().max() < 3


def test_where_nothing_can_be_kept_on_disk_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with a read-only file system and no home folder."""
    real = compiled.numba.njit

    def njit(**options: Any) -> Any:
        def refused(function: Any) -> Any:
            raise RuntimeError("cannot cache function: no locator available")

        return refused if options.get("cache") else real(**options)

    monkeypatch.setattr(compiled.numba, "njit", njit)
    assert compiled.compiled(lambda x: x + 1)(2) == 3


def test_what_is_kept_of_a_compiled_function_hangs_on_all_files_that_it_is_made_of() -> None:
    cache: Any = fused.box
    assert cache._cache._cache_file._source_stamp == compiled.STAMP


def test_numbers_drawn_hang_on_seed_place_and_view_alone() -> None:
    places = np.array([0, 1, 7, 2**40], dtype=np.int64)
    drawn = uniforms(3, places, 0)
    np.testing.assert_array_equal(uniforms(3, places[::-1].copy(), 0)[::-1], drawn)
    others = [uniforms(4, places, 0), uniforms(3, places, 1), uniforms(3, places + 1, 0)]
    assert all(not (other == drawn).any() for other in others[:2])
    np.testing.assert_array_equal(others[2][0], drawn[1])
    assert len(np.unique(np.concatenate([drawn, *others[:2]]))) == 3 * drawn.size


def test_numbers_drawn_are_uniform_and_uncorrelated() -> None:
    drawn = uniforms(0, np.arange(20_000), 1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(drawn.mean(0) - 0.5).max() < 4 * (1 / 12 / 20_000) ** 0.5
    off = np.corrcoef(drawn.T) - np.eye(drawn.shape[1])
    assert np.abs(off).max() < 5 / 20_000**0.5
    again = uniforms(0, np.arange(20_000), 2)
    assert np.abs(np.corrcoef(drawn[:, 5], again[:, 5])[0, 1]) < 5 / 20_000**0.5
    assert np.abs(np.corrcoef(drawn[1:, 5], drawn[:-1, 5])[0, 1]) < 5 / 20_000**0.5


def test_what_is_drawn_has_the_probabilities_and_ranges_of_the_configuration() -> None:
    view = ViewConfig(flip=0.3, jitter=JitterConfig(), grayscale=0.2, blur=BlurConfig(), erase=EraseConfig())
    p = parameters(view, 224, uniforms(0, np.arange(20_000), 0))
    shares = {Drawn.FLIP: 0.3, Drawn.JITTERED: 0.8, Drawn.GREY: 0.2, Drawn.SIGMA: 0.5, Drawn.ERASED: 0.25}
    for column, share in shares.items():
        assert (p[:, column] > 0).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)
    ranges = {Drawn.BRIGHTNESS: (0.2, 1.8), Drawn.SATURATION: (0.2, 1.8), Drawn.TURN: (-0.2, 0.2), Drawn.ORDER: (0, 23)}
    for column, (low, high) in ranges.items():
        assert p[:, column].min() == pytest.approx(low, abs=0.01)
        assert p[:, column].max() == pytest.approx(high, abs=0.01)
    assert p[p[:, Drawn.SIGMA] > 0, Drawn.SIGMA].mean() == pytest.approx(1.05, abs=0.02)
    np.testing.assert_allclose(np.bincount(p[:, Drawn.ORDER].astype(int)) / 20_000, 1 / 24, atol=0.006)


@pytest.mark.parametrize("sampling", [BY_HEIGHT, BY_AREA])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (3, 2), (4000, 10)])
def test_a_crop_of_an_odd_image_lies_within_it(sampling: int, height: int, width: int) -> None:
    limits = np.array([0.1, 1.0, 3 / 4, 4 / 3])
    for p in parameters(ViewConfig(), 32, uniforms(0, np.arange(200), 0)):
        top, left, high, wide = box(height, width, sampling, limits, p)
        assert 0 <= top <= height - high
        assert 0 <= left <= width - wide
        assert high >= 1
        assert wide >= 1
