"""Promotion: registers the student, and makes it champion if it beats the present one on the same images."""

from __future__ import annotations

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
from tenfold.evaluation.measured import parse_measured
from tenfold.execution import read_lineage
from tenfold.fingerprint import canonical_json, digest, file_digest
from tenfold.registry import (
    APPROVAL_TAG,
    CHALLENGER,
    CHAMPION,
    ENCODER_TAG,
    GATE_TAG,
    TEST_SPLIT_TAG,
    Check,
    Decision,
    Ledger,
    Registered,
    Registry,
    Results,
    judge,
    promote,
)
from tenfold.report.card import model_card
from tenfold.report.render import render
from tenfold.storage import Store
from tenfold.tracking import nested_run, parent_run
from tenfold.work import Work

CONFIGS = {"promote": PromoteConfig}


@dataclass(frozen=True)
class Inputs:
    """``student``: the classifier to ship. ``encoder``: what it began as. ``evaluation``: as evaluate wrote it."""

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
        reasons: why, what failed first.
        checks: each thing that the gate looked at: ``name``, ``passed`` and ``told``.
        champion: version and top-1 of the champion that it was compared with; None: there was none.
    """

    alias: str
    model: str
    version: str
    reasons: list[str]
    checks: list[dict[str, Any]]
    champion: dict[str, Any] | None


def run(config: PromoteConfig, inputs: Inputs, outputs: Outputs, work: Work) -> Verdict:
    """Register the student once, decide, set the alias, and write the pipeline's report.

    The encoder of a student that becomes champion is kept in the store, where a retraining starts from it.
    """
    evaluation = json.loads((inputs.evaluation / "evaluation.json").read_text())
    path = inputs.evaluation / "predictions.json"
    measured = parse_measured(path.read_bytes(), str(path))
    weights, results = file_digest(inputs.student / "model.safetensors"), Results(work.store)
    results.keep(measured, weights)
    lineage, trained = read_lineage(inputs.student), evaluation["served"]["made_by"]
    registry = Registry(work.environment, config.model)
    judged = {TEST_SPLIT_TAG: measured.test_split, "tenfold.top1": f"{measured.top1:.6f}",
              "tenfold.dataset": evaluation["dataset"]}  # fmt: skip
    version = registry.by_weights(weights) or registry.register(
        inputs.student, _example(inputs.student), weights, work.tracker.run_id,
        {
            **judged, "tenfold.fingerprint": lineage["fingerprint"],
            "tenfold.code": lineage["code"], "tenfold.run_id": work.environment.run_id,
            "tenfold.mlflow_run": _mlflow_run(lineage, work.environment), "tenfold.view": measured.view,
            "tenfold.trained_by": _mlflow_run(trained, work.environment) if trained else "",
            "tenfold.rung": evaluation["served"]["id"], "tenfold.labels": str(evaluation["counts"]["labelled"]),
        },
    )  # fmt: skip
    # of this run, also where an earlier one registered the same weights
    for tag, value in {GATE_TAG: canonical_json(config.model_dump()), **judged}.items():
        registry.tag(version.version, tag, value)
    card = model_card(evaluation, config.model, version.version, config.intended_use)
    registry.describe(version.version, card)
    ledger = Ledger(work.store, config.model, work.environment.run_id)
    asked = judge(results, ledger, version, measured, config)

    def keep() -> None:
        registry.tag(version.version, ENCODER_TAG, keep_encoder(inputs.encoder, work.store))

    def decision_of(champion: Registered | None) -> Decision:
        found = asked(champion)
        if not (config.approval and found.promote) or (champion is not None and champion.version == version.version):
            return found
        keep()  # who approves has no encoder at hand
        command = f"tenfold approve {version.version} --model {config.model}"
        return Decision([*found.checks, Check("approval", False, f"it passed, and waits for `{command}`")])

    outcome = promote(registry, ledger, version, decision_of, keep, work.reporter.note)
    decision, champion = outcome.decision, outcome.champion
    waits = any(check.name == "approval" for check in decision.checks)
    if waits or APPROVAL_TAG in version.tags:
        registry.tag(version.version, APPROVAL_TAG, "waiting" if waits else "decided")
    if decision.promote:
        registry.unpoint(CHALLENGER, version.version)
    else:
        registry.point(CHALLENGER, version.version)
    former = results.of(measured.test_split, champion.weights) if champion is not None else None
    verdict = Verdict(
        CHAMPION if decision.promote else CHALLENGER, config.model, version.version, decision.reasons,
        [asdict(check) for check in decision.checks],
        {"version": champion.version, "top1": former.top1 if former else None} if champion else None,
    )  # fmt: skip
    _record(verdict, evaluation, card, inputs, outputs, work)
    return verdict


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


def _record(
    verdict: Verdict, evaluation: dict[str, Any], card: str, inputs: Inputs, outputs: Outputs, work: Work
) -> None:
    run_id = work.environment.run_id
    name = json.loads(work.store.read(f"runs/{run_id}/config.json"))["name"]
    page = render({**evaluation, "run_id": run_id, "name": name}, asdict(verdict))
    outputs.report.write_text(page, encoding="utf-8")
    reasons = "\n".join(
        f"- {'passed' if check['passed'] else '**failed**'}: {check['told']}" for check in verdict.checks
    )
    outputs.verdict.write_text(
        f"## {verdict.model} version {verdict.version}: {verdict.alias}\n\n{reasons}\n", encoding="utf-8"
    )
    result = {"verdict": asdict(verdict), "evaluation": _brief(evaluation)}
    work.store.write(f"runs/{run_id}/report.html", page.encode())
    work.store.write(f"runs/{run_id}/result.json", canonical_json(result).encode())
    work.store.write(f"runs/{run_id}/model_card.md", card.encode())
    work.tracker.artifact(outputs.report)
    _tell_parent(verdict, evaluation, inputs, outputs.report, work.environment)


def _brief(evaluation: dict[str, Any]) -> dict[str, Any]:
    kept = ("dataset", "classes", "test_images", "confidence", "counts", "stages", "quarantined", "leaks")
    rungs = [
        {**{key: rung[key] for key in ("id", "title", "seconds", "gain", "served")}, "top1": rung["scores"]["top1"]}
        for rung in evaluation["rungs"]
    ]
    served = {key: evaluation["served"][key] for key in ("id", "title", "told", "choosing", "temperature")}
    return {**{key: evaluation[key] for key in kept}, "rungs": rungs, "served": served}


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
