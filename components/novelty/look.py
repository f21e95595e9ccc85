"""What the champion makes of new images, beside those that it learned from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tenfold.data.contents import contents, numbered
from tenfold.data.decode import CHECKED
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.drift import FEWEST, Drift, compare, draw
from tenfold.predictor import Predictor
from tenfold.registry import Registry
from tenfold.work import Work


def look(champion: str, dataset: Dataset, known: Dataset, least: float, work: Work) -> Drift | None:
    """Compare the training images that are new with those that the champion learned from; None: they are too few.

    New is what the known data set did not have by content, under whatever name.

    Args:
        champion: model and version, ``name/3``.
        dataset: the images that there are now.
        known: those that the champion learned from.
        least: what is called a drift (:func:`tenfold.evaluation.drift.compare`).
        work: gives cache and MLflow's address.

    Raises:
        DataError: the champion takes other images, or nothing tells what one of the data sets was made of.
        TrackingError: the champion cannot be fetched.
    """
    model, _, version = champion.rpartition("/")
    now = numbered(dataset, "unlabelled")
    fresh = now.numbers[~np.isin(now.contents, contents(known))]
    if min(len(fresh), known.manifest.splits["unlabelled"].count) < FEWEST:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor(Registry(work.environment, model).download(version, Path(scratch)), CHECKED)
    kind, new = predictor.description.evaluation.pixels, SplitReader(dataset, "unlabelled", work.cache)
    if new.pixels != (kind and kind.stored):
        raise DataError("the champion takes images of other channels or bits than the data set's")
    before = predictor.look(draw(SplitReader(known, "unlabelled", work.cache), 0))
    return compare(before, predictor.look(draw(new, 0, fresh)), predictor.description.classes, least)
