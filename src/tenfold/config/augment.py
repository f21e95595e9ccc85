"""All views of a run, and the training step that they feed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.config.base import Section
from tenfold.config.networks import ResNetConfig
from tenfold.config.views import BlurConfig, EvalViewConfig, JitterConfig, ViewConfig


class FeedsConfig(Section):
    """The training step that the contrastive views must keep busy: pretraining's."""

    network: ResNetConfig
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: int


class AugmentConfig(Section):
    """Every view that a run uses. ``feeds`` is pretraining's, which the run fills in."""

    backend: Literal["auto", "dali", "torchvision"] = "auto"
    image_size: int = Field(32, ge=8, le=1024, description="side of a view in pixels")
    contrastive: ViewConfig = ViewConfig(jitter=JitterConfig(), grayscale=0.2, blur=BlurConfig())
    weak: ViewConfig = ViewConfig()
    strong: ViewConfig = ViewConfig(jitter=JitterConfig(), grayscale=0.2)
    evaluation: EvalViewConfig = EvalViewConfig()
    baseline: Literal["weak", "strong"] = Field("weak", description="view that the baseline trains on")
    finetune: Literal["weak", "strong"] = Field("weak", description="view that fine-tuning trains on")
    distill: Literal["weak", "strong"] = Field("weak", description="view that the student trains on")
    feeds: FeedsConfig | None = None
