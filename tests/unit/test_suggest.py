"""Which images are suggested for labelling."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from chain import Made
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import ConfigError, DataError
from tenfold.evaluation import audit
from tenfold.evaluation.suggest import doubtful, suggest, typical

Floats = NDArray[np.float64]
#: Directions of three kinds of images, and how many there are of each.
KINDS, COUNTS = np.eye(3), (60, 40, 20)


def kinds(seed: int = 0, spread: float = 0.1) -> tuple[Floats, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(3), COUNTS)
    return KINDS[kind] + spread * rng.normal(size=(len(kind), 3)), kind


def test_typical_images_are_the_middle_ones_of_each_kind_the_largest_first() -> None:
    features, kind = kinds()
    numbers, clusters, scores = typical(features, features[:0], 3, 0)
    assert kind[numbers].tolist() == [0, 1, 2]
    assert len(set(clusters.tolist())) == 3
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit - KINDS[kind], axis=1)
    for number in numbers:
        own = distances[kind == kind[number]]
        assert distances[number] <= np.quantile(own, 0.25), "no outlier of its kind"
    assert (scores > 0).all()


def test_a_kind_that_has_a_label_waits_until_the_others_have_one() -> None:
    features, kind = kinds()
    numbers, _, _ = typical(features, KINDS[:1], 2, 0)
    assert sorted(kind[numbers].tolist()) == [1, 2]


def test_more_than_the_clusters_hold_and_all_that_there_is_can_be_asked_for() -> None:
    features, _ = kinds()
    numbers, _, _ = typical(features, features[:0], len(features), 0)
    assert sorted(numbers.tolist()) == list(range(len(features)))
    same, _, _ = typical(np.ones((7, 3)), np.ones((2, 3)), 7, 0)
    assert sorted(same.tolist()) == list(range(7)), "images that are all alike"


def test_doubtful_images_are_the_ones_between_two_classes_and_differ() -> None:
    features, _ = kinds()
    sure = np.tile([0.8, 0.15, 0.05], (len(features), 1))
    sure[[3, 4, 70, 71, 110]] = [0.36, 0.34, 0.3]
    sure[[5, 6]] = [0.5, 0.4, 0.1]
    numbers, clusters, scores = doubtful(features, sure, 3, 0)
    assert set(numbers.tolist()) <= {3, 4, 70, 71, 110}
    assert len(set(clusters.tolist())) == 3
    assert scores == pytest.approx([0.98] * 3)
    everything, _, _ = doubtful(features, sure, len(features), 0)
    assert sorted(everything.tolist()) == list(range(len(features)))


def test_what_is_suggested_has_no_label_comes_once_and_the_same_again(
    made: Made, digits: Dataset, tmp_path: Path
) -> None:
    known = SplitReader(digits, "labelled", tmp_path)
    rest = SplitReader(digits, "unlabelled", tmp_path)
    few, numbers, way = suggest(digits, made.encoder, 20, None, 1, tmp_path)
    assert way == "typical", "2 labels a class are there"
    assert [rest.path(number) for number in numbers] == [each.path for each in few]
    assert len({each.path for each in few}) == 20
    assert {rest.keys[number] for number in numbers}.isdisjoint(known.keys)
    assert all(each.guess in known.classes and 0 < each.confidence <= 1 for each in few)
    assert suggest(digits, made.encoder, 20, None, 1, tmp_path)[1] == numbers
    _, others, way = suggest(digits, made.encoder, 90, None, 1, tmp_path)
    assert way == "doubtful"
    assert len(set(others)) == 90


def test_the_command_writes_a_table_an_import_and_a_sheet(made: Made, digits: Dataset, tmp_path: Path) -> None:
    output = tmp_path / "to label"
    arguments = ["suggest-labels", digits.uri, "--encoder", str(made.encoder), "--budget", "12"]
    arguments += ["--output", str(output)]
    told = CliRunner().invoke(app, [*arguments, "--image-prefix", "s3://bucket/images/"])
    assert told.exit_code == 0, told.output
    assert "12 typical images to label" in told.output
    rows = list(csv.DictReader((output / "suggestions.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["path", "label", "guess", "confidence", "cluster", "score"]
    assert len(rows) == 12
    assert {row["label"] for row in rows} == {""}
    tasks = json.loads((output / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"s3://bucket/images/{row['path']}" for row in rows]
    (result,) = tasks[0]["predictions"][0]["result"]
    assert result["value"]["choices"] == [rows[0]["guess"]]
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.size == (960, 192)
    again = CliRunner().invoke(app, arguments).exception
    assert isinstance(again, DataError)
    assert "is there already" in str(again)


def test_doubts_need_labels_of_two_classes(
    made: Made, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SplitReader, "labels", lambda reader: np.zeros(len(reader), dtype=np.int64))
    _, _, way = suggest(digits, made.encoder, 300, None, 0, tmp_path)
    assert way == "typical"
    with pytest.raises(ConfigError, match="two classes at least"):
        suggest(digits, made.encoder, 5, "doubtful", 0, tmp_path)


def test_labels_are_audited_where_each_class_has_enough_of_them(
    made: Made, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FEWEST", 1)
    doubts = audit.audit_labels(digits, made.encoder, tmp_path)
    assert doubts
    assert all(doubt.label != doubt.suggestion and doubt.margin > 0 for doubt in doubts)
    monkeypatch.setattr(audit, "FEWEST", 1000)
    with pytest.raises(DataError, match="at least 1000 of each class are needed"):
        audit.audit_labels(digits, made.encoder, tmp_path)
