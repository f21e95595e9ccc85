"""A whole run: every stage's section composed into :class:`RunConfig`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tenfold.config.augment import AugmentConfig, FeedsConfig
from tenfold.config.base import Name, Positive, Section, Seed
from tenfold.config.data import DataConfig
from tenfold.config.training import (
    BaselineConfig,
    DistillConfig,
    FinetuneConfig,
    PretrainConfig,
    PseudoLabelConfig,
    SelfTrainConfig,
)
from tenfold.config.views import channels_of
from tenfold.fingerprint import canonical_json

#: The views of the section ``augment``.
RANDOM_VIEWS = ("contrastive", "weak", "strong")
VIEWS = (*RANDOM_VIEWS, "evaluation")


class EvaluateConfig(Section):
    """The ladder on the test split."""

    bootstrap: int = Field(2000, ge=100, le=100_000, description="resamples for the intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    neighbours: int = Field(10, ge=1, description="of the graphs for label spreading and propagation")
    inverse_regularization: Positive = Field(1.0, description="C of the logistic regressions")
    seed: Seed | None = Field(None, description="the run's seed unless set")


class PromoteConfig(Section):
    """The gate to the alias ``champion``."""

    model: Name = Field("tenfold-student", pattern=r"^[^/:@]+$", description="name in the MLflow registry")
    min_gain: float = Field(0.0, description="the challenger's top-1 must exceed the champion's by more than this")


class RetrainConfig(Section):
    """What only ``tenfold retrain`` looks at: when it goes on, and what it starts from."""

    min_new_images: int = Field(
        100, ge=0, description="a retraining ends early with fewer images that the champion's data set lacks"
    )
    warm_start: bool = Field(True, description="pretraining starts from the champion's encoder, if it can")
    pretrain_share: float = Field(
        0.3, gt=0, le=1, description="length of pretraining from that encoder, as a share of the length from scratch"
    )


class RunConfig(Section):
    """A whole run."""

    name: Name = Field("tenfold", description="shown in MLflow and in the report")
    seed: Seed = 0
    deterministic: bool = Field(False, description="a restart or a repetition gives the same bits")
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    self_train: SelfTrainConfig = SelfTrainConfig()
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    distill: DistillConfig = DistillConfig()
    baseline: BaselineConfig = BaselineConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    retrain: RetrainConfig = RetrainConfig()

    def resolved(self) -> RunConfig:
        """Return the run with what is still open decided.

        Each stage's seed is the run's unless set, the baseline's network is the student's, the views feed
        pretraining's, and they are of the data's pixels.
        """
        update: dict[str, Any] = {}
        for name in STAGES:
            section = getattr(self, SECTIONS[name])
            shared = {"seed": self.seed, "deterministic": self.deterministic}
            open_ = {key: value for key, value in shared.items() if getattr(section, key, value) is None}
            if open_:
                update[SECTIONS[name]] = section.model_copy(update=open_)
        if not self.self_train.enabled:  # then nothing else of it decides anything
            update["self_train"] = SelfTrainConfig(enabled=False, seed=0, deterministic=False)
        feeds = FeedsConfig.model_validate(self.pretrain.model_dump(include={"network", "precision", "batch_size"}))
        views: dict[str, Any] = {}
        if self.pretrain.init is None or not self.pretrain.init.skip:
            views["feeds"] = feeds
        for name in VIEWS if self.data.pixels else ():
            views[name] = getattr(self.augment, name).model_copy(update={"pixels": self.data.pixels})
        update["augment"] = self.augment.model_copy(update=views)
        update["baseline"] = update.get("baseline", self.baseline).model_copy(update=self._student())
        return self.model_copy(update=update)

    def _student(self) -> dict[str, Any]:
        """Return network, head and head layer of the student."""
        if self.distill.init == "finetuned":
            return {"network": self.pretrain.network, "head": self.pretrain.head,
                    "from_head_layer": self.finetune.from_head_layer}  # fmt: skip
        return {"network": self.distill.network, "head": None, "from_head_layer": 0}

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.baseline.network or self.baseline.head or self.baseline.from_head_layer:
            raise ValueError("the baseline has the student's network; set distill.network instead")
        if self.augment.feeds is not None:
            raise ValueError("augment.feeds is pretraining's; set pretrain instead")
        self._pixels_fit()
        if self.distill.init == "finetuned" and self.distill.network != self.pretrain.network:
            raise ValueError("distill.init is finetuned, so distill.network must equal pretrain.network")
        if self.finetune.from_head_layer > self.pretrain.head.layers:
            raise ValueError(
                f"finetune.from_head_layer is {self.finetune.from_head_layer}, but pretrain.head.layers is "
                f"{self.pretrain.head.layers}"
            )
        return self

    def _pixels_fit(self) -> None:
        """Refuse what takes pixels for red, green and blue where they are not."""
        views = {name: getattr(self.augment, name) for name in VIEWS}
        by_hand = [name for name, view in views.items() if view.pixels is not None]
        if by_hand:
            raise ValueError(f"augment.{by_hand[0]}.pixels is the data's; set data.pixels instead")
        channels = channels_of(self.data.pixels)
        if channels == 3:
            return
        colours = [f"augment.{name}.grayscale" for name in RANDOM_VIEWS if views[name].grayscale > 0]
        for name in RANDOM_VIEWS:
            jitter = views[name].jitter
            if jitter is not None:
                colours += [f"augment.{name}.jitter.{key}" for key in ("saturation", "hue") if getattr(jitter, key) > 0]
        if colours:
            raise ValueError(
                f"data.pixels.channels is {channels}, and {', '.join(colours)} need red, green and blue: set them to 0"
            )

    def stage_strings(self) -> dict[str, str]:
        """Return stage → its canonical configuration string."""
        whole = self.resolved()
        return {stage: canonical_json(getattr(whole, SECTIONS[stage]).model_dump()) for stage in STAGES}


#: The tasks that take a configuration, in the order of the pipeline, and the section each one reads.
SECTIONS = {
    "shard": "data", "augment": "augment", "pretrain": "pretrain", "baseline": "baseline",
    "finetune": "finetune", "self_train": "self_train", "pseudo_label": "pseudo_label",
    "distill": "distill", "evaluate": "evaluate", "promote": "promote",
}  # fmt: skip
STAGES = tuple(SECTIONS)
