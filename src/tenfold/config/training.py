"""Optimizers, and what each training stage does."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from tenfold.config.base import Positive, Probability, Section, Seed
from tenfold.config.networks import DecoderConfig, HeadConfig, Network, ResNetConfig

Momentum = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """Optimizer and its schedule: linear warm-up, then a cosine to ``least``."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    learning_rate: Positive = 0.3
    scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="of the learning rate with the batch: none, lr*B/256, lr*sqrt(B)"
    )
    momentum: Probability = 0.9
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="of adamw")
    decay_classifier: bool = Field(False, description="adamw's weight decay is for the classifier's kernel as well")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor of the learning rate from a layer to the one below")
    least: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup: Probability = Field(0.05, description="share of the steps")
    warmup_epochs: float | None = Field(None, ge=0, description="instead of the share")


#: How long a training is.
Steps = Annotated[int, Field(ge=1, le=10**9)]
Epochs = Annotated[float, Field(gt=0, le=10**6)]


class Length(NamedTuple):
    """Steps in all, and those of them over which the learning rate rises."""

    steps: int
    warmup: int


class TrainConfig(Section):
    """What every training stage has."""

    batch_size: int = Field(256, ge=2)
    steps: Steps | None = None
    epochs: Epochs | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the networks' products; weights, norms and losses stay float32. auto: bfloat16 where a run of "
        "more than a minute gains by it",
    )
    compile: Literal["auto", "never", "always"] = Field(
        "auto", description="by torch.compile; auto: where it is faster and the run long enough to pay for it"
    )
    accumulate: int = Field(
        1, ge=1, description="parts that a process passes its batch in; each has its own negatives and batch norm"
    )
    checkpoint_activations: bool = Field(
        False, description="compute a residual block's insides again in the backward pass instead of keeping them"
    )
    sharding: Literal["none", "full"] = Field(
        "none", description="full: weights, gradients and optimizer are spread over the processes (FSDP2)"
    )
    batch_norm: Literal["global", "local"] = Field(
        "global", description="over all processes, as in the papers, or each for itself"
    )
    deterministic: bool | None = Field(None, description="the run's unless set")
    seed: Seed | None = Field(None, description="the run's seed unless set")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs")
        if self.sharding == "full" and self.compile == "always":
            raise ValueError("sharding is full, so compile cannot be always")
        return self

    @model_validator(mode="after")
    def _whole_parts(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size is {self.batch_size}, which accumulate={self.accumulate} cannot cut evenly")
        return self

    def cut(self, images: int, processes: int = 1) -> Self:
        """Return the same with a batch no larger than ``images``, so that no batch holds an image twice.

        A batch that is cut stays one that ``processes`` share evenly, in as many parts as ``accumulate`` says.
        """
        if self.batch_size <= images:
            return self
        least = processes * self.accumulate
        return self.model_copy(update={"batch_size": max(images // least * least, least, 2)})

    def length(self, images: int, batch_size: int | None = None) -> Length:
        """Return the number of steps over ``images``, of which each step takes ``batch_size`` (default: the batch).

        As the official SimCLR code counts: ``epochs`` over N images in batches of B are N·epochs // B + 1 steps, and
        a warm-up in epochs is rounded down to a step.
        """
        batch = batch_size or self.batch_size
        steps = self.steps or int(images * (self.epochs or 0) // batch) + 1
        if self.optimizer.warmup_epochs is None:
            return Length(steps, round(self.optimizer.warmup * steps))
        return Length(steps, min(steps, round(self.optimizer.warmup_epochs * images // batch)))


class MemoryConfig(Section):
    """MoCo's memory: a momentum encoder, and a queue of the keys that it made (SimCLRv2, section 2)."""

    size: int = Field(65_536, ge=1, description="keys that are kept; at most a quarter of the images makes sense")
    momentum: float = Field(0.999, ge=0, lt=1, description="decay of the momentum encoder")


class KeptEncoderConfig(Section):
    """An encoder that is there already: imported, or of an earlier run."""

    path: str = Field(description="folder or s3:// prefix with model.json and model.safetensors")
    digest: str | None = Field(None, description="filled in by preflight: the sha256 of its description")


class InitConfig(KeptEncoderConfig):
    """An encoder that pretraining starts from."""

    skip: bool = Field(False, description="take it as it is, without pretraining")


class MAEConfig(Section):
    """Masked autoencoding (He et al. 2022): what is hidden, and what draws it."""

    mask: float = Field(0.75, gt=0, lt=1, description="share of the patches that is hidden")
    decoder: DecoderConfig = DecoderConfig()
    normalise: bool = Field(True, description="each patch's pixels to mean 0 and variance 1 before they are compared")


class PretrainConfig(TrainConfig):
    """SimCLR, or masked autoencoding, on all training images."""

    enabled: bool = Field(True, description="false: no pretraining, fine-tuning starts from a fresh network")
    method: Literal["simclr", "mae"] = "simclr"
    epochs: Epochs | None = 100
    network: Network = Field(ResNetConfig(), description="with init: the one that is there")
    head: HeadConfig = Field(HeadConfig(), description="with init: its own, if it has one")
    temperature: Positive = 0.5
    memory: MemoryConfig | None = None
    mae: MAEConfig = MAEConfig()
    init: InitConfig | None = None
    watch: int = Field(0, ge=0, description="how many times kNN accuracy, alignment and uniformity are measured")
    keep: Literal["last", "best"] = Field(
        "last",
        description="best: of the watched points, one that beats the last by more than a standard error",
    )

    @property
    def watched(self) -> bool:
        """Whether labelled images are looked at."""
        return self.watch > 0 and self.trains

    @property
    def trains(self) -> bool:
        """Whether anything is trained, or else the network passed on as it is."""
        return self.enabled and not (self.init and self.init.skip)

    @model_validator(mode="after")
    def _chosen(self) -> PretrainConfig:
        if self.keep == "best" and not self.watch:
            raise ValueError("keep is best, so watch must say how many points there are to choose from")
        return self

    @model_validator(mode="after")
    def _of_the_method(self) -> PretrainConfig:
        if not self.enabled and self.init is not None:
            raise ValueError("enabled is false, so there can be no init; init.skip takes an encoder as it is")
        if self.method == "mae" and self.memory is not None:
            raise ValueError("method is mae, which has no memory; leave memory out")
        if self.method == "mae" and isinstance(self.network, ResNetConfig) and self.init is None:
            raise ValueError(
                "method is mae, which hides patches: it needs a transformer, for example network.vit=small"
            )
        return self


class SupervisedConfig(TrainConfig):
    """Training on the labelled subset."""

    steps: Steps | None = 200
    batch_size: int = Field(64, ge=2)
    label_smoothing: Probability = 0.0
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of the Beta distribution that shares are drawn from")
    cutmix: float = Field(0.0, ge=0, le=10, description="alpha for CutMix; with both, half of the batches each")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of a transformer's last block")
    average: float = Field(
        0.0, ge=0, lt=1,
        description="decay of the weights' moving average, at step n (1 + n) / (10 + n) where that is less; 0: none",
    )  # fmt: skip


class FinetuneConfig(SupervisedConfig):
    """The teacher: from the pretrained encoder, on the labelled subset."""

    from_head_layer: int = Field(1, ge=0, le=8, description="layers of the projection head that are kept")
    frozen: bool = Field(False, description="linear evaluation: train the classifier alone, batch norm as it is")


class BaselineConfig(SupervisedConfig):
    """The student's network on the labels alone: what the whole recipe is measured against.

    The network is the student's: :meth:`RunConfig.resolved` fills the three fields in.
    """

    network: Network | None = Field(None, description="the student's")
    head: HeadConfig | None = Field(None, description="the student's")
    from_head_layer: int = Field(0, ge=0, le=8, description="the student's")


class SelfTrainConfig(TrainConfig):
    """Self-training on the unlabelled images: EMA-Teacher (Semi-ViT), and what it is compared with."""

    enabled: bool = True
    method: Literal["ema_teacher", "fixmatch", "pseudo_label"] = Field(
        "ema_teacher",
        description="who labels weak views: the student's moving average, the student itself, or the fine-tuned "
        "teacher as it is",
    )
    steps: Steps | None = 400
    batch_size: int = Field(64, ge=2, description="labelled images a step")
    ratio: int = Field(4, ge=1, description="unlabelled images for each labelled one (mu)")
    threshold: Probability = Field(0.7, description="confidence above which a pseudo-label counts")
    unlabelled_weight: float = Field(1.0, ge=0, description="weight of the unlabelled loss (lambda)")
    average: float | None = Field(
        None, gt=0, lt=1,
        description="decay of the weights' moving average, which is the result. Unless set, ema_teacher's, which "
        "labels too, has a half-life of 7% of the steps, and the other methods yield the student",
    )  # fmt: skip
    patience: int = Field(200, ge=1, description="steps in a row without a pseudo-label after which it stops")
    align: Literal["none", "labelled", "estimated"] = Field(
        "labelled",
        description="distribution alignment of the guesses with the labels' class shares, or with the shares that the "
        "fine-tuned teacher's guesses tell of the unlabelled images",
    )
    label_smoothing: Probability = Field(0.0, description="of true and of mixed pseudo-labels")
    mixup: float = Field(0.0, ge=0, le=10, description="of labelled images, as in finetune")
    cutmix: float = Field(0.0, ge=0, le=10, description="of labelled images, as in finetune")
    pseudo_mixup: bool = Field(False, description="mix pseudo-labelled images by how sure their labels are")
    pseudo_cutmix: Probability = Field(0.5, description="share of these that is mixed by CutMix")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of a transformer's last block")
    foreign: float = Field(
        0.0, ge=0, le=0.5,
        description="filter for images of no known class: share of the known ones that may be lost by it; 0: none",
    )  # fmt: skip
    monitor: int = Field(
        10, ge=0, description="times that the pseudo-labels' health is measured; where they harm, training ends and "
        "the best teacher is kept; 0: never"
    )  # fmt: skip

    def decay(self, steps: int) -> float:
        """Return the moving average's decay in a training of that many steps; 0: there is none."""
        if self.average is not None:
            return self.average
        return float(0.5 ** (1 / max(1.0, 0.07 * steps))) if self.method == "ema_teacher" else 0.0


class PropagateConfig(Section):
    """Spread the soft labels over the k-nearest-neighbour graph of the teacher's and the encoder's features."""

    neighbours: int = Field(10, ge=1)
    weight: float = Field(0.95, ge=0, lt=1, description="share that comes from the neighbours (alpha)")
    power: float = Field(3.0, ge=0, description="of the cosine similarity, as an edge's weight")
    pixels: float = Field(0.0, ge=0, description="length of the raw pixels' part of the features; networks have 1")
    temperature: Positive = Field(1.0, description="of what the graph gives; below 1 makes it sharper")


class PseudoLabelConfig(Section):
    """The teacher's soft labels for every training image."""

    enabled: bool = Field(True, description="the run's: false where nothing is distilled")
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

    enabled: bool | None = Field(
        None, description="false: the teacher is the student; unless set, method simclrv2 distils and semi_vit does not"
    )
    epochs: Epochs | None = 100
    network: Network = ResNetConfig()
    init: Literal["scratch", "finetuned"] = Field(
        "scratch",
        description="finetuned: start from the fine-tuned teacher, whose network the student then has",
    )
    targets: Literal["soft_labels", "live_teacher"] = "soft_labels"
    images: Literal["all", "labelled"] = Field("all", description="training images that it learns from")
    temperature: Positive = 1.0
    alpha: Probability = Field(1.0, description="weight of distillation against the true labels")
    average: float = Field(
        0.0, ge=0, lt=1,
        description="decay of the weights' moving average, at step n (1 + n) / (10 + n) where that is less; 0: none",
    )  # fmt: skip
