"""Views by NVIDIA DALI, which decodes; one decode for all views of an image.

On a GPU DALI makes the views as well, in one graph. On a CPU its threads decode ahead and
:class:`tenfold.augment.fused.FusedView` makes the views: DALI's own operations go over whole batches one after the
other there, and what they hold does not stay in the caches. Both take what was drawn from
:mod:`tenfold.augment.draws`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types
from torch import Tensor

from tenfold.augment.ahead import Ahead
from tenfold.augment.draws import ATTEMPTS, ORDERS, Drawn, parameters, uniforms
from tenfold.augment.fused import FusedView
from tenfold.augment.spec import ViewSpec
from tenfold.config import BlurConfig, CropConfig, EvalViewConfig, JitterConfig, ViewConfig
from tenfold.data.reader import RankOrder, SplitReader


class DaliViews:
    """Endless batches of views, made ahead of the caller."""

    def __init__(
        self, reader: SplitReader, specs: Sequence[ViewSpec], batch_size: int, order: RankOrder, position: int,
        seed: int, device: torch.device, threads: int, batches: int | None = None, *, graph: bool | None = None,
    ) -> None:  # fmt: skip
        """Start decoding.

        Args:
            reader: the images.
            specs: the views to take of each.
            batch_size: images a batch.
            order: which image stands where.
            position: where in the order the first batch begins.
            seed: of what is drawn.
            device: where the work is done.
            threads: for decoding, and for the views on a CPU.
            batches: how many are wanted; None: no end.
            graph: whether DALI's graph makes the views; default: on a GPU, but for views with what it does not know.
        """
        on_gpu = device.type == "cuda"
        self._specs, self._batch_size, self._order, self._seed = list(specs), batch_size, order, seed
        self._first, self._made = position, 0
        by_hand = any(spec.view is not None and spec.view.on_processor for spec in specs)
        self._graph = (on_gpu and not by_hand) if graph is None else graph

        def encoded(info: Any) -> NDArray[np.uint8]:
            return reader.image(order[position + info.idx_in_epoch])

        threads = max(1, threads)
        self._pipe = (_views if self._graph else _decoding)(
            encoded, self._parameters, self._specs, on_gpu,
            batch_size=batch_size, num_threads=threads, device_id=device.index or 0 if on_gpu else None,
            seed=0, enable_conditionals=True, prefetch_queue_depth=2,
        )  # fmt: skip
        self._pipe.build()
        self._fused = [FusedView(spec.view, spec.evaluation, spec.image_size) for spec in specs]
        self._threads, self._pool = threads, ThreadPoolExecutor(threads)
        self._ahead = Ahead(self._make, batches)

    def next(self) -> list[Tensor]:
        """Return the next batch's views, as tensors of their own."""
        if self._graph:
            return [torch.utils.dlpack.from_dlpack(out.as_tensor()).clone() for out in self._pipe.run()]
        return self._ahead.next()

    def _make(self) -> list[Tensor]:
        (images,) = self._pipe.run()
        decoded = [images[number] for number in range(self._batch_size)]
        addresses = np.array([image.data_ptr() for image in decoded], dtype=np.uint64)
        shapes = np.array([image.shape()[:2] for image in decoded], dtype=np.int64)
        batch, self._made = self._made, self._made + 1
        return [
            view(addresses, shapes, drawn, self._pool, self._threads)
            for view, drawn in zip(self._fused, self._drawn(batch), strict=True)
        ]

    def _drawn(self, batch: int) -> list[NDArray[np.float64]]:
        start = self._first + batch * self._batch_size
        positions = np.array([self._order.position(start + number) for number in range(self._batch_size)])
        return [uniforms(self._seed, positions, number) for number in range(len(self._specs))]

    def _parameters(self, info: Any) -> list[NDArray[np.float32]]:
        drawn = self._drawn(info.iteration)
        return [parameters(spec.view, spec.image_size, d) for spec, d in zip(self._specs, drawn, strict=True)]


@pipeline_def  # type: ignore[untyped-decorator]
def _decoding(encoded: Any, drawn: Any, specs: list[ViewSpec], on_gpu: bool) -> Any:
    data = fn.external_source(source=encoded, batch=False, dtype=types.UINT8)
    return fn.decoders.image(data, output_type=types.RGB)


@pipeline_def  # type: ignore[untyped-decorator]
def _views(encoded: Any, drawn: Any, specs: list[ViewSpec], on_gpu: bool) -> Any:
    data = fn.external_source(source=encoded, batch=False, dtype=types.UINT8)
    given = fn.external_source(
        source=drawn, num_outputs=len(specs), batch=True, batch_info=True, dtype=types.FLOAT, ndim=1
    )
    images = fn.decoders.image(data, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    shape = fn.peek_image_shape(data)
    outputs = []
    for spec, p in zip(specs, given):  # noqa: B905 — autograph knows no "strict"
        if spec.evaluation is not None:
            outputs.append(evaluation(images, shape, spec.evaluation, spec.image_size))
        else:
            outputs.append(_view(images, shape, spec.view or ViewConfig(), spec.image_size, p))
    return tuple(outputs)


def _floats(image: Any) -> Any:
    return fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="CHW", mean=[0.0] * 3, std=[255.0] * 3)


def _resized(interpolation: str, size: int) -> dict[str, Any]:
    kind = types.INTERP_CUBIC if interpolation == "cubic" else types.INTERP_LINEAR
    return {"size": (size, size), "interp_type": kind, "antialias": False}


def evaluation(images: Any, shape: Any, config: EvalViewConfig, size: int) -> Any:
    """Return the evaluation view of images whose ``shape`` is (H, W, C); see :func:`evaluation_view`."""
    height, width = fn.cast(shape[0], dtype=types.FLOAT), fn.cast(shape[1], dtype=types.FLOAT)
    exact = math.min(height, width) * config.crop_proportion
    up = math.floor(exact + 0.5)
    odd = up - 2.0 * math.floor(up / 2.0)
    side = fn.cast(up - odd * fn.cast(up - exact == 0.5, dtype=types.FLOAT), dtype=types.INT32)  # half to even
    top = (fn.cast(height, dtype=types.INT32) - side + 1) // 2
    left = (fn.cast(width, dtype=types.INT32) - side + 1) // 2
    cut = fn.slice(images, fn.stack(top, left), fn.stack(side, side), axis_names="HW")
    return _floats(fn.resize(cut, **_resized(config.interpolation, size)))


def _view(images: Any, shape: Any, view: ViewConfig, size: int, p: Any) -> Any:
    image = _crop(images, shape, view.crop, size, p)
    if view.flip > 0:
        image = fn.flip(image, horizontal=fn.cast(p[Drawn.FLIP], dtype=types.INT32))
    if view.affine is not None:
        image = _affine(image, p)
    if view.jitter is not None:
        image = _jitter(image, view.jitter, p)
    if view.grayscale > 0:
        image = _grayscale(image, p)
    if view.blur is not None:
        image = _blur(image, size, p)
    if view.erase is not None:
        image = _erase(image, size, p)
    return _floats(image)


def _crop(images: Any, shape: Any, crop: CropConfig | None, size: int, p: Any) -> Any:
    if crop is None:
        return fn.resize(images, **_resized("linear", size))
    box = (height_box if crop.sampling == "height" else area_box)(shape, crop, p)
    return fn.resize(fn.slice(images, *box, axis_names="HW"), **_resized(crop.interpolation, size))


def _size(shape: Any) -> tuple[Any, Any]:
    return fn.cast(shape[0], dtype=types.FLOAT), fn.cast(shape[1], dtype=types.FLOAT)


def _placed(height: Any, width: Any, high: Any, wide: Any, top: Any, left: Any) -> tuple[Any, Any]:
    first = math.min(math.floor(top * (height - high + 1.0)), height - high)
    start = math.min(math.floor(left * (width - wide + 1.0)), width - wide)
    place, extent = (fn.cast(fn.stack(*pair), dtype=types.INT32) for pair in ((first, start), (high, wide)))
    return place, extent


def height_box(shape: Any, crop: CropConfig, p: Any) -> tuple[Any, Any]:
    """Return crops of images of ``shape`` as TensorFlow draws them: (top, left) and (height, width)."""
    height, width = _size(shape)
    aspect = p[Drawn.ASPECT]
    most = math.min(math.min(height, width / aspect), math.sqrt(crop.area[1] * height * width / aspect))
    least = math.min(most, math.sqrt(crop.area[0] * height * width / aspect))
    rows = least + (most - least) * p[Drawn.ROWS]
    high = math.clamp(math.floor(rows + 0.5), 1.0, height)
    wide = math.clamp(math.floor(rows * aspect + 0.5), 1.0, width)
    return _placed(height, width, high, wide, p[Drawn.TOP], p[Drawn.LEFT])


def area_box(shape: Any, crop: CropConfig, p: Any) -> tuple[Any, Any]:
    """Return crops of images of ``shape`` as torchvision draws them: the first of the drawn ones that fits."""
    height, width = _size(shape)
    part = p[Drawn.AREA : Drawn.AREA + ATTEMPTS] * height * width
    ratio = p[Drawn.RATIO : Drawn.RATIO + ATTEMPTS]
    wides, highs = math.floor(math.sqrt(part * ratio) + 0.5), math.floor(math.sqrt(part / ratio) + 0.5)
    fits = (wides > 0.0) & (wides <= width) & (highs > 0.0) & (highs <= height)
    rank = fn.cast(fits, dtype=types.FLOAT) * np.arange(ATTEMPTS, 0, -1, dtype=np.float32)
    best = fn.reductions.max(rank)
    chosen = fn.cast((rank == best) & fits, dtype=types.FLOAT)
    any_fits = fn.cast(best > 0.0, dtype=types.FLOAT)
    middle_wide = math.min(width, math.max(1.0, math.floor(height * crop.aspect[1] + 0.5)))
    middle_high = math.min(height, math.max(1.0, math.floor(width / crop.aspect[0] + 0.5)))
    wide = fn.reductions.sum(chosen * wides) + (1.0 - any_fits) * middle_wide
    high = fn.reductions.sum(chosen * highs) + (1.0 - any_fits) * middle_high
    # the middle: floor(1/2 (free + 1) - 1/4) is half the free pixels, rounded down
    top = any_fits * p[Drawn.TOP] + (1.0 - any_fits) * (math.floor((height - high) / 2.0) + 0.5) / (height - high + 1.0)
    left = any_fits * p[Drawn.LEFT] + (1.0 - any_fits) * (math.floor((width - wide) / 2.0) + 0.5) / (width - wide + 1.0)
    return _placed(height, width, high, wide, top, left)


def _affine(image: Any, p: Any) -> Any:
    if p[Drawn.WARPED] > 0.0:
        m = [p[Drawn.WARP + k] for k in range(6)]
        # DALI's pixels have their centres at one half
        across, down = m[2] + 0.5 - 0.5 * (m[0] + m[1]), m[5] + 0.5 - 0.5 * (m[3] + m[4])
        matrix = fn.reshape(fn.stack(m[0], m[1], across, m[3], m[4], down), shape=[2, 3])
        image = fn.warp_affine(image, matrix=matrix, fill_value=0, inverse_map=True)
    else:
        image = image
    return image


def _jitter(image: Any, jitter: JitterConfig, p: Any) -> Any:
    """Brightness, contrast about each channel's mean, saturation, hue; rounded to grey levels after each."""
    if p[Drawn.JITTERED] > 0.0:
        if jitter.order == "random":
            for place in range(4):
                step = fn.lookup_table(
                    fn.cast(p[Drawn.ORDER], dtype=types.INT32), keys=list(range(len(ORDERS))),
                    values=[float(order[place]) for order in ORDERS], dtype=types.INT32,
                )  # fmt: skip
                if step == 0:
                    image = _brightness(image, jitter, p)
                elif step == 1:
                    image = contrast(image, p[Drawn.CONTRAST])
                elif step == 2:
                    image = _saturation(image, jitter, p)
                else:
                    image = _hue(image, jitter, p)
        else:
            image = contrast(_brightness(image, jitter, p), p[Drawn.CONTRAST])
            image = _hue(_saturation(image, jitter, p), jitter, p)
    else:
        image = image
    return image


def _brightness(image: Any, jitter: JitterConfig, p: Any) -> Any:
    drawn = p[Drawn.BRIGHTNESS]
    return _clipped(image + 255.0 * drawn) if jitter.additive else brightness(image, drawn)


def _saturation(image: Any, jitter: JitterConfig, p: Any) -> Any:
    factor = p[Drawn.SATURATION]
    return saturation(image, factor) if jitter.colours == "hsv" else fn.hsv(image, saturation=factor)


def _hue(image: Any, jitter: JitterConfig, p: Any) -> Any:
    turn = p[Drawn.TURN]
    return hue(image, turn) if jitter.colours == "hsv" else fn.hsv(image, hue=360.0 * turn)


def brightness(image: Any, factor: Any) -> Any:
    """Return ``factor`` times a uint8 image."""
    return _clipped(image * factor)


def contrast(image: Any, factor: Any) -> Any:
    """Scale the distance from each channel's own mean."""
    mean = fn.reductions.mean(image, axis_names="HW", keep_dims=True)
    return _clipped((image - mean) * factor + mean)


def saturation(image: Any, factor: Any) -> Any:
    """Scale the saturation of hue-saturation-value, up to 1."""
    x, value, chroma = _value_and_chroma(image)
    held = math.max(chroma / math.max(value, 1.0), 1e-6)
    return _clipped(value - (value - x) * (math.min(held * factor, 1.0) / held))


def hue(image: Any, turn: Any) -> Any:
    """Turn the hue by a share ``turn`` of the circle, leaving saturation and value."""
    x, value, chroma = _value_and_chroma(image)
    red, green, blue = x[:, :, 0:1], x[:, :, 1:2], x[:, :, 2:3]
    span = math.max(chroma, 1e-6)
    is_red = fn.cast(red == value, dtype=types.FLOAT)
    is_green = fn.cast(green == value, dtype=types.FLOAT) * (1.0 - is_red)
    angle = (
        is_red * (green - blue) + is_green * (2.0 * span + blue - red)
        + (1.0 - is_red - is_green) * (4.0 * span + red - green)
    ) / (6.0 * span) + turn  # fmt: skip
    angle = (angle - math.floor(angle)) * 6.0
    ramps = [math.abs(angle - 3.0) - 1.0, 2.0 - math.abs(angle - 2.0), 2.0 - math.abs(angle - 4.0)]
    ramp = fn.cat(*[math.clamp(each, 0.0, 1.0) for each in ramps], axis=2)
    return _clipped(value - (1.0 - ramp) * chroma)


def _value_and_chroma(image: Any) -> tuple[Any, Any, Any]:
    x = fn.cast(image, dtype=types.FLOAT)
    value = fn.reductions.max(x, axes=[2], keep_dims=True)
    return x, value, value - fn.reductions.min(x, axes=[2], keep_dims=True)


def grey(image: Any) -> Any:
    """Return the luma in all three channels."""
    return fn.hsv(image, saturation=0.0)


def gaussian_blur(image: Any, sigma: Any, radius: int) -> Any:
    """Blur with 2·radius + 1 taps; what lies outside counts as black."""
    shape = fn.cast(image.shape(), dtype=types.INT32)[0:2]
    padded = fn.slice(
        image, start=(-radius, -radius), shape=shape + 2 * radius, axis_names="HW", out_of_bounds_policy="pad",
        fill_values=0,
    )  # fmt: skip
    blurred = fn.gaussian_blur(padded, sigma=sigma, window_size=2 * radius + 1)
    return fn.slice(blurred, start=(radius, radius), shape=shape, axis_names="HW")


def _clipped(image: Any) -> Any:
    return fn.cast(math.clamp(image, 0.0, 255.0), dtype=types.UINT8)  # rounds


def _grayscale(image: Any, p: Any) -> Any:
    if p[Drawn.GREY] > 0.0:
        image = grey(image)
    else:
        image = image
    return image


def _blur(image: Any, size: int, p: Any) -> Any:
    if p[Drawn.SIGMA] > 0.0:
        image = gaussian_blur(image, p[Drawn.SIGMA], BlurConfig.radius(size))
    else:
        image = image
    return image


def _erase(image: Any, size: int, p: Any) -> Any:
    if p[Drawn.ERASED] > 0.0:
        side, top, left = (
            math.floor(p[each] * size + 0.5) for each in (Drawn.ERASED, Drawn.ERASED_TOP, Drawn.ERASED_LEFT)
        )
        image = fn.erase(image, anchor=fn.stack(top, left), shape=fn.stack(side, side), axis_names="HW", fill_value=0)
    else:
        image = image
    return image
