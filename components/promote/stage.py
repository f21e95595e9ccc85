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
from tenfold.errors import StorageError
from tenfold.execution import read_lineage
from tenfold.fingerprint import canonical_json
from tenfold.registry import CHALLENGER, CHAMPION, Decision, Registered, Registry, decide
from tenfold.report.render import render
from tenfold.storage import Store
from tenfold.tracking import nested_run, parent_run
from tenfold.work import Work

CONFIGS = {"promote": PromoteConfig}


@dataclass(frozen=True)
class Inputs:
    """``student``: the classifier. ``evaluation``: what the evaluate stage wrote."""

    student: Path
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
    """Register the student once, decide, set the alias, and write the pipeline's report."""
    evaluation = json.loads((inputs.evaluation / "evaluation.json").read_text())
    predictions = json.loads((inputs.evaluation / "predictions.json").read_text())
    weights = hashlib.sha256((inputs.student / "model.safetensors").read_bytes()).hexdigest()
    work.store.write(_measured(predictions["test_split"], weights), canonical_json(predictions).encode())
    lineage = read_lineage(inputs.student)
    top1 = accuracy(predictions)
    registry = Registry(work.environment, config.model)
    champion = registry.by_alias(CHAMPION)
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
    decision, compared = _compare(champion, version, weights, top1, predictions["test_split"], config, work.store)
    alias = CHAMPION if decision.promote else CHALLENGER
    registry.point(alias, version.version)
    if decision.promote:
        registry.unpoint(CHALLENGER, version.version)
    verdict = Verdict(alias, config.model, version.version, decision.reasons, compared)
    _record(verdict, evaluation, inputs, outputs, work)
    return verdict


def _measured(test_split: str, weights: str) -> str:
    return f"predictions/{test_split}/{weights}.json"


def accuracy(predictions: dict[str, Any]) -> float:
    """Return the share of right predictions; NaN where there is none."""
    truth, predicted = predictions["truth"], predictions["predicted"]
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth) if truth else float("nan")


def _compare(
    champion: Registered | None, version: Registered, weights: str, top1: float, test_split: str,
    config: PromoteConfig, store: Store,
) -> tuple[Decision, dict[str, Any] | None]:  # fmt: skip
    if champion is None:
        return decide(top1, None, config.min_gain, exists=False), None
    if champion.version == version.version:
        return Decision(True, ["this very student is the champion already"]), {
            "version": version.version,
            "top1": top1,
        }
    try:
        its = accuracy(json.loads(store.read(_measured(test_split, champion.weights))))
    except StorageError:
        its = None
    return decide(top1, its, config.min_gain, exists=True), {"version": champion.version, "top1": its}


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
