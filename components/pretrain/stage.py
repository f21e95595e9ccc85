"""Pretraining: SimCLR on every training image, without labels; or an encoder that is there already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tenfold.augment.spec import parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.config import Description, HeadConfig, InitConfig, Length, PretrainConfig
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.inference import evaluation_images
from tenfold.fingerprint import digest
from tenfold.models.heads import SimCLRModel
from tenfold.models.saved import DESCRIPTION, WEIGHTS, build, load
from tenfold.ranks import share, world_size
from tenfold.storage import open_store
from tenfold.training.device import prepare
from tenfold.training.loop import fit
from tenfold.training.objectives import Contrastive
from tenfold.training.result import save_result
from tenfold.training.state import History
from tenfold.training.watch import Watch
from tenfold.work import Work

CONFIGS = {"pretrain": PretrainConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: URI of the images. ``views``: the contrastive view's specification.

    ``evaluation``: the view of serving. ``watched``: URI of the data set whose labelled images tell how well the
    features do, where the configuration asks for that.
    """

    dataset: str
    views: str
    evaluation: str
    watched: str | None = None


@dataclass(frozen=True)
class Outputs:
    """``encoder``: folder of the encoder with its projection head."""

    encoder: Path


def run(config: PretrainConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Train encoder and projection head with NT-Xent (SimCLR, section 2; head and memory after SimCLRv2).

    Raises:
        DataError: the encoder to start from is not there, or is another than preflight saw.
    """
    device = prepare(work.environment)
    seed = config.seed or 0
    spec, evaluation = parse_spec(inputs.views), parse_spec(inputs.evaluation)
    assert evaluation.evaluation is not None
    reader = SplitReader(open_dataset(inputs.dataset), "unlabelled", work.cache)
    torch.manual_seed(seed)
    description = Description(
        kind="simclr", network=config.network, head=config.head, image_size=spec.image_size,
        evaluation=evaluation.evaluation,
    )  # fmt: skip
    if config.init is None:
        model = build(description)
    else:
        model, description = _start(config.init, description, work)
    assert isinstance(model, SimCLRModel)
    history: History = []
    if config.init is None or not config.init.skip:
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
        stream = partial(ViewStream, reader, [spec, spec], batch, seed, device, work.environment.threads)
        objective = Contrastive(model, config.temperature, config.memory, watch)
        history = fit(objective, {"train": stream}, config, length, device, work)
        kept = objective.result()
        if kept is not model:
            work.reporter.note("an earlier point's features tell the labelled images better; that one is kept")
        model = kept
    save_result(outputs.encoder, model, description, history, work)


def _start(init: InitConfig, description: Description, work: Work) -> tuple[SimCLRModel, Description]:
    """Fetch the encoder to start from; a head that it lacks is made anew."""
    store, folder = open_store(init.path), work.cache / "init" / (init.digest or "unknown")
    if digest(store.read(DESCRIPTION).decode()) != init.digest:
        raise DataError(f"the encoder in {init.path} is another than preflight saw; run again")
    # several processes fetch at once: each file comes whole under its name, and what is there stays
    described, weights = store.fetch(DESCRIPTION, folder), store.fetch(WEIGHTS, folder)
    try:
        model, known = load(described.parent)
    except DataError as error:
        if weights.is_relative_to(folder):
            weights.unlink(missing_ok=True)
        raise DataError(f"the encoder in {init.path} cannot be used: {error}") from None
    if not isinstance(model, SimCLRModel):
        raise DataError(f"{init.path} holds a classifier; pretraining starts from an encoder")
    known = known.model_copy(
        update={"image_size": description.image_size, "evaluation": description.evaluation, "weights": None}
    )
    if not init.skip and known.head == HeadConfig(layers=0) and description.head != known.head:
        known = known.model_copy(update={"head": description.head})
        fresh = build(known)
        assert isinstance(fresh, SimCLRModel)
        fresh.encoder = model.encoder
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
