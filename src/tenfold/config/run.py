"""A whole run: every stage's section composed into :class:`RunConfig`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tenfold.config.augment import AugmentConfig, FeedsConfig
from tenfold.config.base import Name, Positive, Section, Seed
from tenfold.config.data import DataConfig
from tenfold.config.idle import without_idle
from tenfold.config.networks import Network, ResNetConfig
from tenfold.config.training import (
    BaselineConfig,
    DistillConfig,
    FinetuneConfig,
    KeptEncoderConfig,
    PretrainConfig,
    PseudoLabelConfig,
    SelfTrainConfig,
)
from tenfold.config.views import channels_of
from tenfold.fingerprint import canonical_json

#: The views of the section ``augment``.
RANDOM_VIEWS = ("contrastive", "masked", "weak", "strong", "labelled")
VIEWS = (*RANDOM_VIEWS, "evaluation")


#: What a registered model may be called: MLflow cannot be asked for one with these in its name.
MODEL_NAME = r"^[^/:@'\"`]+$"


class EvaluateConfig(Section):
    """The ladder on the test split."""

    bootstrap: int = Field(2000, ge=100, le=100_000, description="resamples for the intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    ship: Literal["cheapest", "student"] = Field(
        "cheapest",
        description="cheapest: of the ladder's networks that are not clearly larger than the student, the one that "
        "took the least time and is no worse than the best by more than the tolerance; student: what was trained last, "
        "whatever it reaches",
    )
    tolerance: float = Field(0.01, gt=0, lt=1, description="top-1 that may be lost for what is cheaper")
    selection: float = Field(
        0.5,
        ge=0,
        le=0.9,
        description="share of the test images that choose what is shipped and calibrate it; the others measure it. 0: "
        "the student is shipped, not calibrated, and all measure it",
    )
    encoder: KeptEncoderConfig | None = Field(None, description="one that you have, as a rung of the ladder, frozen")
    export: bool = Field(True, description="leave what is shipped as a torch.export file too, which takes seconds")
    neighbours: int = Field(10, ge=1, description="of the graphs for label spreading and propagation")
    inverse_regularization: Positive = Field(1.0, description="C of the logistic regressions")
    seed: Seed | None = Field(None, description="the run's seed unless set")


class PromoteConfig(Section):
    """The gate to the alias ``champion``."""

    model: Name = Field("tenfold-student", pattern=MODEL_NAME, description="name in the MLflow registry")
    min_gain: float = Field(
        0.0,
        gt=-1,
        lt=1,
        description="beyond chance, the challenger's top-1 must exceed the champion's by more than this",
    )
    significance: float = Field(
        0.05, gt=0, le=0.5, description="share of challengers that are no better, and pass by chance"
    )
    max_class_loss: float | None = Field(
        0.1, ge=0, lt=1, description="no class may lose more than this share of its images, beyond chance; null: any"
    )
    max_calibration_error: float | None = Field(None, gt=0, le=1, description="of what is served")
    max_latency_ms: Positive | None = Field(
        None, description="median milliseconds an image, from its bytes to its class, on the machine that evaluates"
    )
    max_megaparameters: Positive | None = Field(None, description="millions of parameters of what is served")
    intended_use: str = Field("", max_length=2000, description="what the model is for, for its card")
    approval: bool = Field(
        False, description="who passes the gate stays challenger until somebody runs `tenfold approve`"
    )


class RetrainConfig(Section):
    """What only ``tenfold retrain`` looks at: when it goes on, and what it starts from."""

    min_new_images: int = Field(
        100, ge=0, description="a retraining ends early with fewer images that the champion's data set lacks"
    )
    min_drift: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="where set, a retraining also ends early unless the champion's features tell new images from those "
        "that it learned from in at least this share of pairs (0.5: not at all; 0.75: clearly). With fewer than 20, or "
        "where that cannot be told, it goes on",
    )
    warm_start: bool = Field(True, description="pretraining starts from the champion's encoder, if it can")
    pretrain_share: float = Field(
        0.3, gt=0, le=1, description="length of pretraining from that encoder, as a share of the length from scratch"
    )


class RunConfig(Section):
    """A whole run."""

    name: Name = Field("tenfold", description="shown in MLflow and in the report")
    method: Literal["simclrv2", "semi_vit"] = Field(
        "simclrv2",
        description="simclrv2: the student is distilled from the teacher; semi_vit: the self-trained teacher is the "
        "result, unless distill.enabled",
    )
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
        pretraining's, and they are of the data's pixels. What decides nothing is as by default.
        """
        return without_idle(self)._completed()

    def _completed(self) -> RunConfig:
        update: dict[str, Any] = {}
        for name in STAGES:
            section = getattr(self, SECTIONS[name])
            shared = {"seed": self.seed, "deterministic": self.deterministic}
            open_ = {key: value for key, value in shared.items() if getattr(section, key, value) is None}
            if open_:
                update[SECTIONS[name]] = section.model_copy(update=open_)
        # of what is switched off nothing else decides anything
        if not self.self_train.enabled:
            update["self_train"] = SelfTrainConfig(enabled=False, seed=0, deterministic=False)
        if self.distils:
            update["distill"] = update.get("distill", self.distill).model_copy(update={"enabled": True})
        else:
            update["distill"] = DistillConfig(enabled=False, seed=0, deterministic=False)
            update["pseudo_label"] = PseudoLabelConfig(enabled=False, seed=0)
        pretrain = update.get("pretrain", self.pretrain)
        if not pretrain.enabled:
            update["pretrain"] = pretrain.model_copy(update={"deterministic": False})
        masks = pretrain.method == "mae"
        views: dict[str, Any] = {"pretrain": "masked" if masks else "contrastive"}
        if pretrain.trains and not masks:  # a masked network sees a part of each view, and is not measured
            views["feeds"] = FeedsConfig.model_validate(
                pretrain.model_dump(include={"network", "precision", "batch_size"})
            )
        for name in VIEWS if self.data.pixels else ():
            views[name] = getattr(self.augment, name).model_copy(update={"pixels": self.data.pixels})
        update["augment"] = self.augment.model_copy(update=views)
        update["baseline"] = update.get("baseline", self.baseline).model_copy(update=self.student())
        return self.model_copy(update=update)

    @property
    def distils(self) -> bool:
        """Whether a student is distilled; if not, the teacher is the student."""
        return self.method == "simclrv2" if self.distill.enabled is None else self.distill.enabled

    def student(self) -> dict[str, Any]:
        """Return ``network``, ``head`` and ``from_head_layer`` of the student."""
        if self.distill.init == "finetuned" or not self.distils:
            head = None if self.pretrain.method == "mae" else self.pretrain.head
            return {"network": self.pretrain.network, "head": head, "from_head_layer": self.finetune.from_head_layer}
        return {"network": self.distill.network, "head": None, "from_head_layer": 0}

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.baseline.network or self.baseline.head or self.baseline.from_head_layer:
            raise ValueError("the baseline has the student's network; set distill.network instead")
        if self.augment.feeds is not None:
            raise ValueError("augment.feeds is pretraining's; set pretrain instead")
        if self.augment.pretrain != "contrastive":
            raise ValueError("augment.pretrain goes with pretrain.method; set that instead")
        self._pixels_fit()
        self._networks_fit()
        if self.distils and self.distill.init == "finetuned" and self.distill.network != self.pretrain.network:
            raise ValueError("distill.init is finetuned, so distill.network must equal pretrain.network")
        if self.pretrain.method == "mae" and self.finetune.from_head_layer:
            raise ValueError("pretrain.method is mae, which trains no projection head: set finetune.from_head_layer=0")
        if self.finetune.from_head_layer > self.pretrain.head.layers:
            raise ValueError(
                f"finetune.from_head_layer is {self.finetune.from_head_layer}, but pretrain.head.layers is "
                f"{self.pretrain.head.layers}"
            )
        return self

    def _networks_fit(self) -> None:
        """Refuse images that are no whole patches, and what a ResNet does not know."""
        side = self.augment.image_size
        networks: dict[str, Network] = {"pretrain.network": self.pretrain.network}
        if self.distils:
            networks["distill.network"] = self.distill.network
        for name, network in networks.items():
            if not isinstance(network, ResNetConfig) and side % network.patch:
                raise ValueError(
                    f"augment.image_size is {side}, which is no whole number of patches of {network.patch} pixels "
                    f"({name}.patch)"
                )
        rates = {"finetune": self.finetune.drop_path, "self_train": self.self_train.drop_path}
        dropping = [f"{name}.drop_path" for name, rate in rates.items() if rate > 0]
        if dropping and isinstance(self.pretrain.network, ResNetConfig) and self.pretrain.init is None:
            raise ValueError(f"{dropping[0]} is for transformers, and pretrain.network is a ResNet: set it to 0")
        if self.baseline.drop_path > 0 and isinstance(self.student()["network"], ResNetConfig):
            raise ValueError("baseline.drop_path is for transformers, and the student is a ResNet: set it to 0")
        if not self.pretrain.enabled and self.self_train.enabled and self.self_train.foreign > 0:
            raise ValueError(
                "self_train.foreign compares pretrained features, and pretrain.enabled is false: set it to 0"
            )
        mae = self.pretrain.mae
        if self.pretrain.method == "mae" and not isinstance(self.pretrain.network, ResNetConfig):
            patches = (side // self.pretrain.network.patch) ** 2
            if not 0 < int(patches * (1 - mae.mask)) < patches:
                raise ValueError(
                    f"pretrain.mae.mask is {mae.mask}, which of {patches} patches leaves none to see or none to draw"
                )

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
        whole = [f"augment.{name}.rand_augment" for name in RANDOM_VIEWS if views[name].rand_augment is not None]
        if whole:
            raise ValueError(
                f"data.pixels.channels is {channels}, and {whole[0]} needs red, green and blue: set it to null"
            )
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
