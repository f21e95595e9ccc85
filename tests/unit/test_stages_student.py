"""Distillation: what the student learns from, and which teachers and labels it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain import SHORT, TINY, Made, described, distill_inputs, history, weights
from safetensors.numpy import load_file

from tenfold.components.distill import stage as distill
from tenfold.components.pseudo_label import stage as pseudo_label
from tenfold.config import (
    DataConfig,
    DistillConfig,
)
from tenfold.data.build import build_dataset
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.errors import DataError
from tenfold.models.saved import load_classifier
from tenfold.storage import FileStore
from tenfold.work import Work


def test_soft_labels_lie_in_a_file_a_shard_without_the_rows_that_were_dropped(digits: Dataset, tmp_path: Path) -> None:
    split = digits.manifest.splits["unlabelled"]
    assert len(split.shards) > 1
    shards = [shard.model_copy(update={"dropped": [0, 3]}) for shard in split.shards]
    splits = {**digits.manifest.splits, "unlabelled": split.model_copy(update={"shards": shards})}
    dataset = replace(digits, manifest=digits.manifest.model_copy(update={"splits": splits}))
    reader = SplitReader(dataset, "unlabelled")
    given = np.random.default_rng(0).dirichlet(np.ones(10), len(reader))
    pseudo_label._write(tmp_path, reader, given, dataset.digest)
    start = 0
    for shard in shards:
        part = load_file(tmp_path / f"{shard.sha256}.safetensors")["probabilities"]
        np.testing.assert_allclose(part, given[start : start + shard.kept], rtol=1e-6)
        start += shard.kept
    assert start == len(given)


def test_the_student_has_its_own_network_and_the_data_set_s_classes(made: Made, digits: Dataset) -> None:
    _, description = load_classifier(made.student)
    assert description.network == TINY
    assert description.head is None
    assert description.classes == digits.manifest.classes


@pytest.mark.parametrize("targets", ["soft_labels", "live_teacher"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_student_learns_from_soft_labels_or_the_live_teacher_with_and_without_true_labels(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], targets: Any, alpha: float
) -> None:
    config = DistillConfig(**SHORT, network=TINY, targets=targets, alpha=alpha)
    distill.run(config, distill_inputs(made, digits), distill.Outputs(tmp_path / "s"), work("distill"))
    first = history(tmp_path / "s")[0]
    assert (first["supervised_loss"] > 0) == (alpha < 1)
    mixed = alpha * first["distillation_loss"] + (1 - alpha) * first["supervised_loss"]
    assert first["loss"] == pytest.approx(mixed, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_student_can_learn_from_the_labelled_images_alone(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], alpha: float
) -> None:
    config = DistillConfig(**SHORT, network=TINY, images="labelled", alpha=alpha)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = distill.Distillation.loss

        def loss(self: Any, batches: Any) -> Any:
            seen.extend(batches["unlabelled"].numbers.tolist())
            assert len(self.soft) == 20
            return whole(self, batches)

        patch.setattr(distill.Distillation, "loss", loss)
        distill.run(config, distill_inputs(made, digits), distill.Outputs(tmp_path / "s"), work("distill"))
    assert max(seen) < 20


def test_a_student_can_start_from_the_finetuned_teacher(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = DistillConfig(
        steps=1, epochs=None, batch_size=16, network=TINY, init="finetuned",
        optimizer={"name": "sgd", "learning_rate": 1e-30, "warmup": 0},  # type: ignore[arg-type]
    )  # fmt: skip
    distill.run(config, distill_inputs(made, digits), distill.Outputs(tmp_path / "s"), work("distill"))
    before, after = weights(made.finetuned), weights(tmp_path / "s")
    for name, parameter in load_classifier(made.finetuned)[0].named_parameters():
        assert torch.equal(before[name], after[name]), name
        assert torch.equal(parameter.detach(), after[name])
    assert described(tmp_path / "s") == described(made.finetuned)


def test_soft_labels_of_another_data_set_are_refused(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = DataConfig.model_validate({"labels": {"per_class": 3}, "split": {"test_fraction": 0.3}})
    other, _ = build_dataset(open_source("digits"), config, FileStore(tmp_path / "other"))
    with pytest.raises(DataError, match="another data set"):
        distill.run(
            DistillConfig(**SHORT, network=TINY), replace(distill_inputs(made, digits), dataset=other.uri),
            distill.Outputs(tmp_path / "s"), work("distill"),
        )  # fmt: skip
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("change", ["order", "fewer"])
def test_soft_labels_with_other_classes_are_refused_before_any_step(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(made.soft_labels, tmp_path / "soft"))
    index = json.loads((folder / "index.json").read_text())
    classes = index["classes"][::-1] if change == "order" else index["classes"][1:]
    (folder / "index.json").write_text(json.dumps({**index, "classes": classes}))
    steps: list[object] = []
    monkeypatch.setattr(distill.Distillation, "loss", lambda *given: steps.append(given))
    place = work("distill")
    with pytest.raises(DataError) as caught:
        distill.run(
            DistillConfig(**SHORT, network=TINY), distill_inputs(made, digits, soft_labels=folder),
            distill.Outputs(tmp_path / "s"), place,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert "classes" in str(caught.value)
    assert steps == []
    assert list(place.store.list(place.shared)) == []
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("settings", "who"), [({"targets": "live_teacher"}, "teacher"), ({"init": "finetuned"}, "finetuned")]
)
def test_distillation_refuses_other_classes_before_training(
    stranger: Path, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work],
    settings: dict[str, Any], who: str,
) -> None:  # fmt: skip
    config = DistillConfig(**SHORT, network=TINY, **settings)
    with pytest.raises(DataError, match="classes"):
        distill.run(
            config, distill_inputs(made, digits, **{who: stranger}), distill.Outputs(tmp_path / "s"), work("distill")
        )
    assert not (tmp_path / "s").exists()
