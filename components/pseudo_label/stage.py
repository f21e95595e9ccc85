"""Teacher inference: soft labels for every training image, a file a shard."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tenfold.augment.spec import ViewSpec, parse_spec
from tenfold.augment.stream import one_pass
from tenfold.config import PseudoLabelConfig
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.figures import confidence_histogram
from tenfold.evaluation.inference import evaluation_images
from tenfold.evaluation.probes import unit_length
from tenfold.losses.distillation import sharpen
from tenfold.models.encoder import Encoder
from tenfold.models.heads import Classifier
from tenfold.models.saved import load_classifier, load_pretrained
from tenfold.training.device import prepare
from tenfold.training.soft_labels import balance, propagate
from tenfold.work import Work

CONFIGS = {"pseudo_label": PseudoLabelConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI. ``weak`` and ``evaluation``: the views. ``teacher``: the classifier.

    ``finetuned``: the classifier before self-training, for ``teachers: both``. ``encoder``: the pretrained
    one, whose features join the teacher's in the graph of ``propagate``.
    """

    dataset: str
    weak: str
    evaluation: str
    teacher: Path
    finetuned: Path
    encoder: Path


@dataclass(frozen=True)
class Outputs:
    """``soft_labels``: folder with ``<shard sha256>.safetensors`` a shard, index.json and a histogram."""

    soft_labels: Path


def run(config: PseudoLabelConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Write the teacher's soft labels of the ``unlabelled`` split, in the order of its shards.

    The evaluation view's prediction is averaged with those of ``config.views`` weak views, and sharpened.
    Labelled images take their true label. As far as configured, the result is balanced to the labelled
    prior, spread over the graph of features, sharpened, and balanced again.

    Where ``config.enabled`` is false, since nothing is distilled, the folder holds no labels.
    """
    if not config.enabled:
        work.reporter.note("switched off; nothing is distilled")
        outputs.soft_labels.mkdir(parents=True, exist_ok=True)
        (outputs.soft_labels / "none.txt").write_text("nothing is distilled, so nothing was labelled\n")
        return
    device = prepare(work.environment)
    dataset = open_dataset(inputs.dataset)
    reader = SplitReader(dataset, "unlabelled", work.cache)
    teachers = []
    for folder in [inputs.teacher, inputs.finetuned] if config.teachers == "both" else [inputs.teacher]:
        teacher, description = load_classifier(folder)
        if description.classes != reader.classes:
            raise DataError(f"the teacher knows the classes {description.classes}, the data set {reader.classes}")
        teachers.append(teacher)
    pretrained, _ = load_pretrained(inputs.encoder)
    encoder = pretrained.encoder if config.propagate is not None else None
    weak, evaluation = parse_spec(inputs.weak), parse_spec(inputs.evaluation)
    passes = [evaluation, *[weak] * config.views]
    soft, features = _infer(teachers, encoder, reader, passes, config.seed or 0, device, work)
    labelled = SplitReader(dataset, "labelled", work.cache)
    counts = np.bincount(labelled.labels(), minlength=len(reader.classes))
    prior = counts / counts.sum()
    soft = sharpen(torch.from_numpy(soft), config.temperature).numpy()
    if config.balance:
        soft = balance(soft, prior)
    known, truth = dict(zip(labelled.keys, labelled.labels().tolist(), strict=True)), np.eye(len(reader.classes))
    for number, key in enumerate(reader.keys):
        if key in known:
            soft[number] = truth[known[key]]
    if config.propagate is not None:
        graph = config.propagate
        if graph.pixels > 0:
            pixels = evaluation_images(reader, evaluation).flatten(1).double().numpy()
            # the networks' features are sums over the passes
            features = np.concatenate([features / len(passes), graph.pixels * unit_length(pixels)], axis=1)
        soft = propagate(features, soft, graph.neighbours, graph.weight, graph.power)
        soft = sharpen(torch.from_numpy(soft), graph.temperature).numpy()
        if config.balance:
            soft = balance(soft, prior)
    _write(outputs.soft_labels, reader, soft, dataset.digest)
    confidence = soft.max(1)
    work.tracker.metrics(
        {"confidence_mean": float(confidence.mean()), "confident_share": float((confidence > 0.9).mean())}
    )
    confidence_histogram(confidence, outputs.soft_labels / "confidence.png")
    work.tracker.artifact(outputs.soft_labels, "soft_labels")


@torch.no_grad()
def _infer(
    teachers: list[Classifier],
    encoder: Encoder | None, reader: SplitReader, passes: list[ViewSpec], seed: int,
    device: torch.device, work: Work,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """Return the mean probabilities (N, C) over teachers and passes and, with an encoder, the mean features (N, d).

    Features are the first teacher's encoder's and the pretrained encoder's, each of unit length.
    """
    for network in [*teachers, *([encoder] if encoder is not None else [])]:
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    soft = np.zeros((len(reader), len(reader.classes)))
    features = np.zeros((len(reader), 2 * encoder.features if encoder is not None else 0))
    for number, spec in enumerate(passes):
        start = 0
        for batch in one_pass(reader, [spec], 256, seed + number, device, work.environment.threads):
            view = batch.views[0].contiguous(memory_format=torch.channels_last)
            rows = slice(start, start + len(view))
            for teacher in teachers:
                probabilities = torch.softmax(teacher(view), 1).double().cpu().numpy()
                soft[rows] += probabilities / len(passes) / len(teachers)
            if encoder is not None:
                both = [F.normalize(network(view)) for network in (teachers[0].encoder, encoder)]
                features[rows] += torch.cat(both, 1).double().cpu().numpy()
            start += len(view)
            work.reporter.progress("labelling", number * len(reader) + start, len(passes) * len(reader), "views")
    return soft, features


def _write(folder: Path, reader: SplitReader, probabilities: NDArray[np.float64], digest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for shard in reader.shards:
        part = probabilities[start : start + shard.kept].astype(np.float32)
        save_file({"probabilities": np.ascontiguousarray(part)}, folder / f"{shard.sha256}.safetensors")
        start += shard.kept
    index = {"dataset": digest, "classes": reader.classes, "shards": [s.sha256 for s in reader.shards]}
    (folder / "index.json").write_text(json.dumps(index, indent=1))
