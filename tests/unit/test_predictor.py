from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from tenfold.augment.evaluation import evaluation_views
from tenfold.augment.spec import ViewSpec
from tenfold.cli.app import app
from tenfold.config import Description, EvalViewConfig, PixelsConfig, ResNetConfig
from tenfold.data.decode import CHECKED, encode_png
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import BadImageError, ConfigError, DataError
from tenfold.evaluation.inference import apply, evaluation_images, probabilities
from tenfold.models.exported import export
from tenfold.models.heads import Classifier
from tenfold.models.saved import build, load_classifier, save
from tenfold.predictor import Predictor, probe

CLASSES = ["ant", "bee", "cat"]
PROPORTION = 0.8


@pytest.fixture
def student(tmp_path: Path) -> Path:
    description = Description(
        kind="classifier", network=ResNetConfig(depth=10, width=0.125), classes=CLASSES, image_size=16,
        evaluation=EvalViewConfig(crop_proportion=PROPORTION),
    )  # fmt: skip
    torch.manual_seed(0)
    model = build(description)
    assert isinstance(model, Classifier)
    nn.init.normal_(model.linear.weight)
    folder = tmp_path / "student"
    save(folder, model, description)
    return folder


def image(seed: int, size: tuple[int, int] = (20, 31)) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_a_prediction_names_the_most_likely_class_and_the_probability_of_each(student: Path) -> None:
    found = Predictor(student)([image(seed) for seed in range(5)])
    assert len(found) == 5
    for prediction in found:
        assert list(prediction.probabilities) == CLASSES
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.probability == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.label] == prediction.probability
    assert len({round(prediction.probability, 6) for prediction in found}) > 1


def test_an_image_s_prediction_does_not_depend_on_the_others_beside_it(student: Path) -> None:
    predict = Predictor(student)
    together = predict([image(0), image(1, (40, 17)), image(2)])
    alone = [predict([data])[0] for data in (image(0), image(1, (40, 17)), image(2))]
    for a, b in zip(together, alone, strict=True):
        assert a.label == b.label
        assert a.probability == pytest.approx(b.probability, abs=1e-5)


def test_no_image_gives_no_prediction(student: Path) -> None:
    assert Predictor(student)([]) == []


def test_serving_gives_the_probabilities_that_evaluation_measures(student: Path, digits: Dataset) -> None:
    model, description = load_classifier(student)
    reader = SplitReader(digits, "labelled")
    spec = ViewSpec(backend="torchvision", image_size=16, evaluation=description.evaluation)
    measured = apply(probabilities(model), evaluation_images(reader, spec), torch.device("cpu"), batch_size=7)
    served = Predictor(student)([reader.image(number).tobytes() for number in range(len(reader))])
    rows = [[p.probabilities[name] for name in CLASSES] for p in served]
    np.testing.assert_allclose(rows, measured, atol=1e-5)


def test_the_description_s_view_is_what_the_network_sees(student: Path) -> None:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    bordered = pixels.copy()
    bordered[[0, 1, 2, -1, -2, -3]] = 0  # outside the central 80%
    predict = Predictor(student)
    assert predict([encode_png(pixels)]) == predict([encode_png(bordered)])


def test_a_jpeg_and_a_grey_png_are_read_too(student: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (30, 20), 90).save(buffer, format="JPEG", quality=100)
    grey = encode_png(np.full((20, 30), 90, np.uint8))
    a, b = Predictor(student)([buffer.getvalue(), grey])
    assert a.label == b.label
    assert a.probability == pytest.approx(b.probability, abs=0.01)


def test_images_from_outside_have_a_limit_and_those_of_a_data_set_none(student: Path) -> None:
    with pytest.raises(BadImageError, match="more than max_pixels=100"):
        Predictor(student, 100)([image(0)])
    large = io.BytesIO()
    Image.new("1", (8100, 8100)).save(large, format="PNG")
    with pytest.raises(BadImageError, match="8100 x 8100 pixels"):
        Predictor(student)([large.getvalue()])
    assert Predictor(student, CHECKED)([large.getvalue()])[0].label in CLASSES


@pytest.mark.parametrize("data", [b"", b"<html>no image</html>", image(0)[:60]])
def test_what_is_no_image_is_refused(student: Path, data: bytes) -> None:
    with pytest.raises(BadImageError):
        Predictor(student)([image(0), data])


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.json is missing"):
        Predictor(tmp_path)


def test_the_command_prints_csv_or_json_and_refuses_both(student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"a,{number}.png").write_bytes(image(number))
    line = ["predict", str(folder), "--student", str(student)]
    rows = list(csv.DictReader(CliRunner().invoke(app, [*line, "--csv"]).output.splitlines()))
    assert list(rows[0]) == ["path", "label", "probability", "p(ant)", "p(bee)", "p(cat)"]
    found = Predictor(student)([(folder / f"a,{number}.png").read_bytes() for number in range(3)])
    for number, (row, prediction) in enumerate(zip(rows, found, strict=True)):
        assert row["path"] == str(folder / f"a,{number}.png")
        assert row["label"] == prediction.label
        for name in CLASSES:
            assert float(row[f"p({name})"]) == pytest.approx(prediction.probabilities[name], abs=1e-4)
    told = [json.loads(text) for text in CliRunner().invoke(app, [*line, "--json"]).output.splitlines()]
    assert [each["label"] for each in told] == [row["label"] for row in rows]
    assert isinstance(CliRunner().invoke(app, [*line, "--json", "--csv"]).exception, ConfigError)


def test_a_folder_without_images_is_told_and_the_rest_is_classified(student: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(image(0))
    line = ["predict", str(tmp_path / "empty"), str(tmp_path / "a.png"), "--student", str(student)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize(
    "change",
    [{"crop_proportion": 0.9}, {"interpolation": "linear"}, {"pixels": {"channels": 3, "bits": 8, "white": 200}}],
)
def test_a_classifier_whose_view_is_not_the_measured_one_is_refused(student: Path, change: dict[str, object]) -> None:
    """As where another version of tenfold makes other views of the same description."""
    model, description = load_classifier(student)
    measured = description.model_copy(update={"probe": probe(description)})
    save(student, model, measured)
    Predictor(student)
    view = EvalViewConfig.model_validate({**measured.evaluation.model_dump(), **change})
    save(student, model, measured.model_copy(update={"evaluation": view}))
    with pytest.raises(DataError, match="measured on another view"):
        Predictor(student)


@pytest.mark.parametrize(
    "kind", [PixelsConfig(channels=5, bits=16, white=4000), PixelsConfig(channels=1, bits=8), None]
)
def test_a_probe_sees_every_channel(kind: PixelsConfig | None) -> None:
    description = Description(
        kind="classifier", network=ResNetConfig(), image_size=24, evaluation=EvalViewConfig(pixels=kind)
    )
    found = np.array(probe(description)).reshape(description.channels, 16)
    assert len({tuple(plane) for plane in found.tolist()}) == description.channels
    assert found.std(1).min() > 0.1
    assert (found.min() >= 0, found.max() <= 1) == (True, True)


def test_an_exported_classifier_gives_the_predictor_s_probabilities_without_tenfold(student: Path) -> None:
    model, description = load_classifier(student)
    file = export(model, description, student)
    images = [image(seed) for seed in range(3)]
    views = evaluation_views(images, description.evaluation, description.image_size)
    expected = [list(found.probabilities.values()) for found in Predictor(student)(images)]
    torch.save(views, student / "views.pt")
    program = (
        "import sys, torch\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "views = torch.load(sys.argv[2], weights_only=True)\n"
        "print([model(views[:count]).tolist() for count in (1, 3)])\n"
        "assert not [name for name in sys.modules if name.startswith('tenfold')]\n"
    )
    command = [sys.executable, "-c", program, str(file), str(student / "views.pt")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    one, three = json.loads(told.stdout)
    np.testing.assert_allclose(three, expected, atol=1e-5)
    np.testing.assert_allclose(one, expected[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_size": 0}, "image_size"), ({"image_size": -8}, "image_size"), ({"image_size": 2**40}, "image_size"),
        ({"classes": ["ant", "ant", "cat"]}, "two of its classes have one name"), ({"layer": -1}, "layer"),
        ({"feature_norm": 0}, "feature_norm"), ({"probe": "no"}, "probe"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_is_refused_by_the_field(
    student: Path, change: dict[str, object], told: str
) -> None:
    text = json.loads((student / "model.json").read_text())
    (student / "model.json").write_text(json.dumps({**text, **change}))
    with pytest.raises(DataError, match=rf"is damaged: model\.json: .*{told}"):
        Predictor(student)
