"""Labels that are likely wrong: those that an encoder's features of the other labelled images contradict."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.inference import infer, view_of
from tenfold.evaluation.probes import leave_one_out
from tenfold.models.saved import load

#: Of the rarest class. With fewer, one image's word would stand against the label's.
FEWEST = 5


class Doubt(NamedTuple):
    """A label, the class that the other images suggest, and by how much they prefer it (0 to 1)."""

    path: str
    label: str
    suggestion: str
    margin: float


def doubtful(
    features: NDArray[np.float64], labels: NDArray[np.int64], neighbours: int = 10
) -> list[tuple[int, int, float]]:
    """Return (number, suggested class, margin) of the labels that the others contradict, the worst first.

    Each label is left out in turn; its ``neighbours`` nearest labelled images by cosine vote, and no more than the
    rarest class has besides, since it would be outvoted by number alone. The margin is the suggested class's share of
    the vote less the label's own.
    """
    neighbours = min(neighbours, max(1, int(np.unique(labels, return_counts=True)[1].min()) - 1))
    votes = leave_one_out(features, labels, neighbours)
    own = votes[np.arange(len(labels)), labels]
    margins = votes.max(1) - own
    order = np.argsort(-margins, kind="stable")
    return [(int(n), int(votes[n].argmax()), float(margins[n])) for n in order if margins[n] > 0]


def audit_labels(dataset: Dataset, encoder: Path, cache: Path) -> list[Doubt]:
    """Return the doubtful labels of a data set, by the features of a pretrained encoder or a classifier's.

    Raises:
        DataError: the folder holds no network, or one of other images, or a class has fewer than 5 labels.
    """
    reader = SplitReader(dataset, "labelled", cache)
    rarest = np.bincount(reader.labels(), minlength=len(reader.classes)).argmin()
    if (held := int(np.count_nonzero(reader.labels() == rarest))) < FEWEST:
        raise DataError(
            f"class '{reader.classes[rarest]}' has {held} labelled images, too few for others to contradict a label: "
            f"at least {FEWEST} of each class are needed"
        )
    model, description = load(encoder)
    spec = view_of(description, reader, f"the network in {encoder}")
    found = infer({"f": model.encoder}, reader, spec, list(range(len(reader))), torch.device("cpu"))["f"]
    names = reader.classes
    labels = reader.labels()
    return [
        Doubt(reader.path(number), names[int(labels[number])], names[suggested], margin)
        for number, suggested, margin in doubtful(found, labels)
    ]
