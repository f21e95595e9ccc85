"""Views by torchvision's transforms v2, for machines without DALI, and the evaluation view of serving.

Each sample's random draws depend on (seed, position) alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from tenfold.augment.spec import ViewSpec
from tenfold.config import EvalViewConfig, ViewConfig
from tenfold.data.decode import decode
from tenfold.data.reader import Order, SplitReader


class TorchvisionViews:
    """Endless batches of views."""

    def __init__(
        self,
        reader: SplitReader,
        specs: Sequence[ViewSpec],
        batch_size: int,
        order: Order,
        position: int,
        seed: int,
    ) -> None:
        self._reader, self._batch_size, self._order = reader, batch_size, order
        self._position, self._seed = position, seed
        self._views = [(spec, None if spec.view is None else random_view(spec.view, spec.image_size)) for spec in specs]

    def next(self) -> list[Tensor]:
        """Return the next batch's views."""
        columns: list[list[Tensor]] = [[] for _ in self._views]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one small image at a time: more threads only wait for each other
        with torch.random.fork_rng(devices=[]):
            for position in range(self._position, self._position + self._batch_size):
                pixels = decode(self._reader.image(self._order[position]).tobytes()).pixels
                draws = np.random.SeedSequence([self._seed, position]).generate_state(1, np.uint64)
                torch.manual_seed(int(draws[0]))
                image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
                for column, (spec, transform) in zip(columns, self._views, strict=True):
                    if transform is None:
                        assert spec.evaluation is not None
                        column.append(evaluation_view(pixels, spec.evaluation, spec.image_size))
                    else:
                        column.append(transform(image))
        torch.set_num_threads(threads)
        self._position += self._batch_size
        return [torch.stack(column) for column in columns]

    def state(self) -> Tensor:
        """Return nothing: the position is all there is."""
        return torch.empty(0, dtype=torch.uint8)


def random_view(view: ViewConfig, size: int) -> v2.Transform:
    """Return the transform of uint8 (3, H, W) to float32 (3, size, size) that ``view`` describes."""
    steps: list[object] = []
    if view.crop is None:
        steps.append(v2.Resize((size, size), antialias=False))
    else:
        steps.append(v2.RandomResizedCrop((size, size), view.crop.area, view.crop.aspect, antialias=False))
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if view.affine is not None:
        a = view.affine
        affine = v2.RandomAffine(
            a.rotate, (a.translate, a.translate), a.scale, (-a.shear, a.shear, -a.shear, a.shear),
            interpolation=v2.InterpolationMode.BILINEAR,
        )  # fmt: skip
        steps.append(v2.RandomApply([affine], a.probability))
    if view.jitter is not None:
        j = view.jitter
        steps.append(v2.RandomApply([v2.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue)], j.probability))
    if view.grayscale > 0:
        steps.append(v2.RandomGrayscale(view.grayscale))
    if view.blur is not None:
        radius = max(1, round(3 * view.blur.sigma[1]))
        radius = min(radius, (size - 1) // 2)
        steps.append(v2.RandomApply([v2.GaussianBlur(2 * radius + 1, view.blur.sigma)], view.blur.probability))
    if view.erase is not None:
        steps.append(v2.RandomErasing(view.erase.probability, view.erase.area, ratio=(1.0, 1.0)))
    if view.flip > 0:
        steps.append(v2.RandomHorizontalFlip(view.flip))
    return v2.Compose(steps)


def evaluation_view(pixels: NDArray[np.uint8], config: EvalViewConfig, size: int) -> Tensor:
    """Return the one view of evaluation and serving.

    The central square of ``crop_proportion`` of the shorter side (SimCLR's offsets), resized bilinearly
    without antialiasing.

    Args:
        pixels: height x width x 3, uint8.
        config: the crop's share.
        size: side of the view.

    Returns:
        (3, size, size), float32 in [0, 1].
    """
    height, width = pixels.shape[:2]
    side = max(1, int(config.crop_proportion * min(height, width) + 0.5))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    cut = torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1).float() / 255
    return F.interpolate(cut[None], (size, size), mode="bilinear", align_corners=False)[0]
