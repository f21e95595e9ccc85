"""Every stage once on the digits, three steps each: what the tests of the stages look into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from tenfold.augment.spec import ViewSpec
from tenfold.components.distill import stage as distill
from tenfold.components.finetune import stage as finetune
from tenfold.components.pretrain import stage as pretrain
from tenfold.components.pseudo_label import stage as pseudo_label
from tenfold.components.self_train import stage as self_train
from tenfold.config import (
    BaselineConfig,
    Description,
    DistillConfig,
    EvalViewConfig,
    FinetuneConfig,
    HeadConfig,
    JitterConfig,
    PretrainConfig,
    PseudoLabelConfig,
    ResNetConfig,
    SelfTrainConfig,
    ViewConfig,
)
from tenfold.data.manifest import Dataset
from tenfold.environment import Environment
from tenfold.models.saved import load_classifier
from tenfold.progress import Reporter
from tenfold.storage import FileStore
from tenfold.work import Work

TINY = ResNetConfig(depth=10, width=0.125)
HEAD = HeadConfig(layers=2, features=8)
SIDE = 16
RANDOM = ViewSpec(backend="torchvision", image_size=SIDE, view=ViewConfig(flip=0)).encoded()
STRONG = ViewSpec(backend="torchvision", image_size=SIDE, view=ViewConfig(flip=0, jitter=JitterConfig())).encoded()
EVALUATION = ViewSpec(backend="torchvision", image_size=SIDE, evaluation=EvalViewConfig(crop_proportion=1.0)).encoded()
SHORT = {"steps": 3, "epochs": None, "batch_size": 16}


class Made(NamedTuple):
    """What a chain of stages left, a folder each."""

    root: Path
    encoder: Path
    baseline: Path
    finetuned: Path
    teacher: Path
    soft_labels: Path
    student: Path


def new_work(folder: Path, name: str) -> Work:
    environment = replace(
        Environment.read(), home=folder / "home", run_id="run", device="cpu", threads=1, checkpoint_seconds=1e9,
        events=None, owner=None,
    )  # fmt: skip
    return Work(name, name.ljust(64, "0"), FileStore(folder / "store"), environment, Reporter(name))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def history(folder: Path) -> list[dict[str, float]]:
    return list(json.loads((folder / "history.json").read_text()))


def described(folder: Path) -> Description:
    """Return the description without its digests."""
    return load_classifier(folder)[1].model_copy(update={"weights": None, "checksum": None})


def seal(folder: Path, stage: str, **config: Any) -> Path:
    """Leave the lineage that the pipeline would."""
    folder.mkdir(exist_ok=True)
    lineage = {"stage": stage, "fingerprint": stage.ljust(64, "0"), "run_id": "run", "mlflow_run_id": "m" * 32,
               "seconds": 10.0, "code": "c" * 64, "config": config}  # fmt: skip
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


def pseudo_label_inputs(made: Made, dataset: Dataset, **change: Path) -> pseudo_label.Inputs:
    inputs = pseudo_label.Inputs(
        dataset=dataset.uri, weak=RANDOM, evaluation=EVALUATION, teacher=made.teacher, finetuned=made.finetuned,
        encoder=made.encoder,
    )  # fmt: skip
    return replace(inputs, **change)


def distill_inputs(made: Made, dataset: Dataset, **change: Path) -> distill.Inputs:
    inputs = distill.Inputs(dataset.uri, RANDOM, EVALUATION, made.soft_labels, made.teacher, made.finetuned)
    return replace(inputs, **change)


def make_chain(root: Path, dataset: Dataset) -> Made:
    """Run every stage once, in the pipeline's order, each for three steps."""
    made = Made(root, *(root / name for name in Made._fields[1:]))
    uri = dataset.uri
    pretrain.run(
        PretrainConfig(**SHORT, network=TINY, head=HEAD),
        pretrain.Inputs(uri, RANDOM, EVALUATION), pretrain.Outputs(made.encoder), new_work(root, "pretrain"),
    )  # fmt: skip
    finetune.run(
        FinetuneConfig(**SHORT), finetune.Inputs(uri, RANDOM, EVALUATION, made.encoder),
        finetune.Outputs(made.finetuned), new_work(root, "finetune"),
    )  # fmt: skip
    finetune.run(
        BaselineConfig(**SHORT, network=TINY), finetune.Inputs(uri, RANDOM, EVALUATION, None),
        finetune.Outputs(made.baseline), new_work(root, "baseline"),
    )  # fmt: skip
    self_train.run(
        SelfTrainConfig(**SHORT, ratio=2, threshold=0.1),
        self_train.Inputs(uri, RANDOM, STRONG, EVALUATION, made.finetuned, made.encoder),
        self_train.Outputs(made.teacher), new_work(root, "self_train"),
    )  # fmt: skip
    pseudo_label.run(
        PseudoLabelConfig(views=1), pseudo_label_inputs(made, dataset),
        pseudo_label.Outputs(made.soft_labels), new_work(root, "pseudo_label"),
    )  # fmt: skip
    distill.run(
        DistillConfig(**SHORT, network=TINY),
        distill.Inputs(uri, RANDOM, EVALUATION, made.soft_labels, made.teacher, made.finetuned),
        distill.Outputs(made.student), new_work(root, "distill"),
    )  # fmt: skip
    return made
