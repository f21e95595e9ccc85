"""The configuration of a run: one frozen pydantic model a stage, composed into :class:`RunConfig`.

A YAML preset or file gives the values that differ from the defaults below; ``--set a.b=c`` changes single
ones. :func:`load_config` reports every fault at once. Each stage is handed
:meth:`RunConfig.stage_strings`' one canonical JSON string, which holds the fields that decide that stage's
result and nothing else, so that a changed field reruns what depends on it and nothing before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tenfold.errors import ConfigError, did_you_mean
from tenfold.fingerprint import canonical_json

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError("a range goes from low to high, and not below 0")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, BeforeValidator(str), Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- data ---------------------------------------------------------------------------------------------


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


class DataConfig(Section):
    """The images: where they are, which are labelled, which are for testing."""

    source: str = Field("digits", description="'digits', a folder, or s3://bucket/prefix")
    annotations: str | None = Field(None, description="CSV in the source with the columns path, label, split")
    labels: LabelsConfig = LabelsConfig()
    split: SplitConfig = SplitConfig()
    shard_images: int = Field(4096, ge=1, description="a shard ends at this many images")
    shard_bytes: int = Field(256_000_000, ge=1, description="or at this many bytes, whichever comes first")
    max_bad_fraction: Probability = Field(0.05, description="share of unreadable images that stops the run")
    allow_leaks: bool = Field(False, description="go on where the same image is for training and for testing")
    max_pixels: int = Field(64_000_000, ge=1, description="larger images are refused from their header")


# --- views --------------------------------------------------------------------------------------------


class CropConfig(Section):
    """Random resized crop: share of the area and aspect ratio, both drawn uniformly (aspect in the log)."""

    area: Range = (0.08, 1.0)
    aspect: Range = (3 / 4, 4 / 3)


class AffineConfig(Section):
    """Random rotation (degrees), translation (share of the side), scale and shear (degrees)."""

    probability: Probability = 1.0
    rotate: float = Field(0.0, ge=0)
    translate: float = Field(0.0, ge=0, lt=1)
    scale: Range = (1.0, 1.0)
    shear: float = Field(0.0, ge=0, lt=90)


class JitterConfig(Section):
    """Colour jitter after SimCLR: factors drawn from 1 ± strength, hue as a share of the circle."""

    probability: Probability = 0.8
    brightness: float = Field(0.8, ge=0)
    contrast: float = Field(0.8, ge=0)
    saturation: float = Field(0.8, ge=0)
    hue: float = Field(0.2, ge=0, le=0.5)


class BlurConfig(Section):
    """Gaussian blur with a standard deviation drawn uniformly, in pixels."""

    probability: Probability = 0.5
    sigma: Range = (0.1, 2.0)


class EraseConfig(Section):
    """Random erasing: one rectangle of the given share of the area becomes black."""

    probability: Probability = 0.25
    area: Range = (0.02, 0.2)


class ViewConfig(Section):
    """One random view; operations happen in the order of the fields, an absent one not at all."""

    crop: CropConfig | None = CropConfig()
    flip: Probability = Field(0.5, description="probability of a horizontal flip; 0 for digits and text")
    affine: AffineConfig | None = None
    jitter: JitterConfig | None = None
    grayscale: Probability = 0.0
    blur: BlurConfig | None = None
    erase: EraseConfig | None = None


class EvalViewConfig(Section):
    """The one view of evaluation and serving: central crop of a share of the shorter side, then resize."""

    crop_proportion: float = Field(0.875, gt=0, le=1)


class AugmentConfig(Section):
    """Every view that a run uses."""

    backend: Literal["auto", "dali", "torchvision"] = "auto"
    image_size: int = Field(32, ge=8, le=1024, description="side of a view in pixels")
    contrastive: ViewConfig = ViewConfig(jitter=JitterConfig(), grayscale=0.2, blur=BlurConfig())
    weak: ViewConfig = ViewConfig()
    strong: ViewConfig = ViewConfig(jitter=JitterConfig(), grayscale=0.2)
    evaluation: EvalViewConfig = EvalViewConfig()
    baseline: Literal["weak", "strong"] = Field("weak", description="view that the baseline trains on")
    finetune: Literal["weak", "strong"] = Field("weak", description="view that fine-tuning trains on")
    distill: Literal["weak", "strong"] = Field("weak", description="view that the student trains on")


# --- models and training ------------------------------------------------------------------------------


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


class EvaluateConfig(Section):
    """The ladder on the test split."""

    bootstrap: int = Field(2000, ge=100, description="resamples for the intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    neighbours: int = Field(10, ge=1, description="of the graphs for label spreading and propagation")
    inverse_regularization: Positive = Field(1.0, description="C of the logistic regressions")
    seed: Seed | None = Field(None, description="the run's seed unless set")


class PromoteConfig(Section):
    """The gate to the alias ``champion``."""

    model: Name = Field("tenfold-student", description="name in the MLflow registry")
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

        Each stage's seed is the run's unless set, and the baseline's network is the student's.
        """
        update: dict[str, Any] = {}
        for name in STAGES:
            section = getattr(self, SECTIONS[name])
            if "seed" in type(section).model_fields and section.seed is None:
                update[SECTIONS[name]] = section.model_copy(update={"seed": self.seed})
        if not self.self_train.enabled:  # then nothing else of it decides anything
            update["self_train"] = SelfTrainConfig(enabled=False, seed=0)
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


# --- loading ------------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """Return the names of the presets that are installed."""
    folder = files("tenfold") / "pipelines" / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """Return a preset's values.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in preset_names():
        hint = did_you_mean(name, preset_names()) or "."
        raise ConfigError(f"there is no preset '{name}'{hint} Presets: {', '.join(preset_names())}")
    text = (files("tenfold") / "pipelines" / "presets" / f"{name}.yaml").read_text()
    return _mapping(text, f"preset '{name}'")


def compose(
    preset: str | None, file: Path | None, text: str, assignments: Iterable[str]
) -> tuple[str | None, dict[str, Any]]:
    """Put what the user gave on top of each other: file, then YAML text, then single assignments.

    Args:
        preset: name of a preset, or None.
        file: YAML file; a key ``preset`` in it names what it builds on.
        text: YAML mapping, as a pipeline's ``overrides`` parameter gives it; may name a preset too.
        assignments: ``a.b=c`` strings; the value is read as YAML.

    Returns:
        The preset's name, and the values that change it.

    Raises:
        ConfigError: a file is missing or no mapping, or an assignment has no ``=``.
    """
    layers: list[dict[str, Any]] = []
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"there is no configuration file {file}")
        layers.append(_mapping(_text(file), str(file)))
    if text.strip():
        layers.append(_mapping(text, "overrides"))
    for layer in layers:
        if "preset" in layer:
            preset = str(layer.pop("preset"))
    layers.append(_assigned(assignments))
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    return preset, merged


def load_config(
    preset: str | None = None, file: Path | None = None, text: str = "", assignments: Iterable[str] = ()
) -> RunConfig:
    """Return the run's configuration: a preset (or the defaults) with what :func:`compose` puts on top.

    Raises:
        ConfigError: names every fault and where it stands.
    """
    base, values = compose(preset, file, text, assignments)
    merged = load_preset(base) if base else {}
    _merge(merged, values)
    for section in merged.values():
        # A length in one unit replaces the default in the other.
        if isinstance(section, dict) and section.get("steps") is not None:
            section.setdefault("epochs", None)
        elif isinstance(section, dict) and section.get("epochs") is not None:
            section.setdefault("steps", None)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as UTF-8 text: {error}") from None


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no valid YAML: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping of sections, not a {type(value).__name__}")
    return value


def _assigned(assignments: Iterable[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    faults = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not all(path.split(".")):
            faults.append(f"'{assignment}' is not of the form section.key=value")
            continue
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        *parents, last = path.strip().split(".")
        _merge(result, _nested(parents, {last: parsed}))
    if faults:
        raise ConfigError("\n".join(faults))
    return result


def _nested(parents: list[str], leaf: dict[str, Any]) -> dict[str, Any]:
    for parent in reversed(parents):
        leaf = {parent: leaf}
    return leaf


#: Keys of which a section takes one.
_ALTERNATIVES = (frozenset({"steps", "epochs"}), frozenset({"per_class", "fraction", "file"}))


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping):
            held = base.get(key)
            base[key] = held = dict(held) if isinstance(held, dict) else {}
            _merge(held, value)
        else:
            base[key] = value
            if value is None:
                continue
            for others in (group - {key} for group in _ALTERNATIVES if key in group):
                for other in others - set(over):  # a later layer's choice ends an earlier layer's other one
                    base.pop(other, None)


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _fields_at(fault["loc"][:-1])
            hint = did_you_mean(str(fault["loc"][-1]), known) or f"; known here: {', '.join(known)}"
            lines.append(f"{path}: there is no such key{hint}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = fault.get("input")
            shown = f" (given: {given!r})" if not isinstance(given, dict | BaseModel) else ""
            lines.append(f"{path or 'configuration'}: {message[0].lower()}{message[1:]}{shown}")
    head = "the configuration has a fault:" if len(lines) == 1 else f"the configuration has {len(lines)} faults:"
    return "\n".join([head, *(f"  {line}" for line in lines)])


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    model: Any = RunConfig
    for part in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields):
            return []
        annotation = model.model_fields[str(part)].annotation
        options = [annotation, *get_args(annotation)] if get_origin(annotation) else [annotation]
        options += [inner for option in options for inner in get_args(option)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
