"""F13 and F14: classes that only one side has, and images that are on both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pictures import picture

from tenfold.config import DataConfig
from tenfold.data.build import build_dataset
from tenfold.data.manifest import Dataset
from tenfold.data.sources import open_source
from tenfold.errors import DataError
from tenfold.storage import FileStore


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes with a test split of its own."""
    folder = tmp_path / "images"
    for number in range(24):
        path = folder / ("test" if number % 3 == 0 else "train") / "ab"[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def build(folder: Path, **values: object) -> Dataset:
    config = DataConfig.model_validate({"source": str(folder), "labels": {"per_class": 2}, **values})
    return build_dataset(open_source(str(folder)), config, FileStore(folder.parent / "store"))[0]


def test_an_image_on_both_sides_is_a_leak_that_names_the_pair(images: Path) -> None:
    shutil.copy(images / "train/a/1.png", images / "test/b/other-name.png")
    with pytest.raises(
        DataError, match=r"(?s)1 test images are also training .*train/a/1\.png = test/b/other-name\.png"
    ):
        build(images)
    manifest = build(images, allow_leaks=True).manifest
    assert manifest.leaks == [("train/a/1.png", "test/b/other-name.png")]
    assert manifest.splits["test"].count == 9, "allowed, they stay, and the report says so"


def test_a_class_that_only_the_test_split_has_is_an_error(images: Path) -> None:
    (images / "test/c").mkdir()
    (images / "test/c/1.png").write_bytes(picture(99))
    with pytest.raises(DataError, match=r"the test split has classes that no labelled image shows: c"):
        build(images)


def test_a_class_that_only_the_labels_have_is_kept_and_counted_as_missing_from_the_tests(images: Path) -> None:
    (images / "train/c").mkdir()
    for number in range(3):
        (images / "train/c" / f"{number}.png").write_bytes(picture(100 + number))
    manifest = build(images).manifest
    assert manifest.classes == ["a", "b", "c"]
    assert "c" not in manifest.splits["test"].class_counts, "its recall is told as n/a (tests/unit/test_metrics.py)"
