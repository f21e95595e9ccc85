"""All views of a run, and the training step that they feed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.config.base import Section
from tenfold.config.networks import Network
from tenfold.config.views import BlurConfig, CropConfig, EvalViewConfig, JitterConfig, ViewConfig


class FeedsConfig(Section):
    """The training step that the contrastive views must keep busy: pretraining's."""

    network: Network
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: int


class AugmentConfig(Section):
    """Every view that a run uses. ``pretrain`` and ``feeds`` are pretraining's, which the run fills in."""

    backend: Literal["auto", "dali", "torchvision"] = "auto"
    image_size: int = Field(32, ge=8, le=1024, description="side of a view in pixels")
    contrastive: ViewConfig = ViewConfig(jitter=JitterConfig(), grayscale=0.2, blur=BlurConfig())
    masked: ViewConfig = ViewConfig(crop=CropConfig(area=(0.2, 1.0), sampling="area"))
    weak: ViewConfig = ViewConfig()
    strong: ViewConfig = ViewConfig(jitter=JitterConfig(), grayscale=0.2)
    labelled: ViewConfig = Field(ViewConfig(), description="for stages that train on neither weak nor strong views")
    evaluation: EvalViewConfig = EvalViewConfig()
    baseline: Literal["weak", "strong", "labelled"] = Field("weak", description="view that the baseline trains on")
    finetune: Literal["weak", "strong", "labelled"] = Field("weak", description="view that fine-tuning trains on")
    distill: Literal["weak", "strong", "labelled"] = Field("weak", description="view that the student trains on")
    pretrain: Literal["contrastive", "masked"] = Field("contrastive", description="pretraining's, by its method")
    feeds: FeedsConfig | None = None
