"""Self-training: an EMA teacher labels the unlabelled images for its own student (Semi-ViT)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tenfold.augment.spec import parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.config import SelfTrainConfig
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.models.saved import load_classifier
from tenfold.ranks import rank, share, world_size
from tenfold.training.device import prepare
from tenfold.training.loop import fit
from tenfold.training.objectives import SelfTraining
from tenfold.training.result import save_result
from tenfold.work import Work

CONFIGS = {"self_train": SelfTrainConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI. ``weak`` and ``strong``: the views. ``teacher``: the fine-tuned classifier."""

    dataset: str
    weak: str
    strong: str
    teacher: Path


@dataclass(frozen=True)
class Outputs:
    """``teacher``: folder of the self-trained classifier."""

    teacher: Path


def run(config: SelfTrainConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Self-train the teacher with its own moving average as the labeller, and keep the average.

    Where ``config.enabled`` is false the teacher is passed on as it is (kfp.local cannot choose between the
    artifacts of two branches).

    Raises:
        DataError: teacher and data set differ in their classes.
    """
    if not config.enabled:
        work.reporter.note("switched off; the fine-tuned teacher is passed on")
        if rank() == 0:
            shutil.copytree(inputs.teacher, outputs.teacher, dirs_exist_ok=True)
        return
    device = prepare(work.environment)
    seed, threads = config.seed or 0, work.environment.threads
    weak, strong = parse_spec(inputs.weak), parse_spec(inputs.strong)
    dataset = open_dataset(inputs.dataset)
    labelled = SplitReader(dataset, "labelled", work.cache)
    unlabelled = SplitReader(dataset, "unlabelled", work.cache)
    model, description = load_classifier(inputs.teacher)
    if description.classes != labelled.classes:
        raise DataError(f"the teacher knows the classes {description.classes}, the data set {labelled.classes}")
    torch.manual_seed(seed)
    parts = world_size() * config.accumulate
    more = max(min(config.batch_size * config.ratio, len(unlabelled)) // parts, 1) * parts
    few, many = share(config.batch_size, "self_train.batch_size", config.accumulate), share(more)
    streams = {
        "labelled": partial(ViewStream, labelled, [strong], few, seed, device, threads),
        "unlabelled": partial(ViewStream, unlabelled, [weak, strong], many, seed + 1, device, threads),
    }
    objective = SelfTraining(
        model, torch.from_numpy(labelled.labels()), len(labelled.classes), config.threshold,
        config.unlabelled_weight, config.average, alignment=config.align,
        patience=config.patience,
    )  # fmt: skip
    length = config.length(len(unlabelled), more)
    history = fit(objective, streams, config, length, device, work, labelled.classes)
    save_result(outputs.teacher, objective.result(), description, history, work)
