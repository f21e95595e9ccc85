"""Whether new images differ from those that a student learned from, by the student's own features and confidence.

A small classifier tries to tell new images from known ones by the student's features (a classifier two-sample test).
Where it cannot, the new images look to the student like the old ones. What it tells is a size, not only a
significance: with enough images any two sets differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, mannwhitneyu

from tenfold.data.reader import SplitReader
from tenfold.evaluation.inference import Floats, Seen

#: A new image is told from a known one in this share of the pairs before it is called a drift.
LEAST = 0.75
#: At most this share of sets that do not differ is called different.
SIGNIFICANCE = 0.01
#: Images of each side that are looked at, drawn by the seed where there are more.
IMAGES = 2000
_SHARDS, _ENOUGH = 8, 100
#: Fewer of either side tell nothing.
FEWEST = 20


@dataclass(frozen=True)
class Drift:
    """How new images differ from known ones.

    Attributes:
        known: images of the training set that were looked at.
        new: new ones.
        separability: share of pairs of a new and a known image in which the new one is told by its features: 0.5 where
            they do not differ, 1 where no new image is like the known ones.
        p_value: how often sets that do not differ would be told apart so well.
        confidence_known: mean probability of the likeliest class of the known images.
        confidence_new: of the new ones. Of a calibrated student it is the share that it expects to have right.
        confidence_distance: largest distance between both distributions of confidence (Kolmogorov and Smirnov's).
        class_shares: class → share of the known and of the new images that are taken for it.
        class_distance: total variation distance of these shares: 0 where they are equal, 1 where no class is in both.
        least: separability from which on it is called a drift.
    """

    known: int
    new: int
    separability: float
    p_value: float
    confidence_known: float
    confidence_new: float
    confidence_distance: float
    class_shares: dict[str, tuple[float, float]]
    class_distance: float
    least: float

    @property
    def drifted(self) -> bool:
        """Whether they differ clearly."""
        return self.separability >= self.least and self.p_value <= SIGNIFICANCE

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"drifted": self.drifted, **asdict(self)}


def compare(known: Seen, new: Seen, classes: Sequence[str], least: float = LEAST, seed: int = 0) -> Drift:
    """Compare what a student makes of known and of new images.

    Each half of both sets, drawn by the seed, is told apart by a logistic regression that was fitted on the other half.
    The p-value is Mann and Whitney's, the smaller of both halves' doubled.

    Args:
        known: of images of the training set.
        new: of new ones.
        classes: names of the classes.
        least: separability from which on it is called a drift.
        seed: of the halves.

    Raises:
        ValueError: there are fewer than 20 images on a side.

    Source: Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests".
    """
    counts = len(known.features), len(new.features)
    if min(counts) < FEWEST:
        raise ValueError(f"at least {FEWEST} images are needed on each side; there are {counts[0]} and {counts[1]}")
    features = _standardised(np.concatenate([known.features, new.features]))
    side = np.repeat([0, 1], counts)
    half = _halves(counts, seed)
    scores = np.zeros(len(side))
    areas, chances = [], []
    for tested in (0, 1):
        fit, held = half != tested, half == tested
        scores[held] = _told(features[fit], side[fit], features[held])
        new_scores, known_scores = scores[held & (side == 1)], scores[held & (side == 0)]
        found = mannwhitneyu(new_scores, known_scores, alternative="greater")
        areas.append(float(found.statistic) / (len(new_scores) * len(known_scores)))
        chances.append(float(found.pvalue))
    sure = [seen.probabilities.max(1) for seen in (known, new)]
    shares = [np.bincount(seen.probabilities.argmax(1), minlength=len(classes)) / len(seen.probabilities)
              for seen in (known, new)]  # fmt: skip
    return Drift(
        known=counts[0], new=counts[1], separability=float(np.mean(areas)), p_value=min(1.0, 2 * min(chances)),
        confidence_known=float(sure[0].mean()), confidence_new=float(sure[1].mean()),
        confidence_distance=float(ks_2samp(*sure).statistic),
        class_shares={name: (float(shares[0][n]), float(shares[1][n])) for n, name in enumerate(classes)},
        class_distance=float(np.abs(shares[0] - shares[1]).sum() / 2), least=least,
    )  # fmt: skip


def _standardised(features: Floats) -> Floats:
    """Return features of mean 0 and equal spread, rows of a length of about 10.

    Their lengths stay different, since a change of brightness or contrast may show in nothing else.
    """
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 1e-12, spread, 1.0)
    return np.asarray(10 * scaled / np.sqrt(features.shape[1]))


def _told(features: Floats, side: NDArray[np.int64], queries: Floats) -> Floats:
    """Return the probability that each query is of side 1, by a logistic regression."""
    from sklearn.exceptions import ConvergenceWarning  # which takes seconds to load
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=2000).fit(features, side)
    return np.asarray(model.predict_proba(queries)[:, 1])


def _halves(counts: tuple[int, int], seed: int) -> NDArray[np.int64]:
    """Return 0 or 1 for each image, evenly on each side."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.arange(count) % 2) for count in counts])


def draw(reader: SplitReader, seed: int, numbers: NDArray[np.int64] | None = None) -> Iterator[bytes]:
    """Yield encoded images of a split, drawn by the seed: 2,000 at most.

    They are of 8 shards, or of as many more as it takes for 100 images: a source that grows has small ones.

    Args:
        reader: of the split; shards that nothing is drawn from are not fetched where the split is large.
        seed: of the draw.
        numbers: of the samples that are drawn among; unless given, all.
    """
    rng, among = np.random.default_rng(seed), np.arange(len(reader)) if numbers is None else np.sort(numbers)
    places = np.searchsorted(np.cumsum([shard.kept for shard in reader.shards]), among, side="right")
    found, counts = np.unique(places, return_counts=True)
    order = rng.permutation(len(found))
    enough = int(np.searchsorted(np.cumsum(counts[order]), _ENOUGH)) + 1
    chosen = found[order[: max(_SHARDS, enough)]]
    among = among[np.isin(places, chosen)]
    if len(among) > IMAGES:
        among = np.sort(rng.choice(among, IMAGES, replace=False))
    return (reader.image(int(number)).tobytes() for number in among)
