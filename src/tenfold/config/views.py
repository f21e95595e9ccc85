"""The views that a run takes of its images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tenfold.config.base import Probability, Ratio, Section, Share

Interpolation = Literal["cubic", "linear"]


class PixelsConfig(Section):
    """Images of other pixels than 8-bit RGB: PNG, TIFF or NPY with these channels and bits, kept as they are."""

    channels: int = Field(3, ge=1, le=64)
    bits: Literal[8, 16] = 16
    white: int | None = Field(None, ge=1, description="value that views call 1; the largest unless set")

    @model_validator(mode="after")
    def _within(self) -> PixelsConfig:
        if self.white is not None and self.white >= 2**self.bits:
            raise ValueError(f"white is {self.white}, and the largest value of {self.bits} bits is {2**self.bits - 1}")
        return self

    @property
    def top(self) -> int:
        """The value that becomes 1 in a view; larger ones are cut to it."""
        return self.white or 2**self.bits - 1

    @property
    def stored(self) -> PixelsConfig:
        """What of it decides how an image is kept."""
        return self.model_copy(update={"white": None})


def channels_of(pixels: PixelsConfig | None) -> int:
    """Return the channels of a view; 3 of images that are read as RGB."""
    return pixels.channels if pixels else 3


class CropConfig(Section):
    """Random resized crop.

    ``sampling`` says what is drawn uniformly. ``height`` is TensorFlow's sampler, which the papers used: the aspect
    ratio, then the height among those that the area allows; small crops are more frequent. ``area`` is
    torchvision's: the area, and the logarithm of the aspect ratio. The official code also asks each crop to cover a
    tenth of the image, so that a lower bound of 0.08 acts as 0.1.
    """

    area: Share = (0.1, 1.0)
    aspect: Ratio = (3 / 4, 4 / 3)
    sampling: Literal["height", "area"] = "height"
    interpolation: Interpolation = "cubic"


class AffineConfig(Section):
    """Random rotation (degrees), translation (share of the side), scale and shear (degrees)."""

    probability: Probability = 1.0
    rotate: float = Field(0.0, ge=0)
    translate: float = Field(0.0, ge=0, lt=1)
    scale: Ratio = (1.0, 1.0)
    shear: float = Field(0.0, ge=0, lt=90)


class JitterConfig(Section):
    """Colour jitter after SimCLR: factors drawn from 1 ± strength, hue as a share of the circle.

    ``order``: of the four operations, drawn for each image (the papers) or as the fields stand (faster on a GPU).
    ``additive``: brightness adds a number drawn from ±strength (the first paper) instead of multiplying.
    ``colours``: saturation and hue are those of hue-saturation-value (the papers), or a matrix on luma and chroma,
    which is faster there, too, and changes saturated colours more.
    """

    probability: Probability = 0.8
    order: Literal["random", "fixed"] = "random"
    additive: bool = False
    colours: Literal["hsv", "matrix"] = "hsv"
    brightness: float = Field(0.8, ge=0, le=100)
    contrast: float = Field(0.8, ge=0, le=100)
    saturation: float = Field(0.8, ge=0, le=100)
    hue: float = Field(0.2, ge=0, le=0.5)


class BlurConfig(Section):
    """Gaussian blur with a standard deviation drawn uniformly, in pixels; the kernel is a tenth of the side."""

    probability: Probability = 0.5
    sigma: Ratio = (0.1, 2.0)

    @staticmethod
    def radius(size: int) -> int:
        """Return the kernel's reach in pixels on an image of side ``size``: 11 for 224 (23 taps)."""
        return max(1, size // 10 // 2)


class EraseConfig(Section):
    """Random erasing: one rectangle of the given share of the area becomes black, or noise.

    ``aspect``: of its height to its width, drawn by its logarithm. Noise is normal, with ImageNet's mean and deviation.
    """

    probability: Probability = 0.25
    area: Share = (0.02, 0.2)
    aspect: Ratio = (1.0, 1.0)
    fill: Literal["black", "noise"] = "black"


class RandAugmentConfig(Section):
    """RandAugment with timm's "increasing" operations; ``rand-m9-mstd0.5-inc1`` is the default.

    ``operations`` are drawn with replacement, each happens with ``probability``, and its strength is drawn from a
    normal distribution of mean ``magnitude`` and this ``deviation``, cut to 0 to 10. Turned and moved images are taken
    between the pixels (timm draws that or bicubic).
    """

    operations: int = Field(2, ge=1, le=4)
    magnitude: float = Field(9.0, ge=0, le=10)
    deviation: float = Field(0.5, ge=0, le=10)
    probability: Probability = 0.5


class ViewConfig(Section):
    """One random view; operations happen in the order of the fields, an absent one not at all.

    ``pixels``: of the images, which a run takes from ``data.pixels``; None: RGB.
    """

    crop: CropConfig | None = CropConfig()
    flip: Probability = Field(0.5, description="probability of a horizontal flip; 0 for digits and text")
    affine: AffineConfig | None = None
    rand_augment: RandAugmentConfig | None = None
    jitter: JitterConfig | None = None
    grayscale: Probability = 0.0
    blur: BlurConfig | None = None
    erase: EraseConfig | None = None
    pixels: PixelsConfig | None = None

    @property
    def on_processor(self) -> bool:
        """Whether it is made by the processor even where a GPU makes the others."""
        erase = self.erase
        return self.rand_augment is not None or (
            erase is not None and (erase.fill == "noise" or erase.aspect != (1.0, 1.0))
        )


class EvalViewConfig(Section):
    """The one view of evaluation and serving: central crop of a share of the shorter side, then resize.

    ``pixels``: as in :class:`ViewConfig`.
    """

    crop_proportion: float = Field(0.875, gt=0, le=1)
    interpolation: Interpolation = "cubic"
    pixels: PixelsConfig | None = None
