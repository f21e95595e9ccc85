"""Promotion: registers the student, and makes it champion if it beats the present one on the same images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.config import Description, PromoteConfig
from tenfold.data.channels import encode_npy
from tenfold.data.decode import encode_png
from tenfold.environment import Environment
from tenfold.errors import DataError
from tenfold.execution import read_lineage
from tenfold.fingerprint import canonical_json, digest, file_digest
from tenfold.registry import (
    CHALLENGER,
    CHAMPION,
    ENCODER_TAG,
    Decision,
    Ledger,
    Registered,
    Registry,
    decide,
    promote,
)
from tenfold.report.render import render
from tenfold.storage import Store
from tenfold.tracking import nested_run, parent_run
from tenfold.work import Work

CONFIGS = {"promote": PromoteConfig}


@dataclass(frozen=True)
class Inputs:
    """``student``: the classifier. ``encoder``: what it began as. ``evaluation``: what the evaluate stage wrote."""

    student: Path
    encoder: Path
    evaluation: Path


@dataclass(frozen=True)
class Outputs:
    """``report``: the HTML report with the verdict. ``verdict``: the same in Markdown."""

    report: Path
    verdict: Path


@dataclass(frozen=True)
class Verdict:
    """What became of the student.

    Attributes:
        alias: ``champion`` or ``challenger``.
        model: name in the registry.
        version: its version there.
        reasons: why.
        champion: version and top-1 of the champion that it was compared with; None: there was none.
    """

    alias: str
    model: str
    version: str
    reasons: list[str]
    champion: dict[str, Any] | None


def run(config: PromoteConfig, inputs: Inputs, outputs: Outputs, work: Work) -> Verdict:
    """Register the student once, decide, set the alias, and write the pipeline's report.

    The encoder of a student that becomes champion is kept in the store, where a retraining starts from it.
    """
    evaluation = json.loads((inputs.evaluation / "evaluation.json").read_text())
    predictions = json.loads((inputs.evaluation / "predictions.json").read_text())
    weights = hashlib.sha256((inputs.student / "model.safetensors").read_bytes()).hexdigest()
    work.store.write(_measured(predictions["test_split"], weights), canonical_json(predictions).encode())
    lineage = read_lineage(inputs.student)
    top1 = accuracy(predictions)
    registry = Registry(work.environment, config.model)
    version = registry.by_weights(weights) or registry.register(
        inputs.student, _example(inputs.student), weights, work.tracker.run_id,
        {
            "tenfold.fingerprint": lineage["fingerprint"], "tenfold.dataset": lineage["dataset"],
            "tenfold.code": lineage["code"], "tenfold.run_id": work.environment.run_id,
            "tenfold.mlflow_run": _mlflow_run(lineage, work.environment), "tenfold.view": predictions["view"],
            "tenfold.test_split": predictions["test_split"], "tenfold.top1": f"{top1:.6f}",
            "tenfold.labels": str(evaluation["counts"]["labelled"]),
        },
    )  # fmt: skip
    split = predictions["test_split"]

    def judge(champion: Registered | None) -> Decision:
        return _decide(version, top1, champion, split, config.min_gain, work.store)

    def keep() -> None:
        registry.tag(version.version, ENCODER_TAG, keep_encoder(inputs.encoder, work.store))

    ledger = Ledger(work.store, config.model, work.environment.run_id)
    outcome = promote(registry, ledger, version, judge, keep, work.reporter.note)
    decision, champion = outcome.decision, outcome.champion
    if decision.promote:
        registry.unpoint(CHALLENGER, version.version)
    else:
        registry.point(CHALLENGER, version.version)
    verdict = Verdict(
        CHAMPION if decision.promote else CHALLENGER, config.model, version.version, decision.reasons,
        {"version": champion.version, "top1": _top1_of(champion, split, work.store)} if champion else None,
    )  # fmt: skip
    _record(verdict, evaluation, inputs, outputs, work)
    return verdict


def _measured(test_split: str, weights: str) -> str:
    return f"predictions/{test_split}/{weights}.json"


def accuracy(predictions: dict[str, Any]) -> float:
    """Return the share of right predictions; NaN where there is none."""
    truth, predicted = predictions["truth"], predictions["predicted"]
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth) if truth else float("nan")


def _top1_of(champion: Registered, test_split: str, store: Store) -> float | None:
    """Return what the champion reaches on these test images; None where it was never measured on them."""
    key = _measured(test_split, champion.weights)
    return accuracy(json.loads(store.read(key))) if store.exists(key) else None


def _decide(
    version: Registered, top1: float, champion: Registered | None, test_split: str, min_gain: float, store: Store
) -> Decision:
    if champion is None:
        return decide(top1, None, min_gain, exists=False)
    if champion.version == version.version:
        return Decision(True, ["this very student is the champion already"])
    return decide(top1, _top1_of(champion, test_split, store), min_gain, exists=True)


def keep_encoder(folder: Path, store: Store) -> str:
    """Copy an encoder into the store under the sha256 of its description, which names its weights.

    Returns:
        Its address, ``<store>/encoders/<digest>``, as ``pretrain.init.path`` takes it.

    Raises:
        DataError: the weights are not those that the description names.
    """
    text = (folder / "model.json").read_text()
    if Description.model_validate_json(text).weights != file_digest(folder / "model.safetensors"):
        raise DataError(f"the encoder in {folder} is damaged; run the pipeline again with --no-cache")
    place = f"encoders/{digest(text)}"
    store.create(f"{place}/model.safetensors", folder / "model.safetensors")
    store.create(f"{place}/model.json", text.encode())  # last: who sees it finds the weights
    return f"{store.uri}/{place}"


def _example(student: Path) -> bytes:
    """Return a grey image that the student takes: an input example that shows the format and no one's data."""
    pixels = Description.model_validate_json((student / "model.json").read_bytes()).evaluation.pixels
    if pixels is None:
        return encode_png(np.full((32, 32, 3), 128, dtype=np.uint8))
    return encode_npy(np.full((32, 32, pixels.channels), pixels.top // 2, dtype=f"uint{pixels.bits}"))


def _record(verdict: Verdict, evaluation: dict[str, Any], inputs: Inputs, outputs: Outputs, work: Work) -> None:
    run_id = work.environment.run_id
    name = json.loads(work.store.read(f"runs/{run_id}/config.json"))["name"]
    page = render({**evaluation, "run_id": run_id, "name": name}, asdict(verdict))
    outputs.report.write_text(page, encoding="utf-8")
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    outputs.verdict.write_text(
        f"## {verdict.model} version {verdict.version}: {verdict.alias}\n\n{reasons}\n", encoding="utf-8"
    )
    result = {"verdict": asdict(verdict), "evaluation": _brief(evaluation)}
    work.store.write(f"runs/{run_id}/report.html", page.encode())
    work.store.write(f"runs/{run_id}/result.json", canonical_json(result).encode())
    work.tracker.artifact(outputs.report)
    _tell_parent(verdict, evaluation, inputs, outputs.report, work.environment)


def _brief(evaluation: dict[str, Any]) -> dict[str, Any]:
    kept = ("dataset", "classes", "test_images", "confidence", "counts", "stages", "quarantined", "leaks")
    rungs = [
        {
            "id": r["id"],
            "title": r["title"],
            "seconds": r["seconds"],
            "top1": r["scores"]["top1"],
            "gain": r["gain"],
        }
        for r in evaluation["rungs"]
    ]
    return {**{key: evaluation[key] for key in kept}, "rungs": rungs}


def _tell_parent(
    verdict: Verdict, evaluation: dict[str, Any], inputs: Inputs, report: Path, environment: Environment
) -> None:
    """Give the parent run the result, the report, and links to the runs that did each stage's work."""
    parent = parent_run(environment)
    parent.metrics({f"top1.{rung['id']}": rung["scores"]["top1"]["value"] for rung in evaluation["rungs"]})
    links = {f"tenfold.stage.{row['stage']}": _mlflow_run(row, environment) for row in evaluation["stages"]}
    parent.tags(
        {**links, "tenfold.dataset": evaluation["dataset"], "tenfold.alias": verdict.alias,
         "tenfold.model_version": f"{verdict.model}/{verdict.version}",
         "tenfold.stage.evaluate": _mlflow_run(read_lineage(inputs.evaluation), environment)}
    )  # fmt: skip
    parent.artifact(report)


def _mlflow_run(lineage: dict[str, Any], environment: Environment) -> str:
    """Return the MLflow run of a stage; of one that ended while MLflow was away, the run that it got since, or ""."""
    return lineage["mlflow_run_id"] or nested_run(environment, lineage["run_id"], lineage["stage"]) or ""
