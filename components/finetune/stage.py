"""Fine-tuning on the labelled subset: the teacher from a pretrained encoder, the baseline from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tenfold.augment.spec import parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.config import BaselineConfig, Description, FinetuneConfig, ResNetConfig, SupervisedConfig
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.models.heads import Classifier, SimCLRModel
from tenfold.models.saved import build, load_pretrained
from tenfold.ranks import share, world_size
from tenfold.training.device import prepare
from tenfold.training.loop import fit
from tenfold.training.objectives import Supervised
from tenfold.training.result import save_result
from tenfold.work import Work

CONFIGS = {"finetune": FinetuneConfig, "baseline": BaselineConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI. ``views``: of training. ``evaluation``: the view of serving.

    ``encoder``: pretrained folder; None trains a network from nothing.
    """

    dataset: str
    views: str
    evaluation: str
    encoder: Path | None


@dataclass(frozen=True)
class Outputs:
    """``classifier``: folder of the trained classifier."""

    classifier: Path


def run(config: SupervisedConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Train all layers on the labelled images.

    With an encoder, the first ``from_head_layer`` layers of its projection head stay part of the network
    (SimCLRv2, section 2: fine-tuning from a middle layer), and the classifier on top starts at zero.
    """
    device = prepare(work.environment)
    seed = config.seed or 0
    spec, evaluation = parse_spec(inputs.views), parse_spec(inputs.evaluation)
    assert evaluation.evaluation is not None
    reader = SplitReader(open_dataset(inputs.dataset), "labelled", work.cache)
    torch.manual_seed(seed)
    common = {"kind": "classifier", "classes": reader.classes, "image_size": spec.image_size,
              "evaluation": evaluation.evaluation}  # fmt: skip
    if inputs.encoder is None:
        assert isinstance(config, BaselineConfig)
        description = Description(
            network=config.network or ResNetConfig(), head=config.head, layer=config.from_head_layer, **common
        )
    else:
        pretrained, origin = load_pretrained(inputs.encoder)
        assert isinstance(config, FinetuneConfig)
        description = Description(network=origin.network, head=origin.head, layer=config.from_head_layer, **common)
    model = build(description)
    assert isinstance(model, Classifier)
    if inputs.encoder is not None:
        model.encoder.load_state_dict(pretrained.encoder.state_dict())
        if model.head is not None and isinstance(pretrained, SimCLRModel):
            kept = model.head.state_dict()
            model.head.load_state_dict({k: v for k, v in pretrained.head.state_dict().items() if k in kept})
        assert isinstance(config, FinetuneConfig)
        if config.frozen:
            model.freeze()
    if config.drop_path:
        from tenfold.models.vit import set_drop_path  # timm takes a second to load

        set_drop_path(model, config.drop_path)
    config = config.cut(len(reader), world_size())
    batch = share(config.batch_size, f"{work.stage}.batch_size", config.accumulate)
    stream = partial(ViewStream, reader, [spec], batch, seed, device, work.environment.threads)
    objective = Supervised(
        model, torch.from_numpy(reader.labels()), config.label_smoothing, config.average, mixup=config.mixup,
        cutmix=config.cutmix,
    )  # fmt: skip
    history = fit(objective, {"labelled": stream}, config, config.length(len(reader)), device, work, reader.classes)
    save_result(outputs.classifier, objective.result(), description, history, work)
