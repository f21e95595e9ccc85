"""Pretraining on every training image, without labels: SimCLR or masked autoencoding; or an encoder that is there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tenfold.augment.spec import parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.config import Description, HeadConfig, InitConfig, Length, PretrainConfig, ViTConfig
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.inference import evaluation_images
from tenfold.models.heads import SimCLRModel
from tenfold.models.saved import Pretrained, build_pretrained, load_kept
from tenfold.ranks import share, world_size
from tenfold.training.device import prepare
from tenfold.training.loop import fit
from tenfold.training.objectives import Contrastive, Masked
from tenfold.training.result import save_result
from tenfold.training.state import History
from tenfold.training.watch import Watch
from tenfold.work import Work

CONFIGS = {"pretrain": PretrainConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: URI of the images. ``views``: the specification of the contrastive or masked view.

    ``evaluation``: the view of serving. ``watched``: URI of the data set whose labelled images tell how well the
    features do, where the configuration asks for that.
    """

    dataset: str
    views: str
    evaluation: str
    watched: str | None = None


@dataclass(frozen=True)
class Outputs:
    """``encoder``: folder of the encoder with its projection head or decoder."""

    encoder: Path


def run(config: PretrainConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Train encoder and projection head with NT-Xent (SimCLR, section 2; head and memory after SimCLRv2), or masked.

    Where ``config.enabled`` is false the network is passed on as it is made (Semi-ViT without pretraining).

    Raises:
        DataError: the encoder to start from is not there, or is another than preflight saw.
    """
    device = prepare(work.environment)
    seed = config.seed or 0
    spec, evaluation = parse_spec(inputs.views), parse_spec(inputs.evaluation)
    assert evaluation.evaluation is not None
    reader = SplitReader(open_dataset(inputs.dataset), "unlabelled", work.cache)
    torch.manual_seed(seed)
    masks = config.method == "mae"
    common = {"network": config.network, "image_size": spec.image_size, "evaluation": evaluation.evaluation}
    if masks and config.enabled:
        description = Description(kind="mae", decoder=config.mae.decoder, **common)
    else:
        head = HeadConfig(layers=0) if masks else config.head
        description = Description(kind="simclr", head=head, trained=config.enabled, **common)
    if config.init is None:
        model = build_pretrained(description)
    else:
        model, description = _start(config.init, description, work)
    history: History = []
    if not config.enabled:
        work.reporter.note("switched off; fine-tuning starts from a fresh network")
    if config.trains:
        config = config.cut(len(reader), world_size())
        length = config.length(len(reader))
        _warn(config, len(reader), length, work)
        watch = None
        if config.watch:
            assert inputs.watched is not None
            labelled = SplitReader(open_dataset(inputs.watched), "labelled", work.cache)
            images = evaluation_images(labelled, evaluation)
            watch = Watch(model, images, labelled.labels(), config.watch, keep_best=config.keep == "best")
        batch = share(config.batch_size, "pretrain.batch_size", config.accumulate)
        objective: Contrastive | Masked
        if isinstance(model, SimCLRModel):
            views, objective = [spec, spec], Contrastive(model, config.temperature, config.memory, watch)
        else:
            views, objective = [spec], Masked(model, config.mae.mask, watch, normalise=config.mae.normalise)
        stream = partial(ViewStream, reader, views, batch, seed, device, work.environment.threads)
        history = fit(objective, {"train": stream}, config, length, device, work)
        kept = objective.result()
        if kept is not model:
            work.reporter.note("an earlier point's features tell the labelled images better; that one is kept")
        model = kept
    save_result(outputs.encoder, model, description, history, work)


def _start(init: InitConfig, description: Description, work: Work) -> tuple[Pretrained, Description]:
    """Fetch the encoder to start from; what it lacks for the training that is wanted is made anew."""
    model, known = load_kept(init.path, init.digest or "", work.cache / "init")
    if isinstance(known.network, ViTConfig) and known.image_size != description.image_size:
        raise DataError(
            f"{init.path} is a transformer for images of side {known.image_size}, and augment.image_size is "
            f"{description.image_size}; `tenfold import-checkpoint --image-size` makes one for another side"
        )
    known = known.model_copy(
        update={"image_size": description.image_size, "evaluation": description.evaluation, "weights": None}
    )
    headless = known.head == HeadConfig(layers=0) and description.head != known.head
    if not init.skip and (headless or known.kind != description.kind):
        known = known.model_copy(
            update={"kind": description.kind, "head": description.head, "decoder": description.decoder}
        )
        fresh = build_pretrained(known)
        fresh.encoder.load_state_dict(model.encoder.state_dict())
        model = fresh
    return model, known


def _warn(config: PretrainConfig, images: int, length: Length, work: Work) -> None:
    """Warn of a memory that does not fit the run."""
    if config.memory is None:
        return
    if config.memory.size > images / 4:
        work.reporter.warn(
            f"pretrain.memory.size is {config.memory.size:,} for {images:,} images: an image then meets its own "
            f"earlier views as negatives; at most a quarter, {images // 4:,}, makes sense"
        )
    decay = config.memory.momentum
    half_life = math.log(0.5) / math.log(decay) if decay > 0 else 0.0
    if half_life > 0.1 * length.steps:
        better = 0.5 ** (1 / (0.07 * length.steps))
        work.reporter.warn(
            f"pretrain.memory.momentum is {decay}: after {half_life:.0f} of {length.steps} steps the momentum encoder "
            f"still is half its start; {better:.4f} would be a half-life of 7% of the run"
        )
