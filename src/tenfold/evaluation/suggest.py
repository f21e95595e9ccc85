"""Which images to label next: typical and diverse ones for a small budget, doubtful and diverse ones for a larger.

With few labels a classifier's doubts say little, and images that are like many others teach most (TypiClust); with
more, those near the classifier's borders do (margin sampling). Both pick from clusters of an encoder's features, so
that what is picked differs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import ConfigError, DataError
from tenfold.evaluation.inference import infer, view_of
from tenfold.evaluation.probes import logistic_regression, unit_length
from tenfold.models.saved import load

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Way = Literal["typical", "doubtful"]

#: Up to so many labels a class, those asked for among them, typical images are picked.
FEW_LABELS = 10
#: Images that are looked at, drawn by the seed where there are more.
CANDIDATES = 50_000
#: Of TypiClust: neighbours that tell how typical an image is, clusters at most, and images that a cluster needs.
_NEIGHBOURS, _CLUSTERS, _SMALLEST = 20, 500, 5
#: Doubtful images among which the diverse ones are picked, for each that is asked for.
_POOL = 10


@dataclass(frozen=True)
class Suggestion:
    """An image to label.

    Attributes:
        path: in the source.
        cluster: images of one cluster look alike.
        score: how typical it is of its cluster (higher is more), or how doubtful its class (1 is even between two).
        guess: the class that the labelled images suggest; empty where none is labelled.
        confidence: of the guess.
    """

    path: str
    cluster: int
    score: float
    guess: str
    confidence: float


def typical(features: Floats, labelled: Floats, budget: int, seed: int) -> tuple[Ints, Ints, Floats]:
    r"""Pick images that are typical of what no label covers yet.

    Labelled and other images are clustered together into as many clusters as there will be labels. Then, again and
    again, the largest of the clusters with the fewest labels gives its most typical image, the one with the greatest

    .. math:: \left( \frac1K \sum_{i=1}^K \| x - x_i \| \right)^{-1}

    over its K nearest neighbours in the cluster.

    Args:
        features: (N, d) of the images without a label.
        labelled: (L, d) of those with one; may be empty.
        budget: how many to pick; at most N.
        seed: of the clustering.

    Returns:
        Numbers of the images picked, in order, their clusters, and how typical each is.

    Source: Hacohen et al. 2022, "Active learning on a budget", algorithm 1 (TypiClust).
    """
    points = unit_length(np.concatenate([features, labelled]))
    clusters = _clustered(points, min(_CLUSTERS, len(labelled) + budget), seed)
    own, covered = clusters[: len(features)], np.bincount(clusters[len(features) :], minlength=clusters.max() + 1)
    sizes, free = np.bincount(own, minlength=len(covered)), np.ones(len(features), dtype=bool)
    scores = {}
    picked: list[tuple[int, int, float]] = []
    while len(picked) < budget:
        left = np.bincount(own[free], minlength=len(covered))
        # one too small says little; it is taken when no other is left
        order = np.lexsort((-sizes, covered, left < _SMALLEST, left == 0))
        cluster = int(order[0])
        members = np.flatnonzero(own == cluster)
        if cluster not in scores:
            scores[cluster] = _typicality(points[members])
        open_ = free[members]
        best = int(np.flatnonzero(open_)[scores[cluster][open_].argmax()])
        picked.append((int(members[best]), cluster, float(scores[cluster][best])))
        free[members[best]] = False
        covered[cluster] += 1
    numbers, groups, values = zip(*picked, strict=True)
    return np.array(numbers), np.array(groups), np.array(values)


def doubtful(features: Floats, probabilities: Floats, budget: int, seed: int) -> tuple[Ints, Ints, Floats]:
    """Pick images whose class is in doubt, and that differ from each other.

    Of the images with the smallest margin between the two likeliest classes, ten for each that is asked for, a cluster
    of the features gives the most doubtful one.

    Args:
        features: (N, d).
        probabilities: (N, C) by the labels that are there.
        budget: how many to pick; at most N.
        seed: of the clustering.

    Returns:
        As :func:`typical`; an image's score is 1 less its margin.
    """
    two = np.sort(probabilities, axis=1)[:, -2:]
    doubt = 1 - (two[:, 1] - two[:, 0])
    pool = np.argsort(-doubt, kind="stable")[: _POOL * budget]
    clusters = _clustered(unit_length(features[pool]), budget, seed)
    # the most doubtful of each cluster first, then the next of each, until there are enough
    rank = np.zeros(len(pool), dtype=np.int64)
    seen: dict[int, int] = {}
    for place, cluster in enumerate(clusters.tolist()):
        rank[place] = seen.get(cluster, 0)
        seen[cluster] = rank[place] + 1
    order = np.lexsort((-doubt[pool], rank))[:budget]
    return pool[order], clusters[order], doubt[pool[order]]


def _clustered(points: Floats, clusters: int, seed: int) -> Ints:
    from sklearn.cluster import KMeans, MiniBatchKMeans  # which takes seconds to load

    clusters = min(clusters, len(np.unique(points, axis=0)))
    kind: Any = KMeans if clusters <= 50 and len(points) <= 20_000 else MiniBatchKMeans
    found = kind(n_clusters=clusters, n_init=3, random_state=seed).fit_predict(points)
    return np.asarray(found, dtype=np.int64)


def _typicality(points: Floats) -> Floats:
    from sklearn.neighbors import NearestNeighbors

    count = min(_NEIGHBOURS, len(points) - 1)
    if count < 1:
        return np.zeros(len(points))
    distances = NearestNeighbors(n_neighbors=count + 1).fit(points).kneighbors(points)[0][:, 1:]
    return np.asarray(1 / (distances.mean(1) + 1e-9))


def suggest(
    dataset: Dataset, encoder: Path, budget: int, way: Way | None, seed: int, cache: Path
) -> tuple[list[Suggestion], list[int], Way]:
    """Suggest images of a data set to label next.

    Args:
        dataset: its labelled images are known, and of the others some are picked.
        encoder: folder of a pretrained encoder, or of a classifier.
        budget: how many.
        way: how; unless given, typical ones as long as there will be at most ten labels a class.
        seed: of what is drawn.
        cache: folder for shards from afar.

    Returns:
        The suggestions, best first, the images' numbers in the split ``unlabelled``, and the way.

    Raises:
        DataError: the folder holds no network, or one of other images; or every image is labelled.
        ConfigError: doubtful ones are asked for, and fewer than two classes have a label.
    """
    model, description = load(encoder)
    known, rest = SplitReader(dataset, "labelled", cache), SplitReader(dataset, "unlabelled", cache)
    spec = view_of(description, known, f"the network in {encoder}")
    taken = set(known.keys)
    free = np.array([number for number, key in enumerate(rest.keys) if key not in taken], dtype=np.int64)
    if not len(free):
        raise DataError(f"every training image of {dataset.uri} is labelled")
    rng = np.random.default_rng(seed)
    if len(free) > CANDIDATES:
        free = np.sort(rng.choice(free, CANDIDATES, replace=False))
    budget, device = min(budget, len(free)), torch.device("cpu")
    few = infer({"f": model.encoder}, known, spec, list(range(len(known))), device)["f"] if len(known) else None
    many = infer({"f": model.encoder}, rest, spec, free.tolist(), device)["f"]
    labels, classes = known.labels(), len(known.classes)
    told = few is not None and len(np.unique(labels)) > 1
    probabilities = np.full((len(many), classes), 1 / classes)
    if few is not None and told:
        probabilities = logistic_regression(few, labels, many, classes, 1.0)
    if way is None:
        way = "typical" if not told or len(known) + budget <= FEW_LABELS * classes else "doubtful"
    if way == "doubtful" and not told:
        raise ConfigError("doubtful images are told by labels of two classes at least; ask for typical ones")
    if way == "typical":
        found = typical(many, few if few is not None else many[:0], budget, seed)
    else:
        found = doubtful(many, probabilities, budget, seed)
    suggestions = []
    for number, cluster, score in zip(*(each.tolist() for each in found), strict=True):
        best = int(probabilities[number].argmax())
        guess, confidence = (known.classes[best], float(probabilities[number, best])) if told else ("", 0.0)
        suggestions.append(Suggestion(rest.path(int(free[number])), cluster, score, guess, confidence))
    return suggestions, free[found[0]].tolist(), way


def write_suggestions(
    folder: Path, suggestions: Sequence[Suggestion], numbers: Sequence[int], dataset: Dataset, prefix: str, cache: Path
) -> None:
    """Write suggestions.csv, label_studio.json and sheet.png into a folder.

    The CSV's first columns are those of a list of labels; fill in ``label``. Label Studio imports the JSON: one task an
    image, at ``prefix`` + its path, with our guess as a prediction for a choice named ``label`` about ``image``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "suggestions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "label", "guess", "confidence", "cluster", "score"])
        writer.writeheader()
        for each in suggestions:
            row = {**asdict(each), "confidence": f"{each.confidence:.4f}", "score": f"{each.score:.6g}"}
            writer.writerow({"label": "", **row})
    tasks = [_task(each, prefix) for each in suggestions]
    (folder / "label_studio.json").write_text(json.dumps(tasks, indent=1, ensure_ascii=False), encoding="utf-8")
    _sheet(SplitReader(dataset, "unlabelled", cache), numbers).save(folder / "sheet.png")


def _task(each: Suggestion, prefix: str) -> dict[str, Any]:
    task: dict[str, Any] = {"data": {"image": prefix + each.path, "path": each.path}}
    if each.guess:
        choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [each.guess]}}
        task["predictions"] = [{"model_version": "tenfold", "score": each.confidence, "result": [choice]}]
    return task


def _sheet(reader: SplitReader, numbers: Sequence[int], columns: int = 10, side: int = 96) -> Image.Image:
    """Return a picture of the images, in order, a row after the other."""
    rows = -(-len(numbers) // columns)
    sheet = Image.new("RGB", (min(columns, len(numbers)) * side, rows * side), "white")
    for place, number in enumerate(numbers):
        picture = Image.fromarray(reader.picture(number))
        scale = min(side / picture.width, side / picture.height)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        sheet.paste(picture, (place % columns * side, place // columns * side))
    return sheet
