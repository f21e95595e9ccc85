"""Evaluation: every rung on the same test images, and the name of a test split."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import EVALUATION, HEAD, SIDE, TINY, Made, seal

from tenfold.augment.spec import parse_spec
from tenfold.components.evaluate import ladder
from tenfold.components.evaluate import stage as evaluate
from tenfold.config import (
    Description,
    EvaluateConfig,
    EvalViewConfig,
    KeptEncoderConfig,
    ResNetConfig,
    TimmConfig,
    ViTConfig,
)
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.choice import divide
from tenfold.evaluation.measured import Measured, parse_measured
from tenfold.evaluation.metrics import reliability
from tenfold.fingerprint import digest, file_digest
from tenfold.models.saved import build, save
from tenfold.predictor import Predictor
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
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html", tmp_path / "served")
    inputs = evaluate_inputs(made, digits, self_trained=self_trained)
    result = evaluate.run(EvaluateConfig(export=False, bootstrap=100), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    rungs = {rung["id"]: rung for rung in found["rungs"]}
    assert list(rungs)[-1] == "student"
    assert ("self_trained" in rungs) is self_trained
    assert rungs.keys() >= {"pixels_logistic", "pixels_spreading", "encoder_logistic", "baseline", "finetuned"}
    assert rungs["pixels_logistic"]["scores"]["top1"]["value"] > 0.5, "digits are easy even on pixels"
    assert rungs[found["served"]["id"]]["scores"]["top1"]["value"] == result.served.top1.value
    assert rungs["student"]["seconds"] == (50 if self_trained else 40)
    predictions = json.loads((outputs.evaluation / "predictions.json").read_text())
    reader = SplitReader(digits, "test")
    choosing, measuring = divide(reader.keys, reader.labels(), 0.5)
    assert predictions["truth"] == reader.labels()[measuring].tolist()
    kept = parse_measured(json.dumps(predictions).encode(), "here")
    assert kept.top1 == pytest.approx(result.served.top1.value)
    assert kept.calibration_error == pytest.approx(result.served.calibration_error)
    assert kept.parameters == found["served"]["parameters"] > 1000
    assert kept.latency_ms == found["served"]["latency_ms"] > 0
    assert found["served"]["bytes"] == (outputs.served / "model.safetensors").stat().st_size
    assert (found["test_images"], found["served"]["choosing"]) == (len(measuring), len(choosing))
    assert outputs.report.read_text().startswith("<!doctype html>")


def test_evaluation_works_where_every_training_image_is_labelled(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "without_labels", lambda readers: [])
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html", tmp_path / "served")
    inputs = evaluate_inputs(made, digits, self_trained=True)
    evaluate.run(EvaluateConfig(export=False, bootstrap=100), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    assert "pixels_spreading" in {rung["id"] for rung in found["rungs"]}


def test_evaluation_refuses_a_classifier_of_other_classes(
    stranger: Path, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = replace(evaluate_inputs(made, digits, self_trained=True), finetuned=seal(stranger, "finetune"))
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html", tmp_path / "served")
    with pytest.raises(DataError, match="classes"):
        evaluate.run(EvaluateConfig(export=False, bootstrap=100), inputs, outputs, work("evaluate"))
    assert not outputs.report.exists()


def test_evaluation_refuses_a_classifier_that_was_made_for_another_view(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = evaluate_inputs(made, digits, self_trained=True)
    spec = parse_spec(inputs.evaluation)
    other = spec.model_copy(update={"evaluation": EvalViewConfig(crop_proportion=0.875)}).encoded()
    with pytest.raises(DataError, match=r"made for another view: crop_proportion 1.0 \(here 0.875\)"):
        evaluate.run(
            EvaluateConfig(export=False, bootstrap=100), replace(inputs, evaluation=other),
            evaluate.Outputs(tmp_path / "e", tmp_path / "r.html", tmp_path / "s"), work("evaluate"),
        )  # fmt: skip


@pytest.mark.parametrize("network", [TINY, ViTConfig(vit="tiny", width=24, heads=3, depth=2, patch=4)])
def test_what_is_served_is_the_chosen_rung_with_calibrated_probabilities(
    network: ResNetConfig | ViTConfig, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    """Three steps of training teach nothing, so the frozen encoder with a logistic regression is ahead here."""
    description = Description(kind="simclr", network=network, head=HEAD, image_size=SIDE,
                              evaluation=EvalViewConfig(crop_proportion=1.0))  # fmt: skip
    torch.manual_seed(0)
    save(tmp_path / "brought", build(description), description)
    name = digest((tmp_path / "brought" / "model.json").read_text())
    config = EvaluateConfig(
        export=False,
        bootstrap=100,
        encoder=KeptEncoderConfig(path=str(tmp_path / "brought"), digest=name),
        tolerance=0.9,
    )
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html", tmp_path / "served")
    evaluate.run(config, evaluate_inputs(made, digits, self_trained=True), outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    assert {"brought_logistic", "brought_neighbours", "brought_spreading"} < {rung["id"] for rung in found["rungs"]}
    assert found["served"]["id"] == "brought_logistic", "it is the cheapest, and 90 points are tolerated"
    assert found["served"]["made_by"] is None
    kept = parse_measured((outputs.evaluation / "predictions.json").read_bytes(), "here")
    reader = SplitReader(digits, "test")
    _, measuring = divide(reader.keys, reader.labels(), 0.5)
    predictor = Predictor(outputs.served)
    assert predictor.description.network == network
    answers = predictor([reader.image(int(number)).tobytes() for number in measuring])
    assert [digits.manifest.classes.index(answer.label) for answer in answers] == kept.predicted
    right = np.array([digits.manifest.classes[label] for label in reader.labels()[measuring]])
    hits = np.array([answer.label for answer in answers]) == right
    confidence = np.array([answer.probability for answer in answers])
    assert found["served"]["temperature"] != 1.0
    bins = next(rung["scores"]["reliability"] for rung in found["rungs"] if rung["served"])
    assert [each["count"] for each in bins] == [each.count for each in reliability(confidence, hits)]
    assert "Shipped</strong>: the logistic regression on the frozen encoder that was brought" in (
        outputs.report.read_text()
    )


def test_a_student_that_is_asked_for_is_shipped_as_it_is(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html", tmp_path / "served")
    inputs = evaluate_inputs(made, digits, self_trained=True)
    evaluate.run(EvaluateConfig(export=False, bootstrap=100, selection=0), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    assert found["served"]["id"] == "student"
    assert found["test_images"] == len(SplitReader(digits, "test"))
    assert file_digest(outputs.served / "model.safetensors") == file_digest(inputs.student / "model.safetensors")


def test_networks_that_are_larger_than_the_student_are_not_shipped_in_its_stead(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    """The student is what fits where it is served; a teacher of twice its width is no answer to that."""
    wide = Description(kind="classifier", network=ResNetConfig(depth=10, width=0.25), classes=digits.manifest.classes,
                       image_size=SIDE, evaluation=EvalViewConfig(crop_proportion=1.0))  # fmt: skip
    folder = tmp_path / "wide"
    save(folder, build(wide), wide)
    (folder / "history.json").write_text("[]")
    inputs = replace(evaluate_inputs(made, digits, self_trained=True), finetuned=seal(folder, "finetune"))
    spec = parse_spec(EVALUATION)
    readers = {name: SplitReader(digits, name) for name in digits.manifest.splits}
    folders = {name: getattr(inputs, name) for name in ("encoder", "baseline", "finetuned", "teacher", "soft_labels",
                                                        "student")}  # fmt: skip
    rungs, _ = ladder.measure(EvaluateConfig(), folders, digits, readers, spec, torch.device("cpu"), work("evaluate"))
    assert [rung.id for rung in ladder.shippable(rungs)] == ["baseline", "encoder_logistic", "self_trained", "student"]
    (teacher,) = [rung for rung in rungs if rung.id == "self_trained"]
    assert teacher.network is not None
    other = replace(
        teacher.network, description=teacher.network.description.model_copy(update={"network": TimmConfig(timm="x")})
    )
    rungs = [replace(rung, network=other) if rung is teacher else rung for rung in rungs]
    assert "self_trained" not in {rung.id for rung in ladder.shippable(rungs)}, "nothing serves timm's networks"


def test_two_test_splits_have_one_name_only_if_images_classes_and_view_are_equal(digits: Dataset) -> None:
    spec = parse_spec(EVALUATION)
    name = evaluate.test_split_name(digits, spec, 0.5)
    assert name == evaluate.test_split_name(digits, spec, 0.5)
    assert name != evaluate.test_split_name(digits, spec, 0.4), "other images measure"
    cropped = spec.model_copy(update={"evaluation": EvalViewConfig(crop_proportion=0.5)})
    assert evaluate.test_split_name(digits, cropped, 0.5) != name
    split = digits.manifest.splits["test"]
    fewer = [shard.model_copy(update={"dropped": [0]}) for shard in split.shards]
    splits = {**digits.manifest.splits, "test": split.model_copy(update={"shards": fewer})}
    removed = replace(digits, manifest=digits.manifest.model_copy(update={"splits": splits}))
    assert evaluate.test_split_name(removed, spec, 0.5) != name, "an image was taken out"
    renamed = digits.manifest.model_copy(update={"classes": digits.manifest.classes[::-1]})
    assert evaluate.test_split_name(replace(digits, manifest=renamed), spec, 0.5) != name


def test_the_accuracy_of_no_predictions_is_not_a_number() -> None:
    assert np.isnan(Measured(test_split="s", view="v", classes=["a"], truth=[], predicted=[]).top1)
