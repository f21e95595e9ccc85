"""Evaluation: every rung of the ladder on the same test split and the same labels."""

from __future__ import annotations

import base64
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tenfold.augment.spec import ViewSpec, parse_spec
from tenfold.config import EvaluateConfig
from tenfold.data.manifest import Dataset, open_dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.figures import save_ladder_png
from tenfold.evaluation.inference import infer, probabilities, require_view
from tenfold.evaluation.measured import Measured
from tenfold.evaluation.metrics import Scores, bootstrap_interval, score
from tenfold.evaluation.probes import label_spreading, logistic_regression, nearest_neighbours
from tenfold.execution import read_lineage
from tenfold.fingerprint import digest
from tenfold.models.heads import Classifier
from tenfold.models.resnet import count_parameters
from tenfold.models.saved import load_classifier, load_pretrained
from tenfold.predictor import Predictor
from tenfold.report.render import render
from tenfold.training.device import prepare
from tenfold.work import Work

Floats = NDArray[np.float64]
#: Probes see at most this many labelled, and as many unlabelled, images; the report says so where it cut.
_PROBE_IMAGES = 20_000
#: Raw pixels of larger views are no baseline that anyone would take.
_PIXEL_SIDE = 64
_MISTAKES = 24
#: Images whose way to a class is timed, one at a time.
_TIMED = 32


CONFIGS = {"evaluate": EvaluateConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI. ``evaluation``: the view of serving. ``views``: the augment stage's folder.

    ``encoder``, ``baseline``, ``finetuned``, ``teacher``, ``soft_labels``, ``student``: what the stages
    made; ``teacher`` equals ``finetuned`` where self-training was left out.
    """

    dataset: str
    evaluation: str
    views: Path
    encoder: Path
    baseline: Path
    finetuned: Path
    teacher: Path
    soft_labels: Path
    student: Path


@dataclass(frozen=True)
class Outputs:
    """``evaluation``: folder with evaluation.json, predictions.json and figures. ``report``: HTML page."""

    evaluation: Path
    report: Path


@dataclass(frozen=True)
class Rung:
    """One way to a classifier: its test predictions, and the seconds of everything that it needs."""

    id: str
    title: str
    probabilities: Floats
    seconds: float


@dataclass(frozen=True)
class Result:
    """What the KFP component shows: the student's scores."""

    classes: list[str]
    student: Scores


def run(config: EvaluateConfig, inputs: Inputs, outputs: Outputs, work: Work) -> Result:
    """Measure every rung and write metrics, predictions, figures and the report.

    Raises:
        DataError: a classifier's classes are not the data set's, or it was made for another view.
    """
    device = prepare(work.environment)
    dataset = open_dataset(inputs.dataset)
    spec = parse_spec(inputs.evaluation)
    readers = {name: SplitReader(dataset, name, work.cache) for name in dataset.manifest.splits}
    truth = readers["test"].labels()
    rungs, cut = _measure(config, inputs, dataset, readers, spec, device, work)
    order = ["pixels_logistic", "pixels_spreading", "baseline", "encoder_neighbours", "encoder_logistic",
             "encoder_spreading", "finetuned", "self_trained", "student"]  # fmt: skip
    rungs.sort(key=lambda rung: order.index(rung.id))
    classes, seed = dataset.manifest.classes, config.seed or 0
    scores = {
        rung.id: score(rung.probabilities, truth, classes, config.bootstrap, config.confidence, seed) for rung in rungs
    }
    hits = {rung.id: (rung.probabilities.argmax(1) == truth).astype(np.float64) for rung in rungs}
    table = []
    for rung in rungs:
        difference = hits["student"] - hits[rung.id]
        gain = bootstrap_interval(difference, config.bootstrap, config.confidence, seed)
        table.append(
            {"id": rung.id, "title": rung.title, "seconds": rung.seconds, "scores": scores[rung.id].as_dict(),
             "gain": None if rung.id == "student" else asdict(gain)}
        )  # fmt: skip
        work.tracker.metrics({f"top1.{rung.id}": scores[rung.id].top1.value, f"seconds.{rung.id}": rung.seconds})
    student = rungs[-1].probabilities
    model, description = load_classifier(inputs.student)
    latency = _latency(inputs.student, readers["test"])
    evaluation: dict[str, Any] = {
        "name": run_name(work), "run_id": work.environment.run_id, "dataset": inputs.dataset,
        "classes": classes, "test_images": len(truth), "confidence": config.confidence, "rungs": table,
        "student": {"network": description.network.model_dump(), "parameters": count_parameters(model),
                    "image_size": description.image_size, "latency_ms": latency,
                    "bytes": (inputs.student / "model.safetensors").stat().st_size},
        "counts": {name: split.count for name, split in dataset.manifest.splits.items()},
        "labelled": dataset.manifest.splits["labelled"].class_counts,
        "quarantined": [q.model_dump() for q in dataset.manifest.quarantined],
        "leaks": dataset.manifest.leaks,
        "curves": _curves(inputs), "stages": _stages(inputs),
        "pictures": {"views": _picture(inputs.views / "preview.png"),
                     "confidence": _picture(inputs.soft_labels / "confidence.png")},
        "mistakes": _mistakes(student, truth, classes, readers["test"]),
        "probe_cap": _PROBE_IMAGES if cut else None,
    }  # fmt: skip
    outputs.evaluation.mkdir(parents=True, exist_ok=True)
    (outputs.evaluation / "evaluation.json").write_text(json.dumps(evaluation))
    measured = Measured(
        test_split=test_split_name(dataset, spec), view=spec.hash, classes=classes, truth=truth.tolist(),
        predicted=student.argmax(1).tolist(), parameters=count_parameters(model),
        calibration_error=scores["student"].calibration_error, latency_ms=latency,
    )  # fmt: skip
    (outputs.evaluation / "predictions.json").write_text(measured.model_dump_json())
    save_ladder_png(table, outputs.evaluation / "ladder.png")
    outputs.report.write_text(render(evaluation), encoding="utf-8")
    work.tracker.metrics({"top1": scores["student"].top1.value, "top5": scores["student"].top5,
                          "calibration_error": scores["student"].calibration_error})  # fmt: skip
    work.tracker.artifact(outputs.evaluation, "evaluation")
    return Result(classes, scores["student"])


def test_split_name(dataset: Dataset, spec: ViewSpec) -> str:
    """Return what must be equal for two models' test results to be comparable: images, labels and view."""
    shards = [shard.sha256 for shard in dataset.manifest.splits["test"].shards]
    view = spec.evaluation and spec.evaluation.model_dump(exclude_none=True)
    return digest(json.dumps([shards, dataset.manifest.classes, view]))


def _latency(student: Path, reader: SplitReader) -> float:
    """Return the median milliseconds from an encoded image to its class, one at a time, on this processor."""
    predictor, took = Predictor(student), []
    images = [reader.image(number % len(reader)).tobytes() for number in range(_TIMED)]
    for image in [images[0], *images]:
        start = time.perf_counter()
        predictor([image])
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took[1:])


def _without_labels(readers: Mapping[Any, SplitReader]) -> list[int]:
    """Return the numbers of the unlabelled split's samples that are not among the labelled ones."""
    labelled = set(readers["labelled"].keys)
    return [number for number, key in enumerate(readers["unlabelled"].keys) if key not in labelled]


def _measure(
    config: EvaluateConfig, inputs: Inputs, dataset: Dataset, readers: Mapping[Any, SplitReader], spec: ViewSpec,
    device: torch.device, work: Work,
) -> tuple[list[Rung], bool]:  # fmt: skip
    """Return every rung, and whether the probes saw a part of the training images only."""
    pretrained, _ = load_pretrained(inputs.encoder)
    encoder = pretrained.encoder
    encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"encoder": encoder}
    if spec.image_size <= _PIXEL_SIDE:
        functions["pixels"] = lambda x: x.flatten(1)
    networks = _networks(inputs, dataset, spec, device)
    measured = {name: probabilities(model) for name, (_, model, _) in networks.items()}
    chosen = {
        "labelled": list(range(len(readers["labelled"])))[:_PROBE_IMAGES],
        "unlabelled": _without_labels(readers)[:_PROBE_IMAGES],
    }
    cut = max(len(readers["labelled"]), len(readers["unlabelled"])) > _PROBE_IMAGES
    features: dict[str, dict[str, Floats]] = {}
    tests = list(range(len(readers["test"])))
    for number, split in enumerate(("labelled", "unlabelled", "test")):
        work.reporter.progress("looking at", number, 3, "splits")
        used = {**functions, **measured} if split == "test" else functions
        numbers = chosen.get(split, tests)
        if not numbers:  # every training image is labelled
            features[split] = {name: rows[:0] for name, rows in features["labelled"].items()}
            continue
        features[split] = infer(used, readers[split], spec, numbers, device)
    known = readers["labelled"].labels()[: len(chosen["labelled"])]
    rungs = [Rung(name, title, features["test"][name], seconds) for name, (title, _, seconds) in networks.items()]
    for kind in functions:
        where, cost = ("raw pixels", 0.0) if kind == "pixels" else ("the frozen encoder", _seconds(inputs.encoder))
        few, many, test = (features[split][kind] for split in ("labelled", "unlabelled", "test"))
        rungs += _probes(config, kind, where, cost, few, known, many, test, len(dataset.manifest.classes))
    return rungs, cut


def _probes(
    config: EvaluateConfig, kind: str, where: str, cost: float, few: Floats, known: NDArray[np.int64], many: Floats,
    test: Floats, classes: int,
) -> list[Rung]:  # fmt: skip
    """Return the rungs that train no network, on fixed features of labelled, unlabelled and test images."""
    probes: list[tuple[str, str, Callable[[], Floats]]] = [
        ("logistic", "logistic regression",
         lambda: logistic_regression(few, known, test, classes, config.inverse_regularization)),
        ("spreading", "label spreading",
         lambda: label_spreading(few, known, many, test, classes, config.neighbours)),
    ]  # fmt: skip
    if kind == "encoder":
        nearest = min(config.neighbours, len(few))
        probes.append(
            ("neighbours", "nearest neighbours", lambda: nearest_neighbours(few, known, test, classes, nearest))
        )
    rungs = []
    for name, title, predict in probes:
        start = time.monotonic()
        predicted = predict()
        rungs.append(Rung(f"{kind}_{name}", f"{title} on {where}", predicted, cost + time.monotonic() - start))
    return rungs


def _networks(
    inputs: Inputs, dataset: Dataset, spec: ViewSpec, device: torch.device
) -> dict[str, tuple[str, Classifier, float]]:
    """Return each classifier's title, network and seconds of everything that it needs, by rung."""
    pretrain, finetune = _seconds(inputs.encoder), _seconds(inputs.finetuned)
    self_trained, distilled = _trained(inputs.teacher), _trained(inputs.student)
    teacher = _seconds(inputs.teacher) if self_trained else 0.0
    made = _seconds(inputs.soft_labels) + _seconds(inputs.student) if distilled else 0.0
    served = f"{'self-trained' if self_trained else 'fine-tuned'} teacher, which is served"
    rungs = [
        ("baseline", "the student's network on the labels alone", inputs.baseline, _seconds(inputs.baseline)),
        ("finetuned", "fine-tuned teacher", inputs.finetuned, pretrain + finetune),
        ("self_trained", "self-trained teacher", inputs.teacher, pretrain + finetune + teacher),
        ("student", "distilled student" if distilled else served, inputs.student,
         pretrain + finetune + teacher + made),
    ]  # fmt: skip
    found = {}
    for name, title, folder, seconds in rungs:
        if name == "self_trained" and not (self_trained and distilled):
            continue
        model, description = load_classifier(folder)
        if description.classes != dataset.manifest.classes:
            raise DataError(f"the {title} knows the classes {description.classes}, not the data set's")
        require_view(description, spec, title)
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        found[name] = (title, model, seconds)
    return found


def _seconds(folder: Path) -> float:
    return float(read_lineage(folder)["seconds"])


def _trained(folder: Path) -> bool:
    """Return whether the stage that made it trained anything, or was switched off."""
    return read_lineage(folder)["config"].get("enabled") is not False


def _stage(folder: Path) -> str:
    return str(read_lineage(folder)["stage"])


def run_name(work: Work) -> str:
    """Return the run's name as preflight wrote it; the experiment's where the stage is called by itself."""
    key = f"runs/{work.environment.run_id}/config.json"
    return str(json.loads(work.store.read(key))["name"]) if work.store.exists(key) else work.environment.experiment


def _curves(inputs: Inputs) -> dict[str, Any]:
    folders = [inputs.encoder, inputs.baseline, inputs.finetuned]
    folders += [folder for folder in (inputs.teacher, inputs.student) if _trained(folder)]
    return {_stage(folder): json.loads((folder / "history.json").read_text()) for folder in folders}


def _stages(inputs: Inputs) -> list[dict[str, Any]]:
    """Return what each stage's lineage says, each stage once."""
    folders = [inputs.views, inputs.encoder, inputs.baseline, inputs.finetuned, inputs.teacher,
               inputs.soft_labels, inputs.student]  # fmt: skip
    keys = ("stage", "fingerprint", "run_id", "mlflow_run_id", "seconds", "code")
    rows = [{key: read_lineage(folder)[key] for key in keys} for folder in folders]
    return list({row["fingerprint"]: row for row in rows}.values())


def _picture(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _mistakes(
    predicted: Floats, truth: NDArray[np.int64], classes: list[str], reader: SplitReader
) -> list[dict[str, Any]]:
    """Return the student's worst mistakes: the images with the greatest loss."""
    wrong = np.flatnonzero(predicted.argmax(1) != truth)
    worst = wrong[np.argsort(predicted[wrong, truth[wrong]], kind="stable")][:_MISTAKES]
    shown = []
    for number in worst.tolist():
        picture = Image.fromarray(reader.picture(number))
        picture.thumbnail((96, 96))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        shown.append(
            {"path": reader.path(number), "true": classes[truth[number]],
             "predicted": classes[int(predicted[number].argmax())], "confidence": float(predicted[number].max()),
             "image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}
        )  # fmt: skip
    return shown
