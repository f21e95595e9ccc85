"""Which images are for testing and which few keep their labels.

Both choices hang on a hash of the image's content and a seed, one image at a time: a source that grows
never moves an image from test to train, and equal images fall into the same split.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.config import LabelsConfig, SplitConfig
from tenfold.data.sources import Split
from tenfold.errors import DataError


@dataclass(frozen=True)
class Record:
    """A readable image: path, sha256 of its original bytes, class and split as far as the source says."""

    path: str
    content: str
    label: str | None
    split: Split | None

    @property
    def key(self) -> str:
        """Stable name and sort key of the sample: a hash of path and content."""
        return hashlib.sha256(f"{self.path}\0{self.content}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Splits:
    """Records in shard order. ``unlabelled`` is every training image, the labelled ones among them.

    ``leaks``: pairs of a training and a test path with the same content.
    """

    unlabelled: list[Record]
    labelled: list[Record]
    test: list[Record]
    classes: list[str]
    leaks: list[tuple[str, str]]


def _draw(*parts: object) -> float:
    """Return a number in [0, 1) that is a hash of ``parts``."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def make_splits(
    records: Sequence[Record],
    listed: frozenset[str] | None,
    split: SplitConfig,
    labels: LabelsConfig,
    *,
    allow_leaks: bool = False,
) -> Splits:
    """Divide ``records``.

    An image that the source puts nowhere is a test image with probability ``split.test_fraction``, if it has
    a label, if no copy of it must be for training, and if the source has no test images of its own.

    Args:
        records: every readable image.
        listed: paths that keep their labels; None: no list was given.
        split: share and seed of the test split.
        labels: which training images keep their labels.
        allow_leaks: go on where the source puts the same image on both sides.

    Raises:
        DataError: fewer than two classes, no test image, a test class without a labelled image, or a leak.
    """
    own_test = any(record.split == "test" for record in records)
    bound = {r.content for r in records if r.split == "train" or r.label is None or (listed and r.path in listed)}

    def is_test(record: Record) -> bool:
        if record.split or own_test or record.content in bound:
            return record.split == "test"
        return _draw("test", split.seed, record.content) < split.test_fraction

    test = sorted((r for r in records if is_test(r)), key=lambda r: r.key)
    train = sorted((r for r in records if not is_test(r)), key=lambda r: r.key)
    leaks = _leaks(train, test)
    if leaks and not allow_leaks:
        shown = "\n".join(f"  {one} = {other}" for one, other in leaks[:10])
        raise DataError(
            f"{len(leaks)} test images are also training images, byte by byte; remove one of each pair, or set "
            f"data.allow_leaks=true:\n{shown}"
        )
    labelled = sorted(_choose(train, listed, labels), key=lambda r: r.key)
    classes = sorted({r.label for r in labelled if r.label})
    if len(classes) < 2:
        raise DataError(f"the labelled images show {len(classes)} class(es); at least two are needed")
    unlabelled_tests = [r.path for r in test if r.label is None]
    if unlabelled_tests:
        raise DataError(f"{len(unlabelled_tests)} test images have no label: {unlabelled_tests[:10]}")
    if not test:
        raise DataError("no image is left for the test split; raise data.split.test_fraction or add a test split")
    foreign = sorted({r.label for r in test if r.label} - set(classes))
    if foreign:
        raise DataError(f"the test split has classes that no labelled image shows: {', '.join(foreign[:10])}")
    return Splits(train, labelled, test, classes, leaks)


def _leaks(train: Sequence[Record], test: Sequence[Record]) -> list[tuple[str, str]]:
    by_content = {record.content: record.path for record in train}
    return [(by_content[record.content], record.path) for record in test if record.content in by_content]


def _choose(train: Sequence[Record], listed: frozenset[str] | None, config: LabelsConfig) -> list[Record]:
    if listed is not None:
        return [r for r in train if r.path in listed]
    by_class: dict[str, list[Record]] = defaultdict(list)
    for record in train:
        if record.label is not None:
            by_class[record.label].append(record)
    chosen = []
    for members in by_class.values():
        members.sort(key=lambda r: _draw("labels", config.seed, r.content, r.path))
        count = len(members)
        if config.per_class is not None:
            count = config.per_class
        elif config.fraction is not None:
            count = max(1, round(config.fraction * len(members)))
        chosen += members[:count]
    return chosen
