"""A chain of stages, made once, and a place for a stage to work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chain import Made, make_chain, new_work

from tenfold.data.manifest import Dataset
from tenfold.models.saved import load_classifier, save
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
