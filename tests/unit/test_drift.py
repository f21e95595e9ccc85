"""Whether new images differ from those that a student learned from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chain import Made
from PIL import Image, ImageOps
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import ConfigError, DataError
from tenfold.evaluation import drift
from tenfold.evaluation.drift import FEWEST, compare, draw
from tenfold.evaluation.inference import Seen
from tenfold.predictor import Predictor

CLASSES = ["a", "b", "c"]


def seen(count: int, shift: float, seed: int, probabilities: tuple[float, ...] = (0.7, 0.2, 0.1)) -> Seen:
    """Features of a normal distribution, moved by ``shift`` in one of 16 directions."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 16)) + 1
    features[:, 0] += shift
    return Seen(features, rng.dirichlet(20 * np.array(probabilities), size=count))


def test_sets_of_one_distribution_are_seldom_called_different() -> None:
    found = [compare(seen(150, 0, 2 * n), seen(150, 0, 2 * n + 1), CLASSES, least=0.5) for n in range(100)]
    assert sum(each.drifted for each in found) <= 4, "one in a hundred is stated"
    assert np.mean([each.separability for each in found]) == pytest.approx(0.5, abs=0.02)
    assert not any(compare(seen(150, 0, n), seen(150, 0, n + 50), CLASSES).drifted for n in range(20))


def test_the_further_a_set_moves_the_better_it_is_told_apart() -> None:
    known = seen(600, 0, 0)
    areas = [compare(known, seen(600, shift, 1), CLASSES).separability for shift in (0.0, 0.5, 1.5, 6.0)]
    assert areas == sorted(areas)
    assert areas[0] < 0.6
    assert areas[-1] > 0.95
    assert compare(known, seen(600, 6.0, 1), CLASSES).drifted
    slight = compare(known, seen(600, 0.5, 1), CLASSES)
    assert slight.p_value < 0.01, "it is no chance"
    assert not slight.drifted, "and it is no clear difference"


def test_confidence_and_classes_are_told_beside_the_features() -> None:
    found = compare(seen(300, 0, 0), seen(300, 0, 1, (0.3, 0.6, 0.1)), CLASSES)
    assert found.confidence_known == pytest.approx(0.7, abs=0.03)
    assert found.confidence_new == pytest.approx(0.61, abs=0.03)
    assert found.class_shares["a"][0] > 0.95
    assert found.class_shares["b"][1] > 0.9
    assert found.class_distance > 0.9
    assert 0 < found.confidence_distance < 1
    told = found.as_dict()
    json.dumps(told)
    assert told["drifted"] is False


def test_too_few_images_tell_nothing() -> None:
    with pytest.raises(ValueError, match="at least 20 images are needed on each side; there are 19 and 300"):
        compare(seen(FEWEST - 1, 0, 0), seen(300, 9, 1), CLASSES)


def test_what_is_drawn_is_drawn_by_the_seed_from_a_few_shards(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SplitReader(digits, "unlabelled")
    everything = [reader.image(number).tobytes() for number in range(len(reader))]
    assert list(draw(reader, 3)) == everything
    assert list(draw(reader, 3, np.array([7, 2, 5]))) == [everything[number] for number in (2, 5, 7)]
    monkeypatch.setattr(drift, "IMAGES", 50)
    some = list(draw(reader, 3))
    assert len(some) == 50
    assert some == list(draw(reader, 3))
    assert some != list(draw(reader, 4))
    monkeypatch.setattr(drift, "_SHARDS", 1)
    monkeypatch.setattr(drift, "IMAGES", 10_000)
    counts = [shard.kept for shard in reader.shards]
    assert len(counts) > 1
    assert len(list(draw(reader, 3))) in counts


def test_of_many_small_shards_as_many_are_drawn_from_as_it_takes_for_a_hundred_images() -> None:
    """As a source that grew has them: two new images in each of fifty additions."""
    sizes = [60, *[2] * 100]
    reader: Any = SimpleNamespace(shards=[SimpleNamespace(kept=size) for size in sizes], image=Picture)
    drawn = [int(data) for data in draw(reader, 0, np.arange(60, 260))]
    assert len(drawn) == len(set(drawn)) == 100
    assert min(drawn) >= 60
    assert len(list(draw(reader, 0, np.arange(60, 84)))) == 24, "all of them, where there are fewer"


class Picture:
    """An image whose bytes are its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def tobytes(self) -> bytes:
        return str(self.number).encode()


@pytest.fixture
def images(digits: Dataset, tmp_path: Path) -> dict[str, Path]:
    """The test images as they are, and inverted; a broken file is among both."""
    reader, folders = SplitReader(digits, "test"), {}
    for kind in ("same", "inverted"):
        folders[kind] = tmp_path / kind
        folders[kind].mkdir()
        (folders[kind] / "broken.png").write_bytes(b"no image")
        for number in range(120):
            image = Image.open(io.BytesIO(reader.image(number).tobytes())).convert("RGB")
            (ImageOps.invert(image) if kind == "inverted" else image).save(folders[kind] / f"{number}.png")
    return folders


def test_the_command_tells_other_images_from_like_ones(
    made: Made, digits: Dataset, images: dict[str, Path], tmp_path: Path
) -> None:
    def call(*more: str) -> tuple[int, str]:
        told = CliRunner().invoke(app, ["drift", *more, "--student", str(made.student), "--dataset", digits.uri])
        return told.exit_code, told.stdout

    code, told = call(str(images["same"]), "--exit-code")
    assert (code, told.splitlines()[0].partition(":")[0]) == (0, "no drift")
    figure = tmp_path / "drift.png"
    code, told = call(str(images["inverted"]), "--exit-code", "--json", "--figure", str(figure))
    found = json.loads(told)
    assert (code, found["drifted"], found["new"]) == (3, True, 120)
    assert found["separability"] > 0.95
    with Image.open(figure) as drawn:
        assert drawn.size[0] > 1000
    code, told = call(str(images["inverted"]))
    assert code == 0, "without --exit-code it only tells"
    assert told.startswith("drift: 120 new images against")
    code, told = call(str(images["inverted"]), "--least", "0.9999")
    assert code != 0, "no share of pairs is above all"


def test_the_command_says_what_it_lacks(made: Made, digits: Dataset, images: dict[str, Path], tmp_path: Path) -> None:
    alone = CliRunner().invoke(app, ["drift", str(images["same"]), "--student", str(made.student)])
    assert isinstance(alone.exception, ConfigError)
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "0.png").write_bytes((images["same"] / "0.png").read_bytes())
    few = CliRunner().invoke(
        app, ["drift", str(tmp_path / "few"), "--student", str(made.student), "--dataset", digits.uri]
    )
    assert isinstance(few.exception, DataError)
    assert "needed on each side; there are 1 that the student's data set lacks" in str(few.exception)
    known = tmp_path / "known"  # what it learned from is not new under any name
    known.mkdir()
    for number, data in enumerate(draw(SplitReader(digits, "unlabelled"), 0)):
        (known / f"{number}.png").write_bytes(data)
    old = CliRunner().invoke(app, ["drift", str(known), "--student", str(made.student), "--dataset", digits.uri])
    assert "there are 0 that the student's data set lacks, and 1,265 that it has" in str(old.exception)
    nothing = CliRunner().invoke(app, ["drift", str(tmp_path / "nothing")])
    assert "there is no file or folder" in str(nothing.exception)


def test_looking_gives_the_probabilities_of_predicting(made: Made, digits: Dataset) -> None:
    reader, predictor = SplitReader(digits, "test"), Predictor(made.student)
    data = [reader.image(number).tobytes() for number in range(9)]
    expected = [list(each.probabilities.values()) for each in predictor(data)]
    np.testing.assert_allclose(predictor.look(data).probabilities, expected, atol=1e-6)
    assert predictor.look([]).features.shape[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["empty"], "no images below empty"), (["file.png"], "name the folder that it lies in"),
     (["empty", "--figure", "nowhere/x.png"], "name a file in a folder that is there")],
)  # fmt: skip
def test_the_command_says_at_once_what_it_cannot_use(
    arguments: list[str], told: str, made: Made, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(b"")
    found = CliRunner().invoke(app, ["drift", *arguments, "--student", str(made.student), "--dataset", digits.uri])
    assert told in str(found.exception)
