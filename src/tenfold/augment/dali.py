"""Views by NVIDIA DALI: one graph for CPU and GPU, one decode for all views of an image.

Operations that only some images draw are computed for those images alone (DALI's conditional execution).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types
from torch import Tensor

from tenfold.augment.spec import ViewSpec
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


class DaliViews:
    """Endless batches of views."""

    def __init__(
        self, reader: SplitReader, specs: Sequence[ViewSpec], batch_size: int, order: RankOrder,
        seed: int, device: torch.device, threads: int, state: Tensor | None,
    ) -> None:  # fmt: skip
        """Build the graph; with ``state`` it goes on where that was taken."""

        def encoded(info: Any) -> NDArray[np.uint8]:
            return reader.image(order[info.idx_in_epoch])

        on_gpu = device.type == "cuda"
        checkpoint = bytes(state.numpy().tobytes()) if state is not None and state.numel() else None
        self._pipe = _graph(
            encoded, list(specs), on_gpu,
            batch_size=batch_size, num_threads=max(1, threads), device_id=device.index or 0 if on_gpu else None,
            seed=seed % (2**31), enable_conditionals=True, enable_checkpointing=True, checkpoint=checkpoint,
            prefetch_queue_depth=2,
        )  # fmt: skip
        self._pipe.build()

    def next(self) -> list[Tensor]:
        """Return the next batch's views, as tensors of their own."""
        return [torch.utils.dlpack.from_dlpack(out.as_tensor()).clone() for out in self._pipe.run()]

    def state(self) -> Tensor:
        """Return DALI's checkpoint."""
        return torch.frombuffer(bytearray(self._pipe.checkpoint()), dtype=torch.uint8)


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(encoded: Any, specs: list[ViewSpec], on_gpu: bool) -> Any:
    data = fn.external_source(source=encoded, batch=False, dtype=types.UINT8)
    images = fn.decoders.image(data, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    shape = fn.peek_image_shape(data)
    outputs = []
    for spec in specs:
        if spec.evaluation is not None:
            outputs.append(evaluation(images, shape, spec.evaluation, spec.image_size))
        else:
            outputs.append(_view(images, shape, spec.view or ViewConfig(), spec.image_size))
    return tuple(outputs)


def _floats(image: Any, mirror: Any = 0) -> Any:
    return fn.crop_mirror_normalize(
        image, dtype=types.FLOAT, output_layout="CHW", mirror=mirror, mean=[0.0] * 3, std=[255.0] * 3
    )


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


def _view(images: Any, shape: Any, view: ViewConfig, size: int) -> Any:
    image = _crop(images, shape, view.crop, size)
    if view.affine is not None:
        image = _affine(image, view.affine, size)
    if view.jitter is not None:
        image = _jitter(image, view.jitter)
    if view.grayscale > 0:
        image = _grayscale(image, view.grayscale)
    if view.blur is not None:
        image = _blur(image, view.blur, size)
    if view.erase is not None:
        image = _erase(image, view.erase)
    return _floats(image, fn.random.coin_flip(probability=view.flip) if view.flip > 0 else 0)


def _crop(images: Any, shape: Any, crop: CropConfig | None, size: int) -> Any:
    if crop is None:
        return fn.resize(images, **_resized("linear", size))
    resized = _resized(crop.interpolation, size)
    if crop.sampling == "area":
        return fn.random_resized_crop(images, random_area=crop.area, random_aspect_ratio=crop.aspect, **resized)
    box = height_box(shape, crop)
    return fn.resize(fn.slice(images, *box, axis_names="HW"), **resized)


def height_box(shape: Any, crop: CropConfig) -> tuple[Any, Any]:
    """Draw crops of images of ``shape`` as TensorFlow does: (top, left) and (height, width)."""
    height, width = fn.cast(shape[0], dtype=types.FLOAT), fn.cast(shape[1], dtype=types.FLOAT)
    aspect = _draw(*crop.aspect)
    most = math.min(math.min(height, width / aspect), math.sqrt(crop.area[1] * height * width / aspect))
    least = math.min(most, math.sqrt(crop.area[0] * height * width / aspect))
    rows = least + (most - least) * _draw(0.0, 1.0)
    high = math.clamp(math.floor(rows + 0.5), 1.0, height)
    wide = math.clamp(math.floor(rows * aspect + 0.5), 1.0, width)
    top = math.min(math.floor(_draw(0.0, 1.0) * (height - high + 1.0)), height - high)
    left = math.min(math.floor(_draw(0.0, 1.0) * (width - wide + 1.0)), width - wide)
    first, second = (fn.cast(fn.stack(*pair), dtype=types.INT32) for pair in ((top, left), (high, wide)))
    return first, second


def _draw(low: float, high: float) -> Any:
    return fn.random.uniform(range=[low, high]) if high > low else low


def _coin(probability: float) -> Any:
    return fn.random.coin_flip(probability=probability, dtype=types.BOOL)


def _affine(image: Any, affine: AffineConfig, size: int) -> Any:
    if _coin(affine.probability):
        middle = (size / 2, size / 2)
        matrix = fn.transforms.rotation(angle=_draw(-affine.rotate, affine.rotate), center=middle)
        if affine.scale != (1.0, 1.0):
            factor = _draw(*affine.scale)
            matrix = fn.transforms.scale(matrix, scale=fn.stack(factor, factor), center=middle)
        if affine.shear:
            angles = fn.stack(_draw(-affine.shear, affine.shear), _draw(-affine.shear, affine.shear))
            matrix = fn.transforms.shear(matrix, angles=angles, center=middle)
        if affine.translate:
            reach = affine.translate * size
            matrix = fn.transforms.translation(matrix, offset=fn.stack(_draw(-reach, reach), _draw(-reach, reach)))
        image = fn.warp_affine(image, matrix=matrix, fill_value=0, inverse_map=False)
    else:
        image = image
    return image


def _jitter(image: Any, jitter: JitterConfig) -> Any:
    """Brightness, contrast about each channel's mean, saturation, hue; rounded to grey levels after each."""
    if _coin(jitter.probability):
        if jitter.order == "random":
            drawn = fn.random.uniform(values=[float(number) for number in range(len(_ORDERS))])
            for place in range(4):
                step = fn.lookup_table(
                    fn.cast(drawn, dtype=types.INT32), keys=list(range(len(_ORDERS))),
                    values=[float(order[place]) for order in _ORDERS], dtype=types.INT32,
                )  # fmt: skip
                if step == 0:
                    image = _brightness(image, jitter)
                elif step == 1:
                    image = _contrast(image, jitter)
                elif step == 2:
                    image = _saturation(image, jitter)
                else:
                    image = _hue(image, jitter)
        else:
            image = _hue(_saturation(_contrast(_brightness(image, jitter), jitter), jitter), jitter)
    else:
        image = image
    return image


#: Every order of the four operations of jitter.
_ORDERS = list(permutations(range(4)))


def _brightness(image: Any, jitter: JitterConfig) -> Any:
    if jitter.brightness == 0:
        return image
    if jitter.additive:
        return _clipped(image + _draw(-255 * jitter.brightness, 255 * jitter.brightness))
    return brightness(image, _factor(jitter.brightness))


def _contrast(image: Any, jitter: JitterConfig) -> Any:
    return contrast(image, _factor(jitter.contrast)) if jitter.contrast > 0 else image


def _saturation(image: Any, jitter: JitterConfig) -> Any:
    if jitter.saturation == 0:
        return image
    factor = _factor(jitter.saturation)
    return saturation(image, factor) if jitter.colours == "hsv" else fn.hsv(image, saturation=factor)


def _hue(image: Any, jitter: JitterConfig) -> Any:
    if jitter.hue == 0:
        return image
    turn = _draw(-jitter.hue, jitter.hue)
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


def _factor(strength: float) -> Any:
    return _draw(max(1 - strength, 0), 1 + strength)


def _clipped(image: Any) -> Any:
    return fn.cast(math.clamp(image, 0.0, 255.0), dtype=types.UINT8)  # rounds


def _grayscale(image: Any, probability: float) -> Any:
    if _coin(probability):
        image = grey(image)
    else:
        image = image
    return image


def _blur(image: Any, blur: BlurConfig, size: int) -> Any:
    if _coin(blur.probability):
        image = gaussian_blur(image, _draw(*blur.sigma), blur.radius(size))
    else:
        image = image
    return image


def _erase(image: Any, erase: EraseConfig) -> Any:
    if _coin(erase.probability):
        side = _draw(erase.area[0] ** 0.5, erase.area[1] ** 0.5)
        top, left = _draw(0.0, 1.0) * (1 - side), _draw(0.0, 1.0) * (1 - side)
        image = fn.erase(
            image, anchor=fn.stack(top, left), shape=fn.stack(side, side), axis_names="HW",
            normalized=True, fill_value=0,
        )  # fmt: skip
    else:
        image = image
    return image
