"""What the champion makes of new images, beside those that it learned from."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.drift import FEWEST, Drift, compare, draw
from tenfold.predictor import Predictor
from tenfold.registry import Registry
from tenfold.work import Work


def look(champion: str, dataset: Dataset, known: Dataset, least: float, work: Work) -> Drift | None:
    """Compare the training images that are new with those that the champion learned from; None: they are too few.

    Args:
        champion: model and version, ``name/3``.
        dataset: the images that there are now.
        known: those that the champion learned from.
        least: what is called a drift (:func:`tenfold.evaluation.drift.compare`).
        work: gives cache and MLflow's address.

    Raises:
        DataError: the champion takes other images.
        TrackingError: the champion cannot be fetched.
    """
    model, _, version = champion.rpartition("/")
    before, now = SplitReader(known, "unlabelled", work.cache), SplitReader(dataset, "unlabelled", work.cache)
    old = draw(before, 0)
    new = draw(now, 0, frozenset(before.keys))
    if min(len(old), len(new)) < FEWEST:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor(Registry(work.environment, model).download(version, Path(scratch)))
    kind = predictor.description.evaluation.pixels
    if now.pixels != (kind and kind.stored):
        raise DataError("the champion takes images of other channels or bits than the data set's")
    return compare(predictor.look(old), predictor.look(new), predictor.description.classes, least)
