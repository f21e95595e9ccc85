"""What is drawn for a view: numbers that hang on the seed and the sample's place in the order, and on nothing else.

So a stream goes on from a position alone, every number of ranks sees the same views, and so do all backends. The
uniform numbers are SplitMix64's (Steele, Lea and Flood, 2014), which can be computed at any place of its sequence.
"""

from __future__ import annotations

import math
from enum import IntEnum
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from tenfold.augment.rand_augment import Operation
from tenfold.config import (
    AffineConfig,
    BlurConfig,
    CropConfig,
    EraseConfig,
    JitterConfig,
    RandAugmentConfig,
    ViewConfig,
)

#: How often a crop by area is drawn again where it does not fit, as in torchvision.
ATTEMPTS = 10
#: Every order of the four operations of jitter: brightness, contrast, saturation, hue.
ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)
_SLOTS, _MOST_VIEWS = 64, 64
_STEP = 0x9E3779B97F4A7C15


class Drawn(IntEnum):
    """Columns of a view's parameters; from ``AREA`` on, :data:`ATTEMPTS` columns each.

    ``ASPECT``, ``ROWS``, ``TOP`` and ``LEFT`` are uniform in [0, 1): the crop's pixels need the image's size.
    ``TURN`` is a share of the circle, ``SIGMA`` 0 where nothing is blurred. ``ERASED`` is the erased rectangle's height
    as a share of the side, 0 where nothing is erased, ``ERASED_WIDE`` its width, ``NOISE`` what its noise is drawn by.
    ``WARP`` to ``WARP + 5`` are the rows (x, y, 1) of the map from a view's pixel to the one it is taken from.
    """

    FLIP = 0
    ASPECT = 1
    ROWS = 2
    TOP = 3
    LEFT = 4
    WARPED = 5
    WARP = 6
    JITTERED = 12
    ORDER = 13
    BRIGHTNESS = 14
    CONTRAST = 15
    SATURATION = 16
    TURN = 17
    GREY = 18
    SIGMA = 19
    ERASED = 20
    ERASED_TOP = 21
    ERASED_LEFT = 22
    AREA = 23
    RATIO = 23 + ATTEMPTS
    ERASED_WIDE = 23 + 2 * ATTEMPTS
    NOISE = 24 + 2 * ATTEMPTS
    #: Of a view with RandAugment alone: number and argument of each operation.
    OPERATIONS = 25 + 2 * ATTEMPTS


#: Columns of the parameters of a view without RandAugment.
PARAMETERS = int(Drawn.OPERATIONS)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(seed: int, positions: NDArray[np.int64], view: int) -> NDArray[np.float64]:
    """Return (N, 64) numbers, uniform in [0, 1).

    Args:
        seed: any integer.
        positions: (N,) places in the order, counted over all passes.
        view: which of the views of that place, below 64.
    """
    key = _mixed(np.array([(seed * _STEP + _STEP) % 2**64], dtype=np.uint64))
    first = (positions.astype(np.uint64) * np.uint64(_MOST_VIEWS) + np.uint64(view)) * np.uint64(_SLOTS)
    place = first[:, None] + np.arange(1, _SLOTS + 1, dtype=np.uint64)
    state: NDArray[np.uint64] = np.add(key, place * np.uint64(_STEP), dtype=np.uint64)
    return np.asarray((_mixed(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def parameters(view: ViewConfig | None, size: int, drawn: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return what ``view`` does to each image: (N, :data:`PARAMETERS` or more), columns as in :class:`Drawn`.

    Args:
        view: the random view; None where nothing is drawn.
        size: its side in pixels.
        drawn: (N, 64) of :func:`uniforms`.
    """
    chosen = view.rand_augment if view is not None else None
    made = np.zeros((len(drawn), PARAMETERS + (2 * chosen.operations if chosen else 0)), dtype=np.float64)
    made[:, Drawn.BRIGHTNESS : Drawn.SATURATION + 1] = 1.0
    if view is None:
        return made.astype(np.float32)
    made[:, Drawn.FLIP] = drawn[:, 0] < view.flip
    made[:, Drawn.ASPECT : Drawn.LEFT + 1] = drawn[:, 1:5]
    if view.crop is not None:
        _crop(made, view.crop, drawn)
    if view.affine is not None:
        _affine(made, view.affine, size, drawn)
    if view.jitter is not None:
        _jitter(made, view.jitter, drawn)
    made[:, Drawn.GREY] = drawn[:, 18] < view.grayscale
    if view.blur is not None:
        _blur(made, view.blur, drawn)
    if view.erase is not None:
        _erase(made, view.erase, drawn)
    if chosen is not None:
        _rand_augment(made, chosen, drawn)
    return made.astype(np.float32)


def _between(low: float, high: float, share: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * share


def _crop(made: NDArray[np.float64], crop: CropConfig, drawn: NDArray[np.float64]) -> None:
    made[:, Drawn.ASPECT] = _between(*crop.aspect, drawn[:, 1])
    tries = drawn[:, 23 : 23 + 2 * ATTEMPTS]
    made[:, Drawn.AREA : Drawn.AREA + ATTEMPTS] = _between(*crop.area, tries[:, :ATTEMPTS])
    low, high = math.log(crop.aspect[0]), math.log(crop.aspect[1])
    made[:, Drawn.RATIO : Drawn.RATIO + ATTEMPTS] = np.exp(_between(low, high, tries[:, ATTEMPTS:]))


def _affine(made: NDArray[np.float64], affine: AffineConfig, size: int, drawn: NDArray[np.float64]) -> None:
    """Rotation, then scale, then shear, then translation, about the middle; inverted."""
    angle = np.radians(_between(-affine.rotate, affine.rotate, drawn[:, 6]))
    scale = _between(*affine.scale, drawn[:, 7])
    across, down = (np.tan(np.radians(_between(-affine.shear, affine.shear, drawn[:, k]))) for k in (8, 9))
    cos, sin = np.cos(angle), np.sin(angle)
    shear = np.stack([np.stack([np.ones_like(across), across], -1), np.stack([down, np.ones_like(down)], -1)], -2)
    turned = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2) * scale[:, None, None]
    back = np.linalg.inv(shear @ turned)
    moved = affine.translate * size * (2 * drawn[:, 10:12] - 1)
    middle = (size - 1) / 2
    offset = middle - np.einsum("nij,nj->ni", back, moved + middle)
    made[:, Drawn.WARPED] = drawn[:, 5] < affine.probability
    made[:, Drawn.WARP : Drawn.WARP + 6] = np.concatenate([back, offset[:, :, None]], 2).reshape(-1, 6)


def _jitter(made: NDArray[np.float64], jitter: JitterConfig, drawn: NDArray[np.float64]) -> None:
    made[:, Drawn.JITTERED] = drawn[:, 12] < jitter.probability
    if jitter.order == "random":
        made[:, Drawn.ORDER] = np.floor(drawn[:, 13] * len(ORDERS))
    if jitter.additive:
        made[:, Drawn.BRIGHTNESS] = _between(-jitter.brightness, jitter.brightness, drawn[:, 14])
    else:
        made[:, Drawn.BRIGHTNESS] = _factor(jitter.brightness, drawn[:, 14])
    made[:, Drawn.CONTRAST] = _factor(jitter.contrast, drawn[:, 15])
    made[:, Drawn.SATURATION] = _factor(jitter.saturation, drawn[:, 16])
    made[:, Drawn.TURN] = _between(-jitter.hue, jitter.hue, drawn[:, 17])


def _factor(strength: float, share: NDArray[np.float64]) -> NDArray[np.float64]:
    return _between(max(1 - strength, 0.0), 1 + strength, share)


def _blur(made: NDArray[np.float64], blur: BlurConfig, drawn: NDArray[np.float64]) -> None:
    sigma = _between(*blur.sigma, drawn[:, 20])
    made[:, Drawn.SIGMA] = np.where(drawn[:, 19] < blur.probability, sigma, 0.0)


def _erase(made: NDArray[np.float64], erase: EraseConfig, drawn: NDArray[np.float64]) -> None:
    side = np.sqrt(_between(*erase.area, drawn[:, 22]))
    tall = np.exp(0.5 * _between(math.log(erase.aspect[0]), math.log(erase.aspect[1]), drawn[:, 45]))
    high, wide = np.minimum(side * tall, 1.0), np.minimum(side / tall, 1.0)
    made[:, Drawn.ERASED] = np.where(drawn[:, 21] < erase.probability, high, 0.0)
    made[:, Drawn.ERASED_WIDE] = wide
    made[:, Drawn.ERASED_TOP] = drawn[:, 43] * (1 - high)
    made[:, Drawn.ERASED_LEFT] = drawn[:, 44] * (1 - wide)
    if erase.fill == "noise":
        made[:, Drawn.NOISE] = np.maximum(drawn[:, 46], 1e-6)


def _rand_augment(made: NDArray[np.float64], config: RandAugmentConfig, drawn: NDArray[np.float64]) -> None:
    """Choose operations with replacement, and for each whether it happens, how strong it is, and in which direction."""
    for number in range(config.operations):
        choice, happens, strength, direction = (drawn[:, 47 + 4 * number + k] for k in range(4))
        kind = np.floor(choice * len(Operation)).astype(np.int64) + 1
        normal = ndtri(np.clip(strength, 1e-12, 1 - 1e-12))
        share = np.clip(config.magnitude + config.deviation * normal, 0.0, 10.0) / 10
        either = np.where(direction < 0.5, -1.0, 1.0)
        factor = np.maximum(0.1, 1 + 0.9 * share * either)
        arguments = {
            Operation.ROTATE: 30 * share * either, Operation.POSTERIZE: 4 - np.floor(4 * share),
            Operation.SOLARIZE: 256 - np.floor(256 * share), Operation.SOLARIZE_ADD: np.floor(110 * share),
            Operation.COLOR: factor, Operation.CONTRAST: factor, Operation.BRIGHTNESS: factor,
            Operation.SHARPNESS: factor, Operation.SHEAR_X: 0.3 * share * either,
            Operation.SHEAR_Y: 0.3 * share * either, Operation.TRANSLATE_X: 0.45 * share * either,
            Operation.TRANSLATE_Y: 0.45 * share * either,
        }  # fmt: skip
        column = int(Drawn.OPERATIONS) + 2 * number
        made[:, column] = np.where(happens < config.probability, kind, 0)
        for operation, argument in arguments.items():
            made[:, column + 1] = np.where(kind == operation, argument, made[:, column + 1])
