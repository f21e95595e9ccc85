"""A chain of stages, made once, a place for a stage to work, and the rendered manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chain import Made, make_chain, new_work
from manifests import OVERLAYS, Object, checkout, render

from tenfold.config import DataConfig
from tenfold.data.build import build_dataset
from tenfold.data.decode import encode_png
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.models.saved import load_classifier, save
from tenfold.storage import FileStore
from tenfold.work import Work


@pytest.fixture
def work(tmp_path: Path) -> Callable[[str], Work]:
    return lambda name="stage": new_work(tmp_path, name)


@pytest.fixture(scope="session")
def made(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every stage once, in the pipeline's order, each for three steps."""
    return make_chain(tmp_path_factory.mktemp("stages"), digits)


@pytest.fixture
def stranger(made: Made, tmp_path: Path) -> Path:
    """The fine-tuned classifier with its classes in another order."""
    model, description = load_classifier(made.finetuned)
    folder = tmp_path / "stranger"
    save(folder, model, description.model_copy(update={"classes": description.classes[::-1]}))
    return folder


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    """Smooth coloured images of odd and even sizes, wide and tall."""
    folder = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    sizes = [(33, 47), (64, 41), (21, 21), (40, 40), (95, 31), (17, 64), (50, 27), (29, 30)]
    for number, (height, width) in enumerate(sizes * 3):
        rows, columns = np.linspace(0, 3, height)[:, None, None], np.linspace(0, 3, width)[None, :, None]
        phase, pace = rng.uniform(0, 6, 3), rng.uniform(0.5, 2, 3)
        pixels = 127 + 120 * np.sin(phase + pace * rows + pace[::-1] * columns)
        path = folder / "images" / f"{'ab'[number % 2]}/{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(pixels.round().astype(np.uint8)))
    config = DataConfig.model_validate({"labels": {"fraction": 1.0}, "split": {"test_fraction": 0.3}})
    dataset, _ = build_dataset(open_source(str(folder / "images")), config, FileStore(folder / "store"))
    return SplitReader(dataset, "unlabelled")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """Every overlay's objects, and those of the base alone."""
    copy = checkout(tmp_path_factory.mktemp("manifests"))
    return {name: render(copy / "overlays" / name) for name in OVERLAYS} | {"base": render(copy / "base")}


@pytest.fixture(params=[*OVERLAYS, "base"])
def objects(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """Each of them in turn."""
    return rendered[request.param]


@pytest.fixture
def prod(rendered: dict[str, list[Object]]) -> list[Object]:
    return rendered["prod"]


@pytest.fixture
def everything(rendered: dict[str, list[Object]]) -> list[Object]:
    return rendered["everything"]
