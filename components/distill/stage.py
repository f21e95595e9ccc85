"""Distillation: a student learns the teacher's soft labels on training images (SimCLRv2, section 2)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from tenfold.augment.spec import parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.config import Description, DistillConfig
from tenfold.data.manifest import Dataset, open_dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.models.heads import Classifier
from tenfold.models.saved import build, load_classifier
from tenfold.ranks import rank, share, world_size
from tenfold.training.device import prepare
from tenfold.training.loop import fit
from tenfold.training.objectives import Distillation
from tenfold.training.result import save_result
from tenfold.work import Work

CONFIGS = {"distill": DistillConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI. ``views``: of training. ``evaluation``: the view of serving.

    ``soft_labels``: the teacher's. ``teacher``: itself, for ``targets: live_teacher``. ``finetuned``: where
    the student starts with ``init: finetuned``.
    """

    dataset: str
    views: str
    evaluation: str
    soft_labels: Path
    teacher: Path
    finetuned: Path


@dataclass(frozen=True)
class Outputs:
    """``student``: folder of the trained student."""

    student: Path


def run(config: DistillConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Train a student on soft labels, or on the live teacher's view of the very same pixels.

    Where ``config.enabled`` is false the teacher is passed on as the student.

    Raises:
        DataError: a classifier's classes, or what the soft labels were made for, are not the data set's.
    """
    if config.enabled is False:
        work.reporter.note("switched off; the teacher is the student")
        if rank() == 0:
            shutil.copytree(inputs.teacher, outputs.student, dirs_exist_ok=True)
        return
    device = prepare(work.environment)
    seed, threads = config.seed or 0, work.environment.threads
    spec, evaluation = parse_spec(inputs.views), parse_spec(inputs.evaluation)
    assert evaluation.evaluation is not None
    dataset = open_dataset(inputs.dataset)
    unlabelled = SplitReader(dataset, "unlabelled", work.cache)
    labelled = SplitReader(dataset, "labelled", work.cache)
    soft = read_soft_labels(inputs.soft_labels, dataset)
    teacher = None
    if config.targets == "live_teacher":
        teacher, known = load_classifier(inputs.teacher)
        _check_classes("teacher", known.classes, unlabelled.classes)
    torch.manual_seed(seed)
    if config.init == "finetuned":
        model, description = load_classifier(inputs.finetuned)
        _check_classes("fine-tuned teacher", description.classes, unlabelled.classes)
    else:
        description = Description(
            kind="classifier", network=config.network, classes=unlabelled.classes, image_size=spec.image_size,
            evaluation=evaluation.evaluation,
        )  # fmt: skip
        model = cast(Classifier, build(description))
    learned = unlabelled
    if config.images == "labelled":
        row = {key: number for number, key in enumerate(unlabelled.keys)}
        soft, learned = soft[[row[key] for key in labelled.keys]], labelled
    config = config.cut(len(learned), world_size())
    batch = share(config.batch_size, "distill.batch_size", config.accumulate)
    streams = {"unlabelled": partial(ViewStream, learned, [spec], batch, seed, device, threads)}
    if config.alpha < 1:
        few = max(min(64 // world_size(), batch) // config.accumulate, 1) * config.accumulate
        streams["labelled"] = partial(ViewStream, labelled, [spec], few, seed + 1, device, threads)
    objective = Distillation(
        model,
        teacher,
        soft,
        torch.from_numpy(labelled.labels()),
        config.temperature,
        config.alpha,
        config.average,
    )
    length = config.length(len(learned))
    history = fit(objective, streams, config, length, device, work, unlabelled.classes)
    save_result(outputs.student, objective.result(), description, history, work)


def _check_classes(whose: str, known: list[str], expected: list[str]) -> None:
    if known != expected:
        raise DataError(f"the {whose} knows the classes {known}, the data set {expected}")


def read_soft_labels(folder: Path, dataset: Dataset) -> Tensor:
    """Return the soft labels (N, C) in the order of the ``unlabelled`` split.

    Raises:
        DataError: they were made for another data set or other classes.
    """
    index = json.loads((folder / "index.json").read_text())
    if index["dataset"] != dataset.digest:
        raise DataError(f"the soft labels in {folder} were made for another data set ({index['dataset']})")
    _check_classes(f"teacher of the soft labels in {folder}", index["classes"], list(dataset.manifest.classes))
    parts = [load_file(folder / f"{name}.safetensors")["probabilities"] for name in index["shards"]]
    return torch.cat(parts)
