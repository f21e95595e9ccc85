"""A whole view in one pass over the caches: crop, resize, colours and blur of one image after the other, compiled.

What is computed is what :mod:`tenfold.augment.color` and :mod:`tenfold.augment.resample` say, in 32-bit floats from
the decoded pixels to the view. The speed comes from where the numbers lie: a view's three planes stay in the
processor's second-level cache from the crop to the end, rows are combined as whole vectors, a blur looks no further
than its standard deviation reaches, and images need no wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from tenfold.augment.compiled import compiled
from tenfold.augment.draws import ATTEMPTS, ORDERS, Drawn, parameters
from tenfold.augment.rand_augment import erase, rand_augment
from tenfold.config import BlurConfig, EvalViewConfig, ViewConfig, channels_of
from tenfold.data.channels import Raw

FLIP, ASPECT, ROWS, TOP, LEFT = (int(d) for d in (Drawn.FLIP, Drawn.ASPECT, Drawn.ROWS, Drawn.TOP, Drawn.LEFT))
WARPED, WARP, JITTERED, ORDER = (int(d) for d in (Drawn.WARPED, Drawn.WARP, Drawn.JITTERED, Drawn.ORDER))
BRIGHTNESS, CONTRAST = int(Drawn.BRIGHTNESS), int(Drawn.CONTRAST)
SATURATION, TURN, GREY, SIGMA = (int(d) for d in (Drawn.SATURATION, Drawn.TURN, Drawn.GREY, Drawn.SIGMA))
ERASED, ERASED_TOP, ERASED_LEFT = (int(d) for d in (Drawn.ERASED, Drawn.ERASED_TOP, Drawn.ERASED_LEFT))
ERASED_WIDE, NOISE, OPERATIONS = int(Drawn.ERASED_WIDE), int(Drawn.NOISE), int(Drawn.OPERATIONS)
AREA, RATIO = int(Drawn.AREA), int(Drawn.RATIO)

TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
FROM_YIQ = np.linalg.inv(TO_YIQ)

#: What of an image a view is taken from: all of it, a crop drawn by its height or by its area, or the centre.
WHOLE, BY_HEIGHT, BY_AREA, CENTRE = range(4)


@compiled
def box(
    height: int, width: int, sampling: int, limits: NDArray[np.float64], p: NDArray[np.float32]
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the part that a view shows.

    Args:
        height: of the image.
        width: of the image.
        sampling: ``WHOLE``, ``BY_HEIGHT``, ``BY_AREA`` or ``CENTRE``.
        limits: least and largest share of the area, and aspect ratio. For the centre the second is its share of the
            shorter side.
        p: the view's parameters.
    """
    if sampling == WHOLE:
        return 0, 0, height, width
    if sampling == CENTRE:
        exact = limits[1] * min(height, width)
        rounded = math.floor(exact + 0.5)
        if rounded - exact == 0.5 and rounded % 2 == 1:  # half to even
            rounded -= 1.0
        side = max(1, int(rounded))
        return (height - side + 1) // 2, (width - side + 1) // 2, side, side
    high, wide, area = 0, 0, float(height) * float(width)
    if sampling == BY_HEIGHT:
        aspect = float(p[ASPECT])
        upper = min(min(float(height), width / aspect), math.sqrt(limits[1] * area / aspect))
        lower = min(upper, math.sqrt(limits[0] * area / aspect))
        rows = lower + (upper - lower) * p[ROWS]
        high = max(1, min(height, math.floor(rows + 0.5)))
        wide = max(1, min(width, math.floor(rows * aspect + 0.5)))
    else:
        for number in range(ATTEMPTS):
            part, ratio = p[AREA + number] * area, float(p[RATIO + number])
            wide = math.floor(math.sqrt(part * ratio) + 0.5)
            high = math.floor(math.sqrt(part / ratio) + 0.5)
            if 0 < wide <= width and 0 < high <= height:
                break
            wide = 0
        if wide == 0:  # none of them fits: as much of the middle as the aspect ratio allows
            wide = min(width, max(1, math.floor(height * limits[3] + 0.5)))
            high = min(height, max(1, math.floor(width / limits[2] + 0.5)))
            return (height - high) // 2, (width - wide) // 2, high, wide
    top = min(height - high, int(p[TOP] * (height - high + 1)))
    left = min(width - wide, int(p[LEFT] * (width - wide + 1)))
    return top, left, high, wide


@compiled
def _taps(source: int, cubic: bool, backwards: bool, places: NDArray[np.uint32], weights: NDArray[np.float32]) -> None:
    """Fill in from which of ``source`` pixels, and with what weights, each target pixel comes: two (4, target)."""
    target = places.shape[1]
    for number in range(target):
        centre = (number + 0.5) * source / target - 0.5
        first = math.floor(centre) - 1
        total = 0.0
        column = target - 1 - number if backwards else number
        for k in range(4):
            d = abs(centre - (first + k))
            value = 0.0
            if cubic:
                if d < 1:
                    value = 1 - 2.5 * d * d + 1.5 * d * d * d
                elif d < 2:
                    value = 2 - 4 * d + 2.5 * d * d - 0.5 * d * d * d
            else:
                value = max(0.0, 1 - d)
            if first + k < 0 or first + k >= source:
                value = 0.0
            total += value
            places[k, column] = min(max(first + k, 0), source - 1)
            weights[k, column] = value
        for k in range(4):
            weights[k, column] = weights[k, column] / total


@compiled
def _resize(
    pixels: Raw, window: tuple[int, int, int, int], cubic: bool, backwards: bool, top_value: float,
    out: NDArray[np.float32],
) -> None:  # fmt: skip
    """Resample the window of ``pixels`` (H, C W) into ``out`` (C, S, S), 1 for ``top_value``, clipped to [0, 1]."""
    top, left, high, wide = window
    channels, size = out.shape[0], out.shape[1]
    count = channels * wide
    ys, yw = np.empty((4, size), np.uint32), np.empty((4, size), np.float32)
    xs, xw = np.empty((4, size), np.uint32), np.empty((4, size), np.float32)
    _taps(high, cubic, False, ys, yw)
    _taps(wide, cubic, backwards, xs, xw)
    line = np.empty(count, np.float32)
    x0, x1, x2, x3 = xs[0], xs[1], xs[2], xs[3]
    u0, u1, u2, u3 = xw[0], xw[1], xw[2], xw[3]
    scale, stride = np.float32(1 / top_value), np.uint32(channels)
    for y in range(size):
        a = pixels[top + ys[1, y], channels * left : channels * left + count]
        b = pixels[top + ys[2, y], channels * left : channels * left + count]
        v, w = yw[1, y] * scale, yw[2, y] * scale
        if cubic:
            before = pixels[top + ys[0, y], channels * left : channels * left + count]
            behind = pixels[top + ys[3, y], channels * left : channels * left + count]
            first, last = yw[0, y] * scale, yw[3, y] * scale
            for x in range(count):
                line[x] = (
                    v * np.float32(a[x]) + w * np.float32(b[x]) + first * np.float32(before[x])
                    + last * np.float32(behind[x])
                )  # fmt: skip
        else:
            for x in range(count):
                line[x] = v * np.float32(a[x]) + w * np.float32(b[x])
        for c in range(channels):
            row = out[c, y]
            channel = line[c:]
            for x in range(size):
                value = u1[x] * channel[stride * x1[x]] + u2[x] * channel[stride * x2[x]]
                if cubic:
                    value += u0[x] * channel[stride * x0[x]] + u3[x] * channel[stride * x3[x]]
                row[x] = min(max(value, np.float32(0)), np.float32(1))


@compiled
def _warp(out: NDArray[np.float32], m: NDArray[np.float32]) -> None:
    """Take each pixel from where the map ``m`` (6,) says, between its neighbours; black outside."""
    size = out.shape[1]
    source = out.copy()
    for y in range(size):
        for x in range(size):
            sx, sy = m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]
            left, top = math.floor(sx), math.floor(sy)
            fx, fy = np.float32(sx - left), np.float32(sy - top)
            for c in range(out.shape[0]):
                total = np.float32(0)
                for k in range(4):
                    row, column = top + k // 2, left + k % 2
                    if 0 <= row < size and 0 <= column < size:
                        share = (fy if k // 2 else 1 - fy) * (fx if k % 2 else 1 - fx)
                        total += share * source[c, row, column]
                out[c, y, x] = total


@compiled
def _clip(value: Any) -> Any:
    return min(max(value, np.float32(0)), np.float32(1))


@compiled
def scale(planes: NDArray[np.float32], factor: np.float32, amount: np.float32) -> None:
    """Multiply ``planes`` (C, N) by ``factor`` and add ``amount``; clipped, as all the colours are."""
    for c in range(planes.shape[0]):
        plane = planes[c]
        for i in range(plane.size):
            plane[i] = _clip(plane[i] * factor + amount)


@compiled
def contrast(planes: NDArray[np.float32], factor: np.float32, size: int) -> None:
    """Scale the distance from each channel's own mean; ``planes`` are (C, size²)."""
    columns = np.empty(size, np.float32)
    for c in range(planes.shape[0]):
        plane = planes[c]
        columns[:] = 0
        for y in range(size):
            row = plane[y * size : (y + 1) * size]
            for x in range(size):
                columns[x] += row[x]
        total = 0.0
        for x in range(size):
            total += columns[x]
        mean = np.float32(total / plane.size)
        for i in range(plane.size):
            plane[i] = _clip((plane[i] - mean) * factor + mean)


@compiled
def saturate(planes: NDArray[np.float32], factor: np.float32) -> None:
    """Scale the saturation of hue-saturation-value, up to 1."""
    red, green, blue = planes[0], planes[1], planes[2]
    one, tiny = np.float32(1), np.float32(1e-12)
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        value = max(max(r, g), b)
        held = (value - min(min(r, g), b)) / max(value, tiny)
        ratio = min(held * factor, one) / max(held, tiny)
        red[i] = _clip(value - (value - r) * ratio)
        green[i] = _clip(value - (value - g) * ratio)
        blue[i] = _clip(value - (value - b) * ratio)


@compiled
def turn(planes: NDArray[np.float32], share: np.float32) -> None:
    """Turn the hue by a ``share`` of the circle, leaving saturation and value."""
    red, green, blue = planes[0], planes[1], planes[2]
    one, two, three, four = np.float32(1), np.float32(2), np.float32(3), np.float32(4)
    sixth, six, tiny = np.float32(1 / 6), np.float32(6), np.float32(1e-12)
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        value = max(max(r, g), b)
        chroma = value - min(min(r, g), b)
        span = one / max(chroma, tiny)
        by_red, by_green, by_blue = (g - b) * span, two + (b - r) * span, four + (r - g) * span
        angle = by_red if r == value else (by_green if g == value else by_blue)
        angle = angle * sixth + share
        angle = (angle - np.floor(angle)) * six
        red[i] = value - (one - _clip(abs(angle - three) - one)) * chroma
        green[i] = value - (one - _clip(two - abs(angle - two))) * chroma
        blue[i] = value - (one - _clip(two - abs(angle - four))) * chroma


@compiled
def mix(planes: NDArray[np.float32], m: NDArray[np.float32]) -> None:
    """Multiply each pixel by the matrix ``m`` (3, 3)."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        red[i] = _clip(m[0, 0] * r + m[0, 1] * g + m[0, 2] * b)
        green[i] = _clip(m[1, 0] * r + m[1, 1] * g + m[1, 2] * b)
        blue[i] = _clip(m[2, 0] * r + m[2, 1] * g + m[2, 2] * b)


@compiled
def chroma_matrix(factor: float, share: float) -> NDArray[np.float32]:
    """Return the matrix that scales chroma about luma and turns it by a ``share`` of the circle (YIQ)."""
    angle = 2 * math.pi * share
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    mixed = np.array([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])
    matrix: NDArray[np.float32] = (FROM_YIQ @ mixed @ TO_YIQ).astype(np.float32)
    return matrix


@compiled
def _jitter(planes: NDArray[np.float32], size: int, additive: bool, matrix: bool, p: NDArray[np.float32]) -> None:
    order = ORDERS[int(p[ORDER])]
    for step in order:
        if step == 0:
            if additive:
                scale(planes, np.float32(1), p[BRIGHTNESS])
            else:
                scale(planes, p[BRIGHTNESS], np.float32(0))
        elif step == 1:
            if p[CONTRAST] != 1:
                contrast(planes, p[CONTRAST], size)
        elif step == 2:
            if p[SATURATION] != 1:
                if matrix:
                    mix(planes, chroma_matrix(p[SATURATION], 0.0))
                else:
                    saturate(planes, p[SATURATION])
        elif p[TURN] != 0:
            if matrix:
                mix(planes, chroma_matrix(1.0, p[TURN]))
            else:
                turn(planes, p[TURN])


@compiled
def grey(planes: NDArray[np.float32]) -> None:
    """Put the luma in all three channels."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        luma = np.float32(0.2989) * red[i] + np.float32(0.587) * green[i] + np.float32(0.114) * blue[i]
        red[i] = luma
        green[i] = luma
        blue[i] = luma


@compiled
def blur(out: NDArray[np.float32], sigma: float, radius: int) -> None:
    """Blur with 2·radius + 1 taps, black outside; what lies beyond five standard deviations weighs under 1e-6."""
    size = out.shape[1]
    total = 1.0
    for k in range(1, radius + 1):
        total += 2 * math.exp(-k * k / (2.0 * sigma * sigma))
    reach = min(radius, int(5 * sigma) + 1)
    fours = (reach + 3) // 4
    pad = 4 * fours
    taps = np.zeros(pad + 1, np.float32)
    for k in range(reach + 1):
        taps[k] = math.exp(-k * k / (2.0 * sigma * sigma)) / total
    source = np.zeros((size + 2 * pad, size), np.float32)
    line = np.zeros(size + 2 * pad, np.float32)
    middle = line[pad : pad + size]
    for c in range(out.shape[0]):
        plane = out[c]
        source[pad : pad + size] = plane
        for y in range(size):
            here, row = source[y + pad], plane[y]
            for x in range(size):
                middle[x] = taps[0] * here[x]
            for four in range(fours):  # four taps a round, so that the sum is loaded and stored a quarter as often
                k = 4 * four + 1
                t0, t1, t2, t3 = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
                up, down = y + pad - k, y + pad + k
                a0, a1, a2, a3 = source[up], source[up - 1], source[up - 2], source[up - 3]
                b0, b1, b2, b3 = source[down], source[down + 1], source[down + 2], source[down + 3]
                for x in range(size):
                    middle[x] += (
                        t0 * (a0[x] + b0[x]) + t1 * (a1[x] + b1[x]) + t2 * (a2[x] + b2[x]) + t3 * (a3[x] + b3[x])
                    )
            for x in range(size):
                row[x] = taps[0] * middle[x]
            for four in range(fours):
                k = 4 * four + 1
                t0, t1, t2, t3 = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
                left, right = line[pad - k - 3 :], line[pad + k :]
                for x in range(size):
                    row[x] += (
                        t0 * (left[x + 3] + right[x]) + t1 * (left[x + 2] + right[x + 1])
                        + t2 * (left[x + 1] + right[x + 2]) + t3 * (left[x] + right[x + 3])
                    )  # fmt: skip
            for x in range(size):
                row[x] = _clip(row[x])


@compiled
def _view(
    pixels: Raw, kinds: NDArray[np.int64], limits: NDArray[np.float64], p: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:  # fmt: skip
    """Make one view of ``pixels`` (H, C W) in ``out`` (C, S, S); ``kinds`` as :class:`FusedView` has them."""
    size = out.shape[1]
    window = box(pixels.shape[0], pixels.shape[1] // out.shape[0], kinds[0], limits, p)
    _resize(pixels, window, kinds[1] == 1, p[FLIP] > 0, kinds[5], out)
    if p[WARPED] > 0:
        _warp(out, p[WARP : WARP + 6])
    if len(p) > OPERATIONS:
        rand_augment(out, p[OPERATIONS:])
    planes = out.reshape(out.shape[0], size * size)
    if p[JITTERED] > 0:
        _jitter(planes, size, kinds[2] == 1, kinds[3] == 1, p)
    if p[GREY] > 0:
        grey(planes)
    if p[SIGMA] > 0:
        blur(out, p[SIGMA], kinds[4])
    if p[ERASED] > 0:
        erase(out, p[ERASED], p[ERASED_WIDE], p[ERASED_TOP], p[ERASED_LEFT], p[NOISE])


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typingctx: Any, address: Any) -> Any:
    """Return an integer as the pointer that it is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@compiled
def _batch(
    addresses: NDArray[np.uint64], shapes: NDArray[np.int64], like: Raw, kinds: NDArray[np.int64],
    limits: NDArray[np.float64], p: NDArray[np.float32], out: NDArray[np.float32], first: int, step: int,
) -> None:  # fmt: skip
    """Make the views of every ``step``-th image from ``first`` on; their values are of the type of ``like``."""
    for number in range(first, len(addresses), step):
        shape = (shapes[number, 0], out.shape[1] * shapes[number, 1])
        pixels = numba.carray(_pointer(addresses[number]), shape, like.dtype)
        _view(pixels, kinds, limits, p[number], out[number])


def places_of(decoded: Sequence[Raw]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return where each image's values begin, and (N, 2) heights and widths, as :class:`FusedView` takes them."""
    addresses = np.array([each.ctypes.data for each in decoded], dtype=np.uint64)
    return addresses, np.array([each.shape[:2] for each in decoded], dtype=np.int64).reshape(-1, 2)


def window_of(view: ViewConfig | None, evaluation: EvalViewConfig | None) -> tuple[int, NDArray[np.float64]]:
    """Return ``sampling`` and ``limits`` of :func:`box`."""
    if evaluation is not None:
        return CENTRE, np.array([0.0, evaluation.crop_proportion, 1.0, 1.0])
    crop = None if view is None else view.crop
    if crop is None:
        return WHOLE, np.ones(4)
    return BY_AREA if crop.sampling == "area" else BY_HEIGHT, np.array([*crop.area, *crop.aspect])


class FusedView:
    """Makes one view of a batch of decoded images."""

    def __init__(self, view: ViewConfig | None, evaluation: EvalViewConfig | None, size: int) -> None:
        """Read the configuration: a random ``view``, or the ``evaluation``'s."""
        self._view, self._size = view, size
        chosen = evaluation or view
        kind = chosen.pixels if chosen else None
        self._channels = channels_of(kind)
        wide = kind is not None and kind.bits == 16
        self._like: Raw = np.empty(0, np.uint16) if wide else np.empty(0, np.uint8)
        sampling, self._limits = window_of(view, evaluation)
        resized = evaluation or (None if view is None else view.crop)
        cubic = resized is not None and resized.interpolation == "cubic"
        jitter = None if view is None else view.jitter
        self._kinds = np.array(
            [
                sampling, cubic, jitter is not None and jitter.additive,
                jitter is not None and jitter.colours == "matrix", BlurConfig.radius(size), kind.top if kind else 255,
            ],
            dtype=np.int64,
        )  # fmt: skip

    def __call__(
        self, addresses: NDArray[np.uint64], shapes: NDArray[np.int64], drawn: NDArray[np.float64] | None,
        pool: ThreadPoolExecutor, threads: int,
    ) -> Tensor:  # fmt: skip
        """Return the views (N, channels, size, size), float32 in [0, 1].

        Args:
            addresses: (N,) where each image's (H, W, channels) values begin, one behind the other.
            shapes: (N, 2) heights and widths.
            drawn: (N, 64) of :func:`tenfold.augment.draws.uniforms`; None for the evaluation's.
            pool: does the work.
            threads: how many of its threads to use.
        """
        made = torch.empty(len(addresses), self._channels, self._size, self._size)
        nothing = np.zeros((len(addresses), 0))
        p, out = parameters(self._view, self._size, nothing if drawn is None else drawn), made.numpy()
        parts = [
            pool.submit(_batch, addresses, shapes, self._like, self._kinds, self._limits, p, out, first, threads)
            for first in range(threads)
        ]
        for part in parts:
            part.result()
        return made
