"""Networks, optimizers, and what each training stage does with them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tenfold.config.base import Positive, Probability, Section, Seed


class ResNetConfig(Section):
    """SimCLRv2's ResNet."""

    depth: Literal[10, 18, 34, 50, 101, 152, 200] = 18
    width: float = Field(1.0, gt=0, le=8, description="multiplier of the channel counts")
    small_images: bool = Field(True, description="3x3 stem with stride 1 and no max-pooling")
    zero_gain: bool = Field(
        True,
        description="blocks start as the identity, as in the papers; a run of some hundred steps does better without",
    )


class HeadConfig(Section):
    """The projection head: hidden width as wide as the encoder's output, then a linear output layer."""

    layers: int = Field(3, ge=1, le=4)
    features: int = Field(128, ge=2)


class OptimizerConfig(Section):
    """Optimizer and its schedule: linear warm-up, then a cosine to zero."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    learning_rate: Positive = 0.3
    scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="of the learning rate with the batch: none, lr*B/256, lr*sqrt(B)"
    )
    momentum: Probability = 0.9
    weight_decay: float = Field(1e-4, ge=0)
    warmup: Probability = Field(0.05, description="share of the steps")


class TrainConfig(Section):
    """What every training stage has."""

    batch_size: int = Field(256, ge=2)
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: Seed | None = Field(None, description="the run's seed unless set")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs")
        return self

    def cut(self, images: int) -> Self:
        """Return the same with a batch no larger than ``images``, so that no batch holds an image twice."""
        return self.model_copy(update={"batch_size": max(2, min(self.batch_size, images))})

    def length(self, images: int, batch_size: int | None = None) -> int:
        """Return the number of steps over ``images``, of which each step takes ``batch_size`` (default: the batch)."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * images / (batch_size or self.batch_size)))


class PretrainConfig(TrainConfig):
    """SimCLR on all training images."""

    epochs: float | None = 100
    network: ResNetConfig = ResNetConfig()
    head: HeadConfig = HeadConfig()
    temperature: Positive = 0.5


class SupervisedConfig(TrainConfig):
    """Training on the labelled subset."""

    steps: int | None = 200
    batch_size: int = Field(64, ge=2)
    label_smoothing: Probability = 0.0
    average: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average; 0: none")


class FinetuneConfig(SupervisedConfig):
    """The teacher: from the pretrained encoder, on the labelled subset."""

    from_head_layer: int = Field(1, ge=0, le=4, description="layers of the projection head that are kept")


class BaselineConfig(SupervisedConfig):
    """The student's network on the labels alone: what the whole recipe is measured against.

    The network is the student's: :meth:`RunConfig.resolved` fills the three fields in.
    """

    network: ResNetConfig | None = Field(None, description="the student's")
    head: HeadConfig | None = Field(None, description="the student's")
    from_head_layer: int = Field(0, ge=0, le=4, description="the student's")


class SelfTrainConfig(TrainConfig):
    """EMA-Teacher self-training."""

    enabled: bool = True
    steps: int | None = 400
    batch_size: int = Field(64, ge=2, description="labelled images a step")
    ratio: int = Field(4, ge=1, description="unlabelled images for each labelled one (mu)")
    threshold: Probability = Field(0.7, description="confidence above which a pseudo-label counts")
    unlabelled_weight: float = Field(1.0, ge=0, description="weight of the unlabelled loss (lambda)")
    average: float = Field(0.98, ge=0, lt=1, description="decay of the teacher")
    align: bool = Field(True, description="distribution alignment with the labelled prior")


class PropagateConfig(Section):
    """Spread the soft labels over the k-nearest-neighbour graph of the teacher's and the encoder's features."""

    neighbours: int = Field(10, ge=1)
    weight: float = Field(0.95, ge=0, lt=1, description="share that comes from the neighbours (alpha)")
    power: float = Field(3.0, ge=0, description="of the cosine similarity, as an edge's weight")
    pixels: float = Field(0.0, ge=0, description="length of the raw pixels' part of the features; networks have 1")
    temperature: Positive = Field(1.0, description="of what the graph gives; below 1 makes it sharper")


class PseudoLabelConfig(Section):
    """The teacher's soft labels for every training image."""

    teachers: Literal["last", "both"] = Field(
        "last", description="both: the mean of the fine-tuned and the self-trained teacher"
    )
    views: int = Field(0, ge=0, le=64, description="weak views averaged beside the evaluation view")
    temperature: Positive = Field(1.0, description="of the averaged prediction; below 1 makes it sharper")
    balance: bool = Field(False, description="scale the classes to the labelled prior (Sinkhorn)")
    propagate: PropagateConfig | None = None
    seed: Seed | None = Field(None, description="the run's seed unless set")


class DistillConfig(TrainConfig):
    """The student learns the teacher's soft labels (SimCLRv2, equations 2 and 3)."""

    epochs: float | None = 100
    network: ResNetConfig = ResNetConfig()
    init: Literal["scratch", "finetuned"] = Field(
        "scratch",
        description="finetuned: start from the fine-tuned teacher, whose network the student then has",
    )
    targets: Literal["soft_labels", "live_teacher"] = "soft_labels"
    temperature: Positive = 1.0
    alpha: Probability = Field(1.0, description="weight of distillation against the true labels")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
