"""The configuration of a run: one frozen pydantic model a stage, composed into :class:`RunConfig`.

A YAML preset or file gives the values that differ from the defaults; ``--set a.b=c`` changes single ones.
:func:`load_config` reports every fault at once. Each stage is handed :meth:`RunConfig.stage_strings`' one
canonical JSON string, which holds the fields that decide that stage's result and nothing else, so that a
changed field reruns what depends on it and nothing before it.
"""

from tenfold.config.augment import AugmentConfig, FeedsConfig
from tenfold.config.base import Section
from tenfold.config.data import DataConfig, LabelsConfig, ShrinkConfig, SplitConfig
from tenfold.config.idle import idle, leaves
from tenfold.config.loading import changed, compose, load_config
from tenfold.config.networks import (
    DecoderConfig,
    Description,
    HeadConfig,
    Network,
    ResNetConfig,
    TimmConfig,
    ViTConfig,
)
from tenfold.config.presets import About, about_preset, load_preset, preset_names
from tenfold.config.run import SECTIONS, STAGES, EvaluateConfig, PromoteConfig, RetrainConfig, RunConfig
from tenfold.config.training import (
    BaselineConfig,
    DistillConfig,
    FinetuneConfig,
    InitConfig,
    KeptEncoderConfig,
    Length,
    MAEConfig,
    MemoryConfig,
    OptimizerConfig,
    PretrainConfig,
    PropagateConfig,
    PseudoLabelConfig,
    SelfTrainConfig,
    SupervisedConfig,
    TrainConfig,
)
from tenfold.config.views import (
    AffineConfig,
    BlurConfig,
    CropConfig,
    EraseConfig,
    EvalViewConfig,
    JitterConfig,
    PixelsConfig,
    RandAugmentConfig,
    ViewConfig,
    channels_of,
)

__all__ = [
    "SECTIONS",
    "STAGES",
    "About",
    "AffineConfig",
    "AugmentConfig",
    "BaselineConfig",
    "BlurConfig",
    "CropConfig",
    "DataConfig",
    "DecoderConfig",
    "Description",
    "DistillConfig",
    "EraseConfig",
    "EvalViewConfig",
    "EvaluateConfig",
    "FeedsConfig",
    "FinetuneConfig",
    "HeadConfig",
    "InitConfig",
    "JitterConfig",
    "KeptEncoderConfig",
    "LabelsConfig",
    "Length",
    "MAEConfig",
    "MemoryConfig",
    "Network",
    "OptimizerConfig",
    "PixelsConfig",
    "PretrainConfig",
    "PromoteConfig",
    "PropagateConfig",
    "PseudoLabelConfig",
    "RandAugmentConfig",
    "ResNetConfig",
    "RetrainConfig",
    "RunConfig",
    "Section",
    "SelfTrainConfig",
    "ShrinkConfig",
    "SplitConfig",
    "SupervisedConfig",
    "TimmConfig",
    "TrainConfig",
    "ViTConfig",
    "ViewConfig",
    "about_preset",
    "changed",
    "channels_of",
    "compose",
    "idle",
    "leaves",
    "load_config",
    "load_preset",
    "preset_names",
]
