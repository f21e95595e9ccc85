"""RandAugment's operations on one view, and random erasing with noise; compiled.

The operations are Pillow's on 8-bit levels, with the arguments of timm's "increasing" set (``rand-m9-mstd0.5-inc1`` and
the like): what is drawn once is a number of :class:`Operation` and its argument, see :mod:`tenfold.augment.draws`.

Sources: Cubuk et al. 2020 (RandAugment), timm's ``auto_augment.py``; Zhong et al. 2020 (random erasing).
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tenfold.augment.compiled import compiled

Floats = NDArray[np.float32]
Levels = NDArray[np.uint8]


class Operation(IntEnum):
    """What may be done to a view, and by which argument; 0 is nothing."""

    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    ROTATE = 4  # degrees
    POSTERIZE = 5  # bits that are kept
    SOLARIZE = 6  # level from which on is inverted
    SOLARIZE_ADD = 7  # levels that are added to those below 128
    COLOR = 8  # factor, as of the next three
    CONTRAST = 9
    BRIGHTNESS = 10
    SHARPNESS = 11
    SHEAR_X = 12  # columns a row
    SHEAR_Y = 13
    TRANSLATE_X = 14  # share of the side
    TRANSLATE_Y = 15


#: Levels of what comes in from outside: ImageNet's mean.
_FILL = np.array([124.0, 116.0, 104.0], dtype=np.float32)
#: Mean and deviation of erased pixels, which after normalisation are standard normal.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)
(
    _AUTO_CONTRAST, _EQUALIZE, _INVERT, _ROTATE, _POSTERIZE, _SOLARIZE, _SOLARIZE_ADD, _COLOR, _CONTRAST, _BRIGHTNESS,
    _SHARPNESS, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y,
) = (int(each) for each in Operation)  # fmt: skip


@compiled
def _table(plane: Levels, table: Levels) -> None:
    flat = plane.reshape(-1)
    for i in range(flat.size):
        flat[i] = table[flat[i]]


@compiled
def _histogram(plane: Levels) -> NDArray[np.int64]:
    counts = np.zeros(256, np.int64)
    flat = plane.reshape(-1)
    for i in range(flat.size):
        counts[flat[i]] += 1
    return counts


@compiled
def _auto_contrast(plane: Levels) -> None:
    low, high = int(plane.min()), int(plane.max())
    if high <= low:
        return
    scale = 255.0 / (high - low)
    table = np.empty(256, np.uint8)
    for level in range(256):
        table[level] = int(min(max(level * scale - low * scale, 0.0), 255.0))
    _table(plane, table)


@compiled
def _equalize(plane: Levels) -> None:
    counts = _histogram(plane)
    present = np.flatnonzero(counts)
    step = (plane.size - counts[present[-1]]) // 255
    if len(present) <= 1 or step == 0:
        return
    table = np.empty(256, np.uint8)
    total = step // 2
    for level in range(256):
        table[level] = min(total // step, 255)
        total += counts[level]
    _table(plane, table)


@compiled
def _point(plane: Levels, operation: int, argument: float) -> None:
    table = np.empty(256, np.uint8)
    for level in range(256):
        value = level
        if operation == _INVERT:
            value = 255 - level
        elif operation == _POSTERIZE:
            kept = 8 - int(argument)
            value = (level >> kept) << kept
        elif operation == _SOLARIZE:
            value = level if level < argument else 255 - level
        elif operation == _SOLARIZE_ADD and level < 128:
            value = min(255, level + int(argument))
        table[level] = value
    _table(plane, table)


@compiled
def _blend(plane: Levels, other: Floats, factor: float) -> None:
    """Move away from ``other`` by a factor; Pillow cuts what is behind the point."""
    size = plane.shape[0]
    for y in range(size):
        for x in range(size):
            base = other[y, x]
            value = base + np.float32(factor) * (np.float32(plane[y, x]) - base)
            plane[y, x] = int(min(max(value, np.float32(0)), np.float32(255)))


@compiled
def _grey(levels: Levels) -> Floats:
    size = levels.shape[1]
    grey = np.empty((size, size), np.float32)
    for y in range(size):
        for x in range(size):
            total = 19595 * int(levels[0, y, x]) + 38470 * int(levels[1, y, x]) + 7471 * int(levels[2, y, x])
            grey[y, x] = (total + 32768) >> 16
    return grey


@compiled
def _smooth(plane: Levels) -> Floats:
    size = plane.shape[0]
    smooth = np.empty((size, size), np.float32)
    for y in range(size):
        for x in range(size):
            if y in (0, size - 1) or x in (0, size - 1):
                smooth[y, x] = plane[y, x]
            else:
                total = 4 * int(plane[y, x])
                for k in range(9):
                    total += int(plane[y - 1 + k // 3, x - 1 + k % 3])
                smooth[y, x] = math.floor(total / 13.0 + 0.5)
    return smooth


@compiled
def _affine(levels: Levels, m: NDArray[np.float64]) -> None:
    """Take each pixel from where ``m`` (a, b, c, d, e, f) says, between its neighbours, as Pillow does."""
    size = levels.shape[1]
    source = levels.copy()
    for y in range(size):
        for x in range(size):
            across = m[0] * (x + 0.5) + m[1] * (y + 0.5) + m[2]
            down = m[3] * (x + 0.5) + m[4] * (y + 0.5) + m[5]
            if not (0 <= across < size and 0 <= down < size):
                for c in range(3):
                    levels[c, y, x] = int(_FILL[c])
                continue
            across, down = across - 0.5, down - 0.5
            left, top = math.floor(across), math.floor(down)
            wx, wy = across - left, down - top
            x0, x1 = max(left, 0), min(left + 1, size - 1)
            y0, y1 = max(top, 0), min(top + 1, size - 1)
            for c in range(3):
                upper = source[c, y0, x0] * (1 - wx) + source[c, y0, x1] * wx
                lower = source[c, y1, x0] * (1 - wx) + source[c, y1, x1] * wx
                levels[c, y, x] = int(upper * (1 - wy) + lower * wy)  # cut, as Pillow does


@compiled
def _map(operation: int, argument: float, size: int) -> NDArray[np.float64]:
    m = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    if operation == _ROTATE:
        angle, middle = -math.radians(argument), size / 2.0
        cos, sin = math.cos(angle), math.sin(angle)
        m[:] = np.array(
            [cos, sin, middle - (cos + sin) * middle, -sin, cos, middle - (cos - sin) * middle]
        )  # fmt: skip
    elif operation == _SHEAR_X:
        m[1] = argument
    elif operation == _SHEAR_Y:
        m[3] = argument
    elif operation == _TRANSLATE_X:
        m[2] = argument * size
    else:
        m[5] = argument * size
    return m


@compiled
def operate(levels: Levels, operation: int, argument: float) -> None:
    """Do one operation to the levels (3, S, S) of a view, in place."""
    if operation in (_ROTATE, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y):
        _affine(levels, _map(operation, argument, levels.shape[1]))
        return
    grey = _grey(levels) if operation in (_COLOR, _CONTRAST) else np.zeros(levels.shape[1:], np.float32)
    if operation == _CONTRAST:
        grey[:] = math.floor(grey.mean() + 0.5)
    for c in range(3):
        plane = levels[c]
        if operation == _AUTO_CONTRAST:
            _auto_contrast(plane)
        elif operation == _EQUALIZE:
            _equalize(plane)
        elif operation in (_COLOR, _CONTRAST, _BRIGHTNESS):
            _blend(plane, grey, argument)
        elif operation == _SHARPNESS:
            _blend(plane, _smooth(plane), argument)
        else:
            _point(plane, operation, argument)


@compiled
def rand_augment(out: Floats, drawn: Floats) -> None:
    """Do the drawn operations to a view (3, S, S) in [0, 1], in place; ``drawn``: number and argument of each."""
    if not (drawn[::2] > 0).any():
        return
    levels = np.empty(out.shape, np.uint8)
    for c in range(3):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                levels[c, y, x] = int(out[c, y, x] * np.float32(255) + np.float32(0.5))
    for k in range(len(drawn) // 2):
        if drawn[2 * k] > 0:
            operate(levels, int(drawn[2 * k]), drawn[2 * k + 1])
    for c in range(3):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                out[c, y, x] = np.float32(levels[c, y, x]) / np.float32(255)


@compiled
def _uniform(state: np.uint64) -> float:
    """Return the number in (0, 1) that SplitMix64 makes of ``state``."""
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)) + 0.5) * 2.0**-53


@compiled
def erase(out: Floats, high: float, wide: float, top: float, left: float, noise: float) -> None:
    """Make a rectangle of a view (C, S, S) black, or where ``noise`` is above 0 normal noise drawn by that number.

    Args:
        out: the view.
        high: height, as all places a share of the side.
        wide: width.
        top: place of the first row.
        left: place of the first column.
        noise: in (0, 1); 0: black.
    """
    size = out.shape[1]
    rows, columns = math.floor(high * size + 0.5), math.floor(wide * size + 0.5)
    first, start = math.floor(top * size + 0.5), math.floor(left * size + 0.5)
    if noise <= 0:
        out[:, first : first + rows, start : start + columns] = 0
        return
    step = np.uint64(0x9E3779B97F4A7C15)
    state = np.uint64(noise * 2.0**40) * step
    for c in range(out.shape[0]):
        coloured = out.shape[0] == 3
        mean = _MEAN[c] if coloured else np.float32(0.5)
        deviation = _DEVIATION[c] if coloured else np.float32(0.25)
        for y in range(first, min(first + rows, size)):
            for x in range(start, min(start + columns, size)):
                one, other = _uniform(state + step), _uniform(state + step + step)
                state += step + step
                drawn = math.sqrt(-2.0 * math.log(one)) * math.cos(2 * math.pi * other)  # Box and Muller
                out[c, y, x] = mean + deviation * np.float32(drawn)
