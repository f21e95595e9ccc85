"""Views by Pillow and torch, for machines without DALI.

Colours, blur, crop and resizing are the papers' own (see :mod:`tenfold.augment.color`), an operation at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tenfold.augment import color
from tenfold.augment.draws import ORDERS, Drawn, parameters, uniforms
from tenfold.augment.evaluation import evaluation_view, floats
from tenfold.augment.fused import box, window_of
from tenfold.augment.rand_augment import erase, rand_augment
from tenfold.augment.resample import resize
from tenfold.augment.spec import ViewSpec
from tenfold.config import BlurConfig, JitterConfig, ViewConfig
from tenfold.data.channels import Raw
from tenfold.data.decode import read_pixels
from tenfold.data.reader import RankOrder, SplitReader

#: What leaves an image as it is.
_UNCHANGED = {Drawn.SATURATION: 1.0, Drawn.TURN: 0.0}


class TorchvisionViews:
    """Endless batches of views."""

    def __init__(
        self,
        reader: SplitReader,
        specs: Sequence[ViewSpec],
        batch_size: int,
        order: RankOrder,
        position: int,
        seed: int,
    ) -> None:
        self._reader, self._batch_size, self._order = reader, batch_size, order
        self._position, self._seed, self._specs = position, seed, specs

    def next(self) -> list[Tensor]:
        """Return the next batch's views."""
        places = range(self._position, self._position + self._batch_size)
        positions = np.array([self._order.position(place) for place in places])
        kind = self._specs[0].pixels
        images = [read_pixels(self._reader.image(self._order[place]).tobytes(), kind) for place in places]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one small image at a time: more threads only wait for each other
        try:
            made = [self._made(spec, number, images, positions) for number, spec in enumerate(self._specs)]
        finally:
            torch.set_num_threads(threads)
        self._position += self._batch_size
        return made

    def _made(self, spec: ViewSpec, number: int, images: Sequence[Raw], positions: NDArray[np.int64]) -> Tensor:
        if spec.evaluation is not None:
            return torch.stack([evaluation_view(pixels, spec.evaluation, spec.image_size) for pixels in images])
        view = spec.view or ViewConfig()
        drawn = parameters(view, spec.image_size, uniforms(self._seed, positions, number))
        return torch.stack(
            [random_view(pixels, view, spec.image_size, p) for pixels, p in zip(images, drawn, strict=True)]
        )


def random_view(pixels: Raw, view: ViewConfig, size: int, p: NDArray[np.float32]) -> Tensor:
    """Return the view of an image that the parameters ``p`` say.

    Args:
        pixels: (H, W, channels).
        view: the configuration.
        size: the view's side.
        p: of :func:`tenfold.augment.draws.parameters`.

    Returns:
        (channels, size, size), float32 in [0, 1].
    """
    sampling, limits = window_of(view, None)
    top, left, height, width = box(pixels.shape[0], pixels.shape[1], sampling, limits, p)
    cut = floats(pixels[top : top + height, left : left + width], view.pixels)
    image = resize(cut, size, size, view.crop.interpolation if view.crop is not None else "linear")
    if p[Drawn.FLIP]:
        image = image.flip(-1)
    if p[Drawn.WARPED]:
        image = _warp(image, torch.from_numpy(p[Drawn.WARP : Drawn.WARP + 6]).view(2, 3))
    if view.rand_augment is not None:
        image = image.contiguous().clone()
        rand_augment(image.numpy(), p[Drawn.OPERATIONS :])
    if view.jitter is not None and p[Drawn.JITTERED]:
        image = _jitter(image, view.jitter, p)
    if p[Drawn.GREY]:
        image = color.grey(image)
    if p[Drawn.SIGMA]:
        image = color.blur(image, float(p[Drawn.SIGMA]), BlurConfig.radius(size)).clamp(0, 1)
    if p[Drawn.ERASED]:
        image = image.contiguous().clone()
        places = (Drawn.ERASED, Drawn.ERASED_WIDE, Drawn.ERASED_TOP, Drawn.ERASED_LEFT, Drawn.NOISE)
        erase(image.numpy(), *(p[place] for place in places))
    return image


def _warp(image: Tensor, matrix: Tensor) -> Tensor:
    size = image.shape[-1]
    places = torch.arange(size, dtype=torch.float32)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    source = torch.stack([columns, rows, torch.ones_like(rows)], -1) @ matrix.T
    grid = 2 * source / (size - 1) - 1
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def _jitter(image: Tensor, jitter: JitterConfig, p: NDArray[np.float32]) -> Tensor:
    exact = jitter.colours == "hsv"
    operations: list[tuple[Callable[[Tensor, float], Tensor], Drawn]] = [
        (color.add_brightness if jitter.additive else color.brightness, Drawn.BRIGHTNESS),
        (color.contrast, Drawn.CONTRAST),
        (color.saturation if exact else partial(color.turn_chroma, turn=0.0), Drawn.SATURATION),
        (color.hue if exact else lambda x, turn: color.turn_chroma(x, 1.0, turn), Drawn.TURN),
    ]
    for number in ORDERS[int(p[Drawn.ORDER])]:
        apply, column = operations[number]
        if p[column] != _UNCHANGED.get(column):  # of other channels than three there is no saturation and no hue
            image = apply(image, float(p[column]))
    return image
