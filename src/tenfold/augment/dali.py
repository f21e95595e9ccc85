"""Views by NVIDIA DALI: one graph for CPU and GPU, one decode for all views of an image.

Operations that only some images draw are computed for those images alone (DALI's conditional execution).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from tenfold.data.reader import Order, SplitReader


class DaliViews:
    """Endless batches of views."""

    def __init__(
        self, reader: SplitReader, specs: Sequence[ViewSpec], batch_size: int, order: Order,
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
            outputs.append(_evaluation(images, shape, spec.evaluation, spec.image_size))
        else:
            outputs.append(_view(images, spec.view or ViewConfig(), spec.image_size))
    return tuple(outputs)


def _floats(image: Any, mirror: Any = 0) -> Any:
    return fn.crop_mirror_normalize(
        image, dtype=types.FLOAT, output_layout="CHW", mirror=mirror, mean=[0.0] * 3, std=[255.0] * 3
    )


def _evaluation(images: Any, shape: Any, config: EvalViewConfig, size: int) -> Any:
    height, width = fn.cast(shape[0], dtype=types.FLOAT), fn.cast(shape[1], dtype=types.FLOAT)
    # rounded half up, where torch and numpy round half to even: they differ by a pixel at exact halves
    side = fn.cast(math.floor(math.min(height, width) * config.crop_proportion + 0.5), dtype=types.INT32)
    top = (fn.cast(height, dtype=types.INT32) - side + 1) // 2
    left = (fn.cast(width, dtype=types.INT32) - side + 1) // 2
    cut = fn.slice(images, fn.stack(top, left), fn.stack(side, side), axis_names="HW")
    return _floats(fn.resize(cut, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=False))


def _view(images: Any, view: ViewConfig, size: int) -> Any:
    image = _crop(images, view.crop, size)
    if view.affine is not None:
        image = _affine(image, view.affine, size)
    if view.jitter is not None:
        image = _jitter(image, view.jitter)
    if view.grayscale > 0:
        image = _grayscale(image, view.grayscale)
    if view.blur is not None:
        image = _blur(image, view.blur)
    if view.erase is not None:
        image = _erase(image, view.erase)
    return _floats(image, fn.random.coin_flip(probability=view.flip) if view.flip > 0 else 0)


def _crop(images: Any, crop: CropConfig | None, size: int) -> Any:
    linear = {"size": (size, size), "interp_type": types.INTERP_LINEAR, "antialias": False}
    if crop is None:
        return fn.resize(images, **linear)
    return fn.random_resized_crop(images, random_area=crop.area, random_aspect_ratio=crop.aspect, **linear)


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
    """Brightness, contrast about each channel's mean, saturation, hue; in this order, clipped after each.

    SimCLR draws the order at random; torchvision takes the grey mean for contrast.
    """
    if _coin(jitter.probability):
        if jitter.brightness > 0:
            image = _clipped(image * _factor(jitter.brightness))
        if jitter.contrast > 0:
            mean = fn.reductions.mean(image, axis_names="HW", keep_dims=True)
            image = _clipped((image - mean) * _factor(jitter.contrast) + mean)
        if jitter.saturation > 0:
            image = fn.hsv(image, saturation=_factor(jitter.saturation))
        if jitter.hue > 0:
            image = fn.hsv(image, hue=_draw(-360 * jitter.hue, 360 * jitter.hue))
    else:
        image = image
    return image


def _factor(strength: float) -> Any:
    return _draw(max(1 - strength, 0), 1 + strength)


def _clipped(image: Any) -> Any:
    return fn.cast(math.clamp(image + 0.5, 0.0, 255.0), dtype=types.UINT8)


def _grayscale(image: Any, probability: float) -> Any:
    if _coin(probability):
        image = fn.hsv(image, saturation=0.0)
    else:
        image = image
    return image


def _blur(image: Any, blur: BlurConfig) -> Any:
    if _coin(blur.probability):
        image = fn.gaussian_blur(image, sigma=_draw(*blur.sigma))
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
