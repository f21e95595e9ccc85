"""Evaluation: every rung on the same test images, and the name of a test split."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chain import EVALUATION, Made, seal

from tenfold.augment.spec import parse_spec
from tenfold.components.evaluate import stage as evaluate
from tenfold.config import (
    EvaluateConfig,
    EvalViewConfig,
)
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.measured import Measured, parse_measured
from tenfold.work import Work


def evaluate_inputs(made: Made, dataset: Dataset, *, self_trained: bool) -> evaluate.Inputs:
    return evaluate.Inputs(
        dataset.uri, EVALUATION, seal(made.root / "views", "augment"), seal(made.encoder, "pretrain"),
        seal(made.baseline, "baseline"), seal(made.finetuned, "finetune"),
        seal(made.teacher, "self_train", enabled=self_trained), seal(made.soft_labels, "pseudo_label"),
        seal(made.student, "distill"),
    )  # fmt: skip


@pytest.mark.parametrize("self_trained", [True, False])
def test_evaluation_measures_every_rung_on_the_same_test_images(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], self_trained: bool
) -> None:
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html")
    inputs = evaluate_inputs(made, digits, self_trained=self_trained)
    result = evaluate.run(EvaluateConfig(bootstrap=100), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    rungs = {rung["id"]: rung for rung in found["rungs"]}
    assert list(rungs)[-1] == "student"
    assert ("self_trained" in rungs) is self_trained
    assert rungs.keys() >= {"pixels_logistic", "pixels_spreading", "encoder_logistic", "baseline", "finetuned"}
    assert rungs["pixels_logistic"]["scores"]["top1"]["value"] > 0.5, "digits are easy even on pixels"
    assert rungs["student"]["scores"]["top1"]["value"] == result.student.top1.value
    assert rungs["student"]["seconds"] == (50 if self_trained else 40)
    predictions = json.loads((outputs.evaluation / "predictions.json").read_text())
    truth = SplitReader(digits, "test").labels().tolist()
    assert predictions["truth"] == truth
    kept = parse_measured(json.dumps(predictions).encode(), "here")
    assert kept.top1 == pytest.approx(result.student.top1.value)
    assert kept.calibration_error == pytest.approx(result.student.calibration_error)
    assert kept.parameters == found["student"]["parameters"] > 1000
    assert kept.latency_ms == found["student"]["latency_ms"] > 0
    assert found["student"]["bytes"] == (inputs.student / "model.safetensors").stat().st_size
    assert found["test_images"] == len(truth)
    assert outputs.report.read_text().startswith("<!doctype html>")


def test_evaluation_works_where_every_training_image_is_labelled(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_without_labels", lambda readers: [])
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html")
    inputs = evaluate_inputs(made, digits, self_trained=True)
    evaluate.run(EvaluateConfig(bootstrap=100), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    assert "pixels_spreading" in {rung["id"] for rung in found["rungs"]}


def test_evaluation_refuses_a_classifier_of_other_classes(
    stranger: Path, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = replace(evaluate_inputs(made, digits, self_trained=True), finetuned=seal(stranger, "finetune"))
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html")
    with pytest.raises(DataError, match="classes"):
        evaluate.run(EvaluateConfig(bootstrap=100), inputs, outputs, work("evaluate"))
    assert not outputs.report.exists()


def test_evaluation_refuses_a_classifier_that_was_made_for_another_view(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = evaluate_inputs(made, digits, self_trained=True)
    spec = parse_spec(inputs.evaluation)
    other = spec.model_copy(update={"evaluation": EvalViewConfig(crop_proportion=0.875)}).encoded()
    with pytest.raises(DataError, match=r"made for another view: crop_proportion 1.0 \(here 0.875\)"):
        evaluate.run(
            EvaluateConfig(bootstrap=100), replace(inputs, evaluation=other),
            evaluate.Outputs(tmp_path / "e", tmp_path / "r.html"), work("evaluate"),
        )  # fmt: skip


def test_two_test_splits_have_one_name_only_if_images_classes_and_view_are_equal(digits: Dataset) -> None:
    spec = parse_spec(EVALUATION)
    name = evaluate.test_split_name(digits, spec)
    assert name == evaluate.test_split_name(digits, spec)
    cropped = spec.model_copy(update={"evaluation": EvalViewConfig(crop_proportion=0.5)})
    assert evaluate.test_split_name(digits, cropped) != name
    renamed = digits.manifest.model_copy(update={"classes": digits.manifest.classes[::-1]})
    assert evaluate.test_split_name(replace(digits, manifest=renamed), spec) != name


def test_the_accuracy_of_no_predictions_is_not_a_number() -> None:
    assert np.isnan(Measured(test_split="s", view="v", classes=["a"], truth=[], predicted=[]).top1)
