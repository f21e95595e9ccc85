"""Self-training and soft labels: a better teacher, and what it says of the unlabelled images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain import EVALUATION, RANDOM, SHORT, STRONG, Made, described, history, new_work, pseudo_label_inputs, weights
from safetensors.torch import load_file

from tenfold.augment.spec import parse_spec
from tenfold.components.distill import stage as distill
from tenfold.components.pseudo_label import stage as pseudo_label
from tenfold.components.self_train import stage as self_train
from tenfold.config import (
    PropagateConfig,
    PseudoLabelConfig,
    SelfTrainConfig,
)
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.inference import apply, evaluation_images, probabilities
from tenfold.models.saved import load_classifier
from tenfold.progress import Reporter
from tenfold.work import Work


def test_self_training_keeps_the_teacher_s_description_and_changes_its_weights(made: Made) -> None:
    assert described(made.teacher) == described(made.finetuned)
    assert not torch.equal(weights(made.teacher)["linear.weight"], weights(made.finetuned)["linear.weight"])
    assert history(made.teacher)[-1]["confident_share"] > 0


def test_self_training_that_is_switched_off_passes_the_teacher_on(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = self_train.Inputs(digits.uri, RANDOM, STRONG, EVALUATION, made.finetuned, made.encoder)
    self_train.run(SelfTrainConfig(enabled=False), inputs, self_train.Outputs(tmp_path / "t"), work("self_train"))
    for name in ("model.safetensors", "model.json", "history.json"):
        assert (tmp_path / "t" / name).read_bytes() == (made.finetuned / name).read_bytes()


def test_self_training_without_a_confident_label_warns_and_stays_finite(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    events = tmp_path / "events"
    heard = replace(work("self_train"), reporter=Reporter("self_train", events))
    inputs = self_train.Inputs(digits.uri, RANDOM, STRONG, EVALUATION, made.finetuned, made.encoder)
    self_train.run(SelfTrainConfig(**SHORT, threshold=1.0), inputs, self_train.Outputs(tmp_path / "t"), heard)
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert any(event["kind"] == "warning" and "threshold 1.0" in event["text"] for event in told)
    assert all(np.isfinite(point["loss"]) for point in history(tmp_path / "t"))


def test_self_training_refuses_a_teacher_of_other_classes(
    stranger: Path, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    with pytest.raises(DataError, match="classes"):
        self_train.run(
            SelfTrainConfig(**SHORT),
            self_train.Inputs(digits.uri, RANDOM, STRONG, EVALUATION, stranger, stranger),
            self_train.Outputs(tmp_path / "t"), work("self_train"),
        )  # fmt: skip


def test_soft_labels_are_distributions_a_file_a_shard_and_true_where_the_label_is_known(
    made: Made, digits: Dataset
) -> None:
    index = json.loads((made.soft_labels / "index.json").read_text())
    shards = digits.manifest.splits["unlabelled"].shards
    assert index["shards"] == [shard.sha256 for shard in shards]
    assert len(shards) > 1
    parts = [load_file(made.soft_labels / f"{s.sha256}.safetensors")["probabilities"] for s in shards]
    assert [len(part) for part in parts] == [shard.count for shard in shards]
    soft = torch.cat(parts)
    assert torch.allclose(soft.sum(1), torch.ones(len(soft)), atol=1e-5)
    assert torch.equal(distill.read_soft_labels(made.soft_labels, digits), soft)
    unlabelled, labelled = SplitReader(digits, "unlabelled"), SplitReader(digits, "labelled")
    for key, label in zip(labelled.keys, labelled.labels(), strict=True):
        assert soft[unlabelled.keys.index(key), label] == pytest.approx(1)
    assert (made.soft_labels / "confidence.png").stat().st_size > 0


@pytest.fixture(scope="module")
def plain(made: Made, digits: Dataset) -> Path:
    """Soft labels without any extra."""
    folder = made.root / "plain-soft-labels"
    inputs = pseudo_label_inputs(made, digits)
    pseudo_label.run(PseudoLabelConfig(), inputs, pseudo_label.Outputs(folder), new_work(made.root, "plain"))
    return folder


def predictions(folder: Path, dataset: Dataset) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a classifier's predictions for the unlabelled images, as evaluation makes them."""
    model, _ = load_classifier(folder)
    images = evaluation_images(SplitReader(dataset, "unlabelled"), parse_spec(EVALUATION))
    return apply(probabilities(model), images, torch.device("cpu"))


def test_soft_labels_without_extras_are_the_teacher_s_own_predictions(made: Made, plain: Path, digits: Dataset) -> None:
    soft = distill.read_soft_labels(plain, digits).numpy()
    known = set(SplitReader(digits, "labelled").keys)
    unknown = [n for n, key in enumerate(SplitReader(digits, "unlabelled").keys) if key not in known]
    np.testing.assert_allclose(soft[unknown], predictions(made.teacher, digits)[unknown], atol=1e-5)


def test_soft_labels_can_be_propagated_balanced_and_sharpened(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = pseudo_label_inputs(made, digits)
    config = PseudoLabelConfig(propagate=PropagateConfig(neighbours=5), balance=True)
    pseudo_label.run(config, inputs, pseudo_label.Outputs(tmp_path / "soft"), work("pseudo_label"))
    soft = distill.read_soft_labels(tmp_path / "soft", digits)
    np.testing.assert_allclose(soft.mean(0), 0.1, atol=0.01)
    assert not torch.allclose(soft, distill.read_soft_labels(made.soft_labels, digits))


def test_soft_labels_of_both_teachers_are_their_mean(
    made: Made, plain: Path, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = pseudo_label_inputs(made, digits)
    pseudo_label.run(
        PseudoLabelConfig(teachers="both"), inputs, pseudo_label.Outputs(tmp_path / "both"), work("pseudo_label")
    )
    both, one = (distill.read_soft_labels(folder, digits).numpy() for folder in (tmp_path / "both", plain))
    unlabelled = SplitReader(digits, "unlabelled")
    known = set(SplitReader(digits, "labelled").keys)
    unknown = [number for number, key in enumerate(unlabelled.keys) if key not in known][:200]
    other = predictions(made.finetuned, digits)
    np.testing.assert_allclose(both[unknown], (one[unknown] + other[unknown]) / 2, atol=1e-5)
    assert not np.allclose(one[unknown], other[unknown])


def test_pseudo_labelling_refuses_a_teacher_of_other_classes(
    stranger: Path, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    with pytest.raises(DataError, match="classes"):
        pseudo_label.run(
            PseudoLabelConfig(), pseudo_label_inputs(made, digits, teacher=stranger),
            pseudo_label.Outputs(tmp_path / "p"), work("pseudo_label"),
        )  # fmt: skip
