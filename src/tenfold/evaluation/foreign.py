"""Telling images of no known class from the others, by their distance from the labelled ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tenfold.evaluation.probes import unit_length

Floats = NDArray[np.float64]


class Nearness:
    r"""How well images could be of the labelled ones' kind: conformal p-values.

    .. math:: p(x) = \frac{1 + |\{ i : d_i \ge d(x) \}|}{n + 1}

    where d(x) is the distance (of unit vectors) to the nearest labelled image, and :math:`d_i` that of labelled image i
    to the nearest other one. Of images that are drawn as the labelled ones were, in features that saw no label, a share
    of about :math:`\alpha` has :math:`p \le \alpha`; of foreign ones more, the better the features set them apart.

    Source: conformal outlier detection (Bates et al. 2023, section 1.2), with leave-one-out scores.
    """

    def __init__(self, labelled: Floats) -> None:
        """Take in the labelled images' features (n, d), n at least 2."""
        from sklearn.neighbors import NearestNeighbors  # which takes seconds to load

        unit = unit_length(labelled)
        self._search = NearestNeighbors(n_neighbors=2).fit(unit)
        self._among = np.sort(self._search.kneighbors(unit)[0][:, 1])

    def p_values(self, features: Floats) -> Floats:
        """Return p (N,) of images by their features (N, d)."""
        distances = self._search.kneighbors(unit_length(features), n_neighbors=1)[0][:, 0]
        farther = len(self._among) - np.searchsorted(self._among, distances, side="left")
        return np.asarray((1 + farther) / (len(self._among) + 1), dtype=np.float64)
