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
from tenfold.fingerprint import canonical_json


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


class RunConfig(Section):
    """A whole run."""

    name: Name = Field("tenfold", description="shown in MLflow and in the report")
    seed: Seed = 0
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

    def resolved(self) -> RunConfig:
        """Return the run with what is still open decided.

        Each stage's seed is the run's unless set, the baseline's network is the student's, and the views feed
        pretraining's.
        """
        update: dict[str, Any] = {}
        for name in STAGES:
            section = getattr(self, SECTIONS[name])
            if "seed" in type(section).model_fields and section.seed is None:
                update[SECTIONS[name]] = section.model_copy(update={"seed": self.seed})
        if not self.self_train.enabled:  # then nothing else of it decides anything
            update["self_train"] = SelfTrainConfig(enabled=False, seed=0)
        feeds = FeedsConfig.model_validate(self.pretrain.model_dump(include={"network", "precision", "batch_size"}))
        if self.pretrain.init is None or not self.pretrain.init.skip:
            update["augment"] = self.augment.model_copy(update={"feeds": feeds})
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
        if self.distill.init == "finetuned" and self.distill.network != self.pretrain.network:
            raise ValueError("distill.init is finetuned, so distill.network must equal pretrain.network")
        if self.finetune.from_head_layer > self.pretrain.head.layers:
            raise ValueError(
                f"finetune.from_head_layer is {self.finetune.from_head_layer}, but pretrain.head.layers is "
                f"{self.pretrain.head.layers}"
            )
        return self

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
