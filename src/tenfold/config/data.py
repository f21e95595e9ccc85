"""The images: where they are, which are labelled, which are for testing."""

from __future__ import annotations

from pydantic import Field, model_validator

from tenfold.config.base import Probability, Section, Seed
from tenfold.config.views import PixelsConfig


class LabelsConfig(Section):
    """Which training images keep their labels; at most one of the three ways."""

    per_class: int | None = Field(None, ge=1, description="labelled images of each class")
    fraction: float | None = Field(None, gt=0, le=1, description="labelled share of each class, at least one image")
    file: str | None = Field(None, description="text or CSV file of image paths, optionally with labels")
    seed: Seed = Field(0, description="which images, with per_class or fraction")

    @model_validator(mode="after")
    def _one_way(self) -> LabelsConfig:
        if sum(way is not None for way in (self.per_class, self.fraction, self.file)) > 1:
            raise ValueError("give one of per_class, fraction and file")
        return self


class SplitConfig(Section):
    """How a test split is set apart when the source brings none."""

    test_fraction: float = Field(0.2, gt=0, lt=1)
    seed: Seed = 0


class ShrinkConfig(Section):
    """Images whose longer side exceeds ``longest`` pixels are shrunk to it and kept as JPEG of this ``quality``."""

    longest: int = Field(ge=16, le=16_384)
    quality: int = Field(92, ge=1, le=100)


class DataConfig(Section):
    """The images: where they are, which are labelled, which are for testing."""

    source: str = Field("", description="folder or s3://bucket/prefix (images, tars), table, torchvision://, digits")
    annotations: str | None = Field(None, description="table in the source with the columns path, label, split, group")
    labels: LabelsConfig = LabelsConfig()
    split: SplitConfig = SplitConfig()
    shard_images: int = Field(4096, ge=1, description="a shard ends at this many images")
    shard_bytes: int = Field(256_000_000, ge=1, description="or at this many bytes, whichever comes first")
    partition_images: int = Field(32_768, ge=1, description="images that one packer takes")
    max_partitions: int = Field(256, ge=1, description="packers at most, whatever the number of images")
    max_bad_fraction: Probability = Field(0.05, description="share of unreadable images that stops the run")
    allow_leaks: bool = Field(False, description="go on where the same image is for training and for testing")
    max_pixels: int = Field(64_000_000, ge=1, description="larger images are refused from their header")
    shrink: ShrinkConfig | None = Field(None, description="re-encode larger images; without it bytes stay as they are")
    pixels: PixelsConfig | None = Field(None, description="images with other channels or bits than 8-bit RGB")

    @model_validator(mode="after")
    def _one_kind(self) -> DataConfig:
        if self.shrink is not None and self.pixels is not None:
            raise ValueError(
                "shrink re-encodes as JPEG, which does not hold what pixels asks for; leave out one of them"
            )
        return self
