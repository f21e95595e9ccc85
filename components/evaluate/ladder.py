"""The ladder: ways to a classifier from the same labels, each with its predictions, its cost and what it would ship."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.augment.spec import ViewSpec
from tenfold.config import Description, EvaluateConfig, TimmConfig
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.inference import infer, probabilities, require_view, view_differences, view_of
from tenfold.evaluation.probes import (
    FEATURE_NORM,
    label_spreading,
    linear_layer,
    linear_probabilities,
    nearest_neighbours,
)
from tenfold.execution import read_lineage
from tenfold.models.encoder import Encoder
from tenfold.models.heads import Classifier
from tenfold.models.resnet import count_parameters
from tenfold.models.saved import load_classifier, load_kept, load_pretrained
from tenfold.work import Work

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Readers = Mapping[Any, SplitReader]
#: Probes see at most this many labelled, and as many unlabelled, images; the report says so where it cut.
PROBE_IMAGES = 20_000
#: Raw pixels of larger views are no baseline that anyone would take.
_PIXEL_SIDE = 64
#: A network is not clearly larger than the student up to this many times its parameters: a layer of a head is a few
#: percent of them.
_LARGER = 1.25
_ORDER = ("pixels_logistic", "pixels_spreading", "baseline", "brought_neighbours", "brought_logistic",
          "brought_spreading", "encoder_neighbours", "encoder_logistic", "encoder_spreading", "finetuned",
          "self_trained", "student")  # fmt: skip


@dataclass(frozen=True)
class Network:
    """What a rung would ship, and the folder of the stage that made it; None: none of this run did."""

    model: Classifier
    description: Description
    made_by: Path | None

    @property
    def parameters(self) -> int:
        """Of the network."""
        return count_parameters(self.model)


@dataclass(frozen=True)
class Rung:
    """One way to a classifier.

    Attributes:
        id: its name.
        title: the same for people.
        probabilities: of the test images, (N, C).
        seconds: of everything that it needs.
        network: what it would ship; None of a rung that is there to compare with alone.
    """

    id: str
    title: str
    probabilities: Floats
    seconds: float
    network: Network | None = None


@dataclass(frozen=True)
class _Trained:
    """A network that a stage trained, before it is asked."""

    title: str
    seconds: float
    network: Network


@dataclass(frozen=True)
class _Frozen:
    """Fixed features: of raw pixels, or of an encoder that stays as it is."""

    kind: str
    where: str
    seconds: float
    encoder: Encoder | None = None
    description: Description | None = None
    made_by: Path | None = None
    features: dict[str, Floats] = field(default_factory=dict)


def measure(
    config: EvaluateConfig, folders: Mapping[str, Path], dataset: Dataset, readers: Readers, spec: ViewSpec,
    device: torch.device, work: Work,
) -> tuple[list[Rung], bool]:  # fmt: skip
    """Return every rung, the student last, and whether the probes saw a part of the training images only.

    Args:
        config: of the stage.
        folders: ``encoder``, ``baseline``, ``finetuned``, ``teacher``, ``soft_labels`` and ``student``.
        dataset: whose splits are looked at.
        readers: one a split.
        spec: the view of serving.
        device: to work on.
        work: tells the progress.

    Raises:
        DataError: a classifier's classes are not the data set's, or it was made for another view.
    """
    classes = len(dataset.manifest.classes)
    kept, known = load_pretrained(folders["encoder"])
    frozen = [_Frozen("encoder", "the frozen encoder", _seconds(folders["encoder"]), kept.encoder, known,
                      folders["encoder"])]  # fmt: skip
    if spec.image_size <= _PIXEL_SIDE:
        frozen.append(_Frozen("pixels", "raw pixels", 0.0))
    networks = _networks(folders, dataset, spec)
    chosen = {"labelled": range(len(readers["labelled"])), "unlabelled": without_labels(readers),
              "test": range(len(readers["test"]))}  # fmt: skip
    cut = any(len(chosen[split]) > PROBE_IMAGES for split in ("labelled", "unlabelled"))
    views = {rung.kind: spec for rung in frozen}
    if config.encoder is not None:
        brought, known = load_kept(config.encoder.path, config.encoder.digest or "", work.cache / "init")
        frozen.append(_Frozen("brought", "the frozen encoder that was brought", 0.0, brought.encoder, known))
        views["brought"] = view_of(known, readers["test"], "the encoder that was brought")
    for each in frozen:
        if each.encoder is not None:
            each.encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    predicted: dict[str, Floats] = {}
    for number, (split, numbers) in enumerate(chosen.items()):
        work.reporter.progress("looking at", number, len(chosen), "splits")
        numbers = list(numbers) if split == "test" else list(numbers)[:PROBE_IMAGES]
        if not numbers:  # every training image is labelled
            for each in frozen:
                each.features[split] = each.features["labelled"][:0]
            continue
        functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            each.kind: each.encoder or (lambda x: x.flatten(1)) for each in frozen
        }
        own = {kind: function for kind, function in functions.items() if views[kind] is spec}
        if split == "test":
            for name, made in networks.items():
                made.network.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                own[name] = probabilities(made.network.model)
        found = infer(own, readers[split], spec, numbers, device)
        for kind in functions.keys() - own.keys():
            found |= infer({kind: functions[kind]}, readers[split], views[kind], numbers, device)
        for each in frozen:
            each.features[split] = found[each.kind]
        predicted = {name: found[name] for name in networks if name in found}
    labels = readers["labelled"].labels()[:PROBE_IMAGES]
    rungs = [Rung(name, made.title, predicted[name], made.seconds, made.network) for name, made in networks.items()]
    for each in frozen:
        rungs += _probes(config, each, labels, classes, dataset, spec)
    return sorted(rungs, key=lambda rung: _ORDER.index(rung.id)), cut


def shippable(rungs: list[Rung]) -> list[Rung]:
    """Return the rungs that can be shipped in the student's stead, itself among them.

    They are networks that are not clearly larger than it is, and none of timm's, which nothing serves.
    """
    student = rungs[-1].network
    assert student is not None
    most = _LARGER * student.parameters
    fitting = [(rung, rung.network) for rung in rungs if rung.network is not None and rung.network.parameters <= most]
    return [rung for rung, each in fitting if not isinstance(each.description.network, TimmConfig)]


def without_labels(readers: Readers) -> list[int]:
    """Return the numbers of the unlabelled split's samples that are not among the labelled ones."""
    labelled = set(readers["labelled"].keys)
    return [number for number, key in enumerate(readers["unlabelled"].keys) if key not in labelled]


def trained(folder: Path) -> bool:
    """Return whether the stage that made it trained anything, or was switched off."""
    return read_lineage(folder)["config"].get("enabled") is not False


def _probes(
    config: EvaluateConfig, frozen: _Frozen, labels: Ints, classes: int, dataset: Dataset, spec: ViewSpec
) -> list[Rung]:
    """Return the rungs that train no network, on fixed features of labelled, unlabelled and test images."""
    few, many, test = (frozen.features[split] for split in ("labelled", "unlabelled", "test"))
    start = time.monotonic()
    weight, bias = linear_layer(few, labels, classes, config.inverse_regularization)
    made = [("logistic", "logistic regression", linear_probabilities(weight, bias, test), time.monotonic() - start)]
    probes: list[tuple[str, str, Callable[[], Floats]]] = [
        ("spreading", "label spreading", lambda: label_spreading(few, labels, many, test, classes, config.neighbours)),
    ]
    if frozen.encoder is not None:
        nearest = min(config.neighbours, len(few))
        probes.append(
            ("neighbours", "nearest neighbours", lambda: nearest_neighbours(few, labels, test, classes, nearest))
        )
    for name, title, predict in probes:
        start = time.monotonic()
        made.append((name, title, predict(), time.monotonic() - start))
    rungs = [
        Rung(f"{frozen.kind}_{name}", f"{title} on {frozen.where}", predicted, frozen.seconds + seconds)
        for name, title, predicted, seconds in made
    ]
    rungs[0] = replace(rungs[0], network=_with_layer(frozen, weight, bias, dataset, spec))
    return rungs


def _with_layer(frozen: _Frozen, weight: Floats, bias: Floats, dataset: Dataset, spec: ViewSpec) -> Network | None:
    """Return a frozen encoder with a linear layer as one network; None of what cannot be served by this view."""
    if frozen.encoder is None or frozen.description is None or isinstance(frozen.description.network, TimmConfig):
        return None
    known = frozen.description
    if view_differences(known, spec):
        return None
    model = Classifier(frozen.encoder, None, 0, len(weight), FEATURE_NORM)
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(weight))
        model.linear.bias.copy_(torch.from_numpy(bias))
    description = Description(
        kind="classifier", network=known.network, classes=dataset.manifest.classes, image_size=known.image_size,
        evaluation=known.evaluation, feature_norm=FEATURE_NORM,
    )  # fmt: skip
    return Network(model.eval(), description, frozen.made_by)


def _networks(folders: Mapping[str, Path], dataset: Dataset, spec: ViewSpec) -> dict[str, _Trained]:
    """Return the networks that were trained, by their rungs' names."""
    seconds = {name: _seconds(folder) for name, folder in folders.items()}
    self_trained, distilled = trained(folders["teacher"]), trained(folders["student"])
    tuned = seconds["encoder"] + seconds["finetuned"]
    teacher = tuned + (seconds["teacher"] if self_trained else 0.0)
    made = teacher + (seconds["soft_labels"] + seconds["student"] if distilled else 0.0)
    last = "self-trained teacher" if self_trained else "fine-tuned teacher"
    rungs = [
        ("baseline", "student's network on the labels alone", "baseline", seconds["baseline"]),
        ("finetuned", "fine-tuned teacher", "finetuned", tuned),
        ("self_trained", "self-trained teacher", "teacher", teacher),
        ("student", "distilled student" if distilled else last, "student", made),
    ]
    found = {}
    for name, title, folder, cost in rungs:
        if name == "self_trained" and not (self_trained and distilled):
            continue
        if name == "finetuned" and not (self_trained or distilled):
            continue
        model, description = load_classifier(folders[folder])
        if description.classes != dataset.manifest.classes:
            raise DataError(f"the {title} knows the classes {description.classes}, not the data set's")
        require_view(description, spec, title)
        found[name] = _Trained(title, cost, Network(model, description, folders[folder]))
    return found


def _seconds(folder: Path) -> float:
    return float(read_lineage(folder)["seconds"])
