"""Evaluation: every rung of the ladder on the same test images, the one that is worth shipping, and the report."""

from __future__ import annotations

import base64
import io
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tenfold.augment.spec import ViewSpec, parse_spec
from tenfold.components.evaluate.ladder import PROBE_IMAGES, Network, Rung, measure, shippable, trained
from tenfold.config import EvaluateConfig
from tenfold.data.decode import CHECKED
from tenfold.data.manifest import Dataset, open_dataset
from tenfold.data.reader import SplitReader
from tenfold.evaluation.choice import Candidate, Choice, choose, divide, scaled, temperature
from tenfold.evaluation.figures import save_ladder_png
from tenfold.evaluation.measured import Measured
from tenfold.evaluation.metrics import Scores, bootstrap_interval, score
from tenfold.evaluation.paired import compare
from tenfold.execution import read_lineage
from tenfold.fingerprint import digest, file_digest
from tenfold.models.saved import WEIGHTS, save
from tenfold.predictor import Predictor, probe
from tenfold.report.render import render
from tenfold.training.device import prepare
from tenfold.work import Work

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
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
    """``evaluation``: folder with evaluation.json, predictions.json and figures. ``report``: HTML page.

    ``served``: the classifier that is worth shipping, calibrated.
    """

    evaluation: Path
    report: Path
    served: Path


@dataclass(frozen=True)
class Result:
    """What the KFP component shows: the scores of what is shipped."""

    classes: list[str]
    served: Scores


def run(config: EvaluateConfig, inputs: Inputs, outputs: Outputs, work: Work) -> Result:
    """Measure every rung, choose and calibrate what is shipped, and write it, metrics, predictions and the report.

    Some of the test images choose and calibrate; all numbers are of the others, which had no say.

    Raises:
        DataError: a classifier's classes are not the data set's, or it was made for another view.
    """
    device = prepare(work.environment)
    dataset = open_dataset(inputs.dataset)
    spec = parse_spec(inputs.evaluation)
    readers = {name: SplitReader(dataset, name, work.cache) for name in dataset.manifest.splits}
    classes, seed, tests = dataset.manifest.classes, config.seed or 0, readers["test"]
    truth = tests.labels()
    rungs, cut = measure(config, _folders(inputs), dataset, readers, spec, device, work)
    choosing, measuring = divide(tests.keys, truth, config.selection)
    choice = _choose(config, rungs, truth, choosing)
    served = next(rung for rung in rungs if rung.id == choice.id)
    assert served.network is not None
    heat = temperature(served.probabilities[choosing], truth[choosing])
    network = _ship(served.network, heat, outputs.served, exported=config.export)
    calibrated, own = scaled(served.probabilities[measuring], heat), truth[measuring]

    def scores_of(probabilities: Floats) -> Scores:
        return score(probabilities, own, classes, config.bootstrap, config.confidence, seed)

    scores, hits = scores_of(calibrated), calibrated.argmax(1) == own
    table = []
    for rung in rungs:
        seen = scores if rung is served else scores_of(rung.probabilities[measuring])
        difference = hits.astype(np.float64) - (rung.probabilities[measuring].argmax(1) == own)
        gain = bootstrap_interval(difference, config.bootstrap, config.confidence, seed)
        table.append(
            {"id": rung.id, "title": rung.title, "seconds": rung.seconds, "scores": seen.as_dict(),
             "served": rung is served, "gain": None if rung is served else asdict(gain)}
        )  # fmt: skip
        work.tracker.metrics({f"top1.{rung.id}": seen.top1.value, f"seconds.{rung.id}": rung.seconds})
    latency = _latency(outputs.served, tests)
    evaluation: dict[str, Any] = {
        "name": run_name(work), "run_id": work.environment.run_id, "dataset": inputs.dataset,
        "classes": classes, "test_images": len(own), "confidence": config.confidence, "rungs": table,
        "served": {"id": served.id, "title": served.title, "network": network.description.network.model_dump(),
                   "parameters": network.parameters, "image_size": network.description.image_size,
                   "latency_ms": latency, "bytes": (outputs.served / WEIGHTS).stat().st_size,
                   "told": choice.told, "images_needed": choice.images_needed, "choosing": len(choosing),
                   "temperature": heat, "made_by": _made_by(network),
                   "calibration_error_before": scores_of(served.probabilities[measuring]).calibration_error},
        "counts": {name: split.count for name, split in dataset.manifest.splits.items()},
        "labelled": dataset.manifest.splits["labelled"].class_counts,
        "quarantined": [q.model_dump() for q in dataset.manifest.quarantined],
        "leaks": dataset.manifest.leaks,
        "curves": _curves(inputs), "stages": _stages(inputs),
        "pictures": {"views": _picture(inputs.views / "preview.png"),
                     "confidence": _picture(inputs.soft_labels / "confidence.png")},
        "mistakes": _mistakes(calibrated, own, classes, tests, measuring),
        "probe_cap": PROBE_IMAGES if cut else None,
    }  # fmt: skip
    outputs.evaluation.mkdir(parents=True, exist_ok=True)
    (outputs.evaluation / "evaluation.json").write_text(json.dumps(evaluation))
    measured = Measured(
        test_split=test_split_name(dataset, spec, config.selection), view=spec.hash, classes=classes,
        truth=own.tolist(), predicted=calibrated.argmax(1).tolist(), parameters=network.parameters,
        calibration_error=scores.calibration_error, latency_ms=latency,
    )  # fmt: skip
    (outputs.evaluation / "predictions.json").write_text(measured.model_dump_json())
    save_ladder_png(table, outputs.evaluation / "ladder.png")
    outputs.report.write_text(render(evaluation), encoding="utf-8")
    work.tracker.metrics({"top1": scores.top1.value, "top5": scores.top5, "temperature": heat,
                          "calibration_error": scores.calibration_error})  # fmt: skip
    work.tracker.artifact(outputs.evaluation, "evaluation")
    return Result(classes, scores)


def _choose(config: EvaluateConfig, rungs: list[Rung], truth: Ints, choosing: Ints) -> Choice:
    """Return what is shipped, and why."""
    student = rungs[-1]
    if config.ship == "student":
        return Choice(student.id, f"the {student.title}, as evaluate.ship asks for")
    if not len(choosing):
        return Choice(student.id, f"the {student.title}: no test image was there to choose (evaluate.selection)")
    candidates = [
        Candidate(rung.id, rung.title, rung.seconds, rung.probabilities[choosing].argmax(1) == truth[choosing])
        for rung in shippable(rungs)
    ]
    choice = choose(candidates, config.tolerance, config.confidence)
    (shipped,) = (candidate.hits for candidate in candidates if candidate.id == choice.id)
    others = [(rung, rung.probabilities[choosing].argmax(1) == truth[choosing]) for rung in rungs]
    better = [
        (rung.title, compare(hits, shipped)) for rung, hits in others if rung.id not in {each.id for each in candidates}
    ]
    clear = [(title, found) for title, found in better if found.p_value <= (1 - config.confidence) / 2]
    if not clear:
        return choice
    title, found = max(clear, key=lambda pair: pair[1].gain)
    told = f"the {title}, which cannot be shipped, is {100 * found.gain:.1f} points better on the images that choose"
    return replace(choice, told=f"{choice.told}; {told}")


def _ship(network: Network, heat: float, folder: Path, *, exported: bool) -> Network:
    """Write a network whose logits are divided by the temperature ``heat``, and return it."""
    network.model.cpu()
    with torch.no_grad():
        network.model.linear.weight.div_(heat)
        network.model.linear.bias.div_(heat)
    found: dict[str, Any] = {"probe": probe(network.description)}
    if exported:
        from tenfold.models.exported import export  # torch.export takes seconds to load

        folder.mkdir(parents=True, exist_ok=True)
        found["exported"] = file_digest(export(network.model, network.description, folder))
    save(folder, network.model, network.description.model_copy(update=found))
    return network


def _made_by(network: Network) -> dict[str, Any] | None:
    """Return what the registry is told of the stage that made a network; None of one that no stage of this run made."""
    if network.made_by is None:
        return None
    lineage = read_lineage(network.made_by)
    return {key: lineage[key] for key in ("stage", "fingerprint", "run_id", "mlflow_run_id", "code")}


def test_split_name(dataset: Dataset, spec: ViewSpec, selection: float) -> str:
    """Return what must be equal for two models' test results to be comparable: images, labels and view.

    Images that were packed anew count as others.
    """
    shards = [[each.sha256, *each.dropped] if each.dropped else each.sha256
              for each in dataset.manifest.splits["test"].shards]  # fmt: skip
    view = spec.evaluation and spec.evaluation.model_dump(exclude_none=True)
    return digest(json.dumps([shards, dataset.manifest.classes, view, *([selection] if selection else [])]))


def _latency(student: Path, reader: SplitReader) -> float:
    """Return the median milliseconds from an encoded image to its class, one at a time, on this processor."""
    predictor, took = Predictor(student, CHECKED), []
    images = [reader.image(number % len(reader)).tobytes() for number in range(_TIMED)]
    for image in [images[0], *images]:
        start = time.perf_counter()
        predictor([image])
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took[1:])


def _folders(inputs: Inputs) -> dict[str, Path]:
    names = ("encoder", "baseline", "finetuned", "teacher", "soft_labels", "student")
    return {name: getattr(inputs, name) for name in names}


def _stage(folder: Path) -> str:
    return str(read_lineage(folder)["stage"])


def run_name(work: Work) -> str:
    """Return the run's name as preflight wrote it; the experiment's where the stage is called by itself."""
    key = f"runs/{work.environment.run_id}/config.json"
    return str(json.loads(work.store.read(key))["name"]) if work.store.exists(key) else work.environment.experiment


def _curves(inputs: Inputs) -> dict[str, Any]:
    folders = [inputs.encoder, inputs.baseline, inputs.finetuned]
    folders += [folder for folder in (inputs.teacher, inputs.student) if trained(folder)]
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
    predicted: Floats, truth: Ints, classes: list[str], reader: SplitReader, numbers: Sequence[int] | Ints
) -> list[dict[str, Any]]:
    """Return the worst mistakes, the images with the greatest loss; ``numbers`` are those that were predicted."""
    wrong = np.flatnonzero(predicted.argmax(1) != truth)
    worst = wrong[np.argsort(predicted[wrong, truth[wrong]], kind="stable")][:_MISTAKES]
    shown = []
    for place in worst.tolist():
        picture = Image.fromarray(reader.picture(int(numbers[place])))
        picture.thumbnail((96, 96))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        shown.append(
            {"path": reader.path(int(numbers[place])), "true": classes[truth[place]],
             "predicted": classes[int(predicted[place].argmax())], "confidence": float(predicted[place].max()),
             "image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}
        )  # fmt: skip
    return shown
