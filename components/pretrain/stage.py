"""Pretraining: SimCLR on every training image, without labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tenfold.augment.spec import parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.config import PretrainConfig
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.models.heads import SimCLRModel
from tenfold.models.saved import Description, build, save
from tenfold.training.device import prepare
from tenfold.training.loop import fit
from tenfold.training.objectives import Contrastive
from tenfold.work import Work

CONFIGS = {"pretrain": PretrainConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI. ``views``: the contrastive view's specification."""

    dataset: str
    views: str


@dataclass(frozen=True)
class Outputs:
    """``encoder``: folder of the encoder with its projection head."""

    encoder: Path


def run(config: PretrainConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Train encoder and projection head with NT-Xent (SimCLR, section 2; head after SimCLRv2)."""
    device = prepare(work.environment)
    seed = config.seed or 0
    spec = parse_spec(inputs.views)
    reader = SplitReader(open_dataset(inputs.dataset), "unlabelled", work.cache)
    torch.manual_seed(seed)
    description = Description(kind="simclr", network=config.network, head=config.head, image_size=spec.image_size)
    model = build(description)
    assert isinstance(model, SimCLRModel)
    config = config.cut(len(reader))
    stream = partial(ViewStream, reader, [spec, spec], config.batch_size, seed, device, work.environment.threads)
    history = fit(
        Contrastive(model, config.temperature),
        {"train": stream},
        config,
        config.length(len(reader)),
        device,
        work,
    )
    save(outputs.encoder, model, description)
    (outputs.encoder / "history.json").write_text(json.dumps(history))
    work.tracker.artifact(outputs.encoder, "encoder")
