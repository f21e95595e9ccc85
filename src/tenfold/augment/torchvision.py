"""Views by torch and torchvision, for machines without DALI.

Colours, blur, crop and resizing are the papers' own (see :mod:`tenfold.augment.color`). Each sample's random
draws depend on (seed, position) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from tenfold.augment import color
from tenfold.augment.evaluation import evaluation_view
from tenfold.augment.resample import resize
from tenfold.augment.spec import ViewSpec
from tenfold.config import BlurConfig, CropConfig, JitterConfig, ViewConfig
from tenfold.data.decode import decode
from tenfold.data.reader import RankOrder, SplitReader


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
                draws = np.random.SeedSequence([self._seed, self._order.position(position)]).generate_state(
                    1, np.uint64
                )
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


class _Drawn(nn.Module):
    """One operation of a view; all draws come from torch's generator."""

    def __init__(self, apply: Callable[[Tensor], Tensor], probability: float = 1.0) -> None:
        super().__init__()
        self._apply_to, self._probability = apply, probability

    def forward(self, image: Tensor) -> Tensor:
        """Apply the operation, with its probability."""
        if self._probability < 1 and torch.rand(()) >= self._probability:
            return image
        return self._apply_to(image)


def random_view(view: ViewConfig, size: int) -> v2.Transform:
    """Return the transform of uint8 (3, H, W) to float32 (3, size, size) that ``view`` describes."""
    steps: list[object] = [v2.ToDtype(torch.float32, scale=True)]
    steps.append(_Drawn(partial(_crop, crop=view.crop, size=size)))
    if view.affine is not None:
        a = view.affine
        affine = v2.RandomAffine(
            a.rotate, (a.translate, a.translate), a.scale, (-a.shear, a.shear, -a.shear, a.shear),
            interpolation=v2.InterpolationMode.BILINEAR,
        )  # fmt: skip
        steps.append(v2.RandomApply([affine], a.probability))
    if view.jitter is not None:
        steps.append(_Drawn(partial(_jitter, jitter=view.jitter), view.jitter.probability))
    if view.grayscale > 0:
        steps.append(_Drawn(color.grey, view.grayscale))
    if view.blur is not None:
        steps.append(_Drawn(partial(_blur, blur=view.blur, size=size), view.blur.probability))
    if view.erase is not None:
        steps.append(v2.RandomErasing(view.erase.probability, view.erase.area, ratio=(1.0, 1.0)))
    if view.flip > 0:
        steps.append(v2.RandomHorizontalFlip(view.flip))
    return v2.Compose(steps)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def crop_box(crop: CropConfig, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw a crop: top, left, height and width in pixels; see :class:`CropConfig` for the distribution."""
    if crop.sampling == "area":
        box = v2.RandomResizedCrop.make_params(
            v2.RandomResizedCrop((1, 1), crop.area, crop.aspect, antialias=False), [torch.empty(3, height, width)]
        )
        return box["top"], box["left"], box["height"], box["width"]
    aspect = _uniform(*crop.aspect)
    least, most = ((share * height * width / aspect) ** 0.5 for share in crop.area)
    most = min(most, height, width / aspect)
    rows = _uniform(min(least, most), most)
    high, wide = max(1, min(height, round(rows))), max(1, min(width, round(rows * aspect)))
    top, left = int(_uniform(0, height - high + 1)), int(_uniform(0, width - wide + 1))
    return min(top, height - high), min(left, width - wide), high, wide


def _crop(image: Tensor, crop: CropConfig | None, size: int) -> Tensor:
    if crop is None:
        return resize(image, size, size, "linear")
    top, left, height, width = crop_box(crop, image.shape[-2], image.shape[-1])
    return resize(image[..., top : top + height, left : left + width], size, size, crop.interpolation)


def _jitter(image: Tensor, jitter: JitterConfig) -> Tensor:
    bright = color.add_brightness if jitter.additive else color.brightness
    about = 0.0 if jitter.additive else 1.0
    exact = jitter.colours == "hsv"
    operations: list[tuple[float, Callable[[Tensor, float], Tensor], float]] = [
        (jitter.brightness, bright, about), (jitter.contrast, color.contrast, 1.0),
        (jitter.saturation, color.saturation if exact else lambda x, f: color.turn_chroma(x, f, 0.0), 1.0),
        (jitter.hue, color.hue if exact else lambda x, d: color.turn_chroma(x, 1.0, d), 0.0),
    ]  # fmt: skip
    order = torch.randperm(4).tolist() if jitter.order == "random" else range(4)
    for number in order:
        strength, apply, middle = operations[number]
        if strength > 0:
            low = middle - strength if middle == 0 else max(middle - strength, 0)
            image = apply(image, _uniform(low, middle + strength))
    return image


def _blur(image: Tensor, blur: BlurConfig, size: int) -> Tensor:
    return color.blur(image, _uniform(*blur.sigma), blur.radius(size)).clamp(0, 1)
