from __future__ import annotations

import gzip
import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tenfold.components.preflight.stage import check
from tenfold.config import DataConfig, RunConfig
from tenfold.data.annotations import Row
from tenfold.data.decode import decode
from tenfold.data.listing import list_images
from tenfold.data.sources import open_source
from tenfold.errors import DataError, StorageError

FASHION = Path("/usr/share/datasets/fashion-mnist")


def place(folder: Path, paths: Iterable[str]) -> None:
    """Listing reads no image, so that empty files do."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")


def annotated(folder: Path | str, **config: object) -> list[Row]:
    """Return the images of a source by path."""
    values = DataConfig.model_validate({"source": str(folder), **config})
    with tempfile.TemporaryDirectory() as place_:
        return sorted(list_images(open_source(str(folder)), values, Path(place_) / "listing").rows())


def table(rows: list[Row]) -> dict[str, tuple[str | None, str | None]]:
    return {row.path: (row.label, row.split) for row in rows}


def listed_in(rows: list[Row]) -> set[str]:
    return {row.path for row in rows if row.listed}


# --- layouts -------------------------------------------------------------------------------------------


def test_a_folder_a_class(tmp_path: Path) -> None:
    place(tmp_path, ["cat/1.jpg", "dog/deep/2.PNG", "loose.jpg", "cat/notes.txt", "README"])
    assert table(annotated(tmp_path)) == {
        "cat/1.jpg": ("cat", None),
        "dog/deep/2.PNG": ("dog", None),
        "loose.jpg": (None, None),
    }


def test_train_test_and_unlabelled_folders(tmp_path: Path) -> None:
    place(tmp_path, ["train/cat/1.jpg", "train/2.jpg", "test/dog/3.jpg", "unlabelled/any/4.jpg", "unlabelled/5.jpg"])
    assert table(annotated(tmp_path)) == {
        "train/cat/1.jpg": ("cat", "train"),
        "train/2.jpg": (None, "train"),
        "test/dog/3.jpg": ("dog", "test"),
        "unlabelled/any/4.jpg": (None, "train"),
        "unlabelled/5.jpg": (None, "train"),
    }


def test_unlabeled_is_spelled_either_way(tmp_path: Path) -> None:
    place(tmp_path, ["train/cat/1.jpg", "unlabeled/2.jpg"])
    assert table(annotated(tmp_path))["unlabeled/2.jpg"] == (None, "train")


def test_a_class_that_is_named_test_is_a_class_where_other_classes_lie_beside_it(tmp_path: Path) -> None:
    place(tmp_path, ["test/1.jpg", "cat/2.jpg"])
    assert table(annotated(tmp_path)) == {"test/1.jpg": ("test", None), "cat/2.jpg": ("cat", None)}


def test_a_csv_says_class_and_split_and_leaves_out_what_it_does_not_name(tmp_path: Path) -> None:
    place(tmp_path, ["a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg"])
    (tmp_path / "list.csv").write_bytes(
        "\ufeffpath,label,split\na/2.jpg,dog,TEST\na/1.jpg, cat ,\na/3.jpg,,unlabelled\n".encode()
    )
    rows = annotated(tmp_path, annotations="list.csv")
    assert table(rows) == {"a/1.jpg": ("cat", None), "a/2.jpg": ("dog", "test"), "a/3.jpg": (None, "train")}
    assert [row.path for row in rows] == ["a/1.jpg", "a/2.jpg", "a/3.jpg"]


def test_a_csv_needs_only_paths(tmp_path: Path) -> None:
    place(tmp_path, ["a/1.jpg"])
    (tmp_path / "list.csv").write_text("path\na/1.jpg\n")
    assert table(annotated(tmp_path, annotations="list.csv")) == {"a/1.jpg": (None, None)}


def test_digits_are_1797_images_of_ten_classes() -> None:
    source = open_source("digits")
    rows = annotated("digits")
    assert len(rows) == 1797
    assert {row.label for row in rows} == {str(digit) for digit in range(10)}
    pixels = decode(source.read(rows[0].path)).pixels
    assert pixels.shape == (8, 8, 3)
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(pixels[..., 0], np.rint(load_digits().images[0] * 255 / 16))


# --- what is wrong with a source -----------------------------------------------------------------------


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    place(tmp_path, ["a.txt", "b.csv"])
    with pytest.raises(DataError, match=r"no images among 2 files \(1 .csv, 1 .txt\) in file://.*expected \.jpg"):
        annotated(tmp_path)
    with pytest.raises(DataError, match=r"no images in file://"):
        annotated(tmp_path / "absent")


def test_a_file_name_that_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    place(tmp_path, ["cat/1.jpg"])
    (tmp_path / "cat" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 file names are no UTF-8; rename them: \['cat/.*ff\.jpg'\]"):
        annotated(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n", r"list\.csv has no column 'path' \(columns: file, label\)"),
        ("", r"no column 'path' \(columns: none\)"),
        ("path,label,cluster\n", r"unknown column 'cluster'; known are path, label, split and group"),
        ("path,lable\n", r"unknown column 'lable'; did you mean 'label'\?"),
        ("path,split\na/1.jpg,train\na/2.jpg,valid\n", r"line 3: split 'valid' is not train, test or unlabelled"),
        ("path\na/1.jpg\na/1.jpg\n", "names an image twice"),
    ],
)
def test_a_csv_with_a_fault_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    place(tmp_path, ["a/1.jpg", "a/2.jpg"])
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        annotated(tmp_path, annotations="list.csv")


def test_a_csv_that_is_no_text_is_refused(tmp_path: Path) -> None:
    place(tmp_path, ["a/1.jpg"])
    (tmp_path / "list.csv").write_bytes(b"path\n\xff\xfe.jpg\n")
    with pytest.raises(DataError, match=r"list\.csv is no UTF-8 text"):
        annotated(tmp_path, annotations="list.csv")


def test_a_csv_that_is_absent_is_named(tmp_path: Path) -> None:
    place(tmp_path, ["a/1.jpg"])
    with pytest.raises(StorageError, match=r"list\.csv is not there"):
        annotated(tmp_path, annotations="list.csv")
    with pytest.raises(DataError, match=r"digits has no file list\.csv"):
        annotated("digits", annotations="list.csv")


def test_a_csv_that_names_absent_images_gives_their_count_and_the_first_ten(tmp_path: Path) -> None:
    place(tmp_path, ["a/1.jpg"])
    (tmp_path / "list.csv").write_text("path\na/1.jpg\n" + "".join(f"gone/{n:02d}.jpg\n" for n in range(13)))
    with pytest.raises(DataError) as caught:
        annotated(tmp_path, annotations="list.csv")
    lines = str(caught.value).splitlines()
    assert "list.csv names 13 images that are not there" in lines[0]
    assert [line.strip() for line in lines[1:]] == [*(f"gone/{n:02d}.jpg" for n in range(10)), "… and 3 more"]


# --- the label list ------------------------------------------------------------------------------------


def test_a_label_list_says_which_images_are_labelled(tmp_path: Path) -> None:
    place(tmp_path / "images", ["cat/1.jpg", "cat/2.jpg", "loose.jpg"])
    (tmp_path / "labels.csv").write_text("path,label\ncat/1.jpg\n\nloose.jpg,dog\n")
    rows = annotated(tmp_path / "images", labels={"file": str(tmp_path / "labels.csv")})
    assert listed_in(rows) == {"cat/1.jpg", "loose.jpg"}
    assert table(rows) == {"cat/1.jpg": ("cat", None), "cat/2.jpg": ("cat", None), "loose.jpg": ("dog", None)}


def test_a_label_list_may_be_plain_lines_and_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "images", ["cat/1.jpg", "cat/2.jpg"])
    Path("labels.txt").write_text("cat/2.jpg\n")
    assert listed_in(annotated(tmp_path / "images", labels={"file": "labels.txt"})) == {"cat/2.jpg"}


def test_a_label_list_of_bare_file_names_finds_them_in_their_folders(tmp_path: Path) -> None:
    place(
        tmp_path / "data", ["train/n01/n01_5.JPEG", "train/n02/n02_7.JPEG", "train/n02/n02_8.JPEG", "test/n01/x.JPEG"]
    )
    listed = tmp_path / "1percent.txt"
    listed.write_text("n02_7.JPEG\nn01_5.JPEG\n")
    found = annotated(tmp_path / "data", labels={"file": str(listed)})
    assert listed_in(found) == {"train/n02/n02_7.JPEG", "train/n01/n01_5.JPEG"}


def test_a_bare_name_that_two_folders_hold_is_refused(tmp_path: Path) -> None:
    place(tmp_path / "data", ["cat/1.jpg", "dog/1.jpg"])
    listed = tmp_path / "list.txt"
    listed.write_text("1.jpg\n")
    with pytest.raises(DataError, match=r"names 1\.jpg, which is in 2 folders"):
        annotated(tmp_path / "data", labels={"file": str(listed)})


def test_a_label_list_with_absent_images_gives_their_count_and_the_first_ten(tmp_path: Path) -> None:
    place(tmp_path, ["cat/1.jpg"])
    (tmp_path / "labels.txt").write_text("cat/1.jpg\n" + "".join(f"gone/{n:02d}.jpg\n" for n in range(13)))
    with pytest.raises(DataError) as caught:
        annotated(tmp_path, labels={"file": str(tmp_path / "labels.txt")})
    lines = str(caught.value).splitlines()
    assert "labels.txt names 13 images that are not there" in lines[0]
    assert [line.strip() for line in lines[1:]] == [*(f"gone/{n:02d}.jpg" for n in range(10)), "… and 3 more"]


def test_a_label_list_that_labels_nothing_is_refused(tmp_path: Path) -> None:
    place(tmp_path, ["cat/1.jpg", "loose.jpg"])
    (tmp_path / "empty.txt").write_text("path,label\n\n")
    with pytest.raises(DataError, match=r"the label list .*empty\.txt is empty"):
        annotated(tmp_path, labels={"file": str(tmp_path / "empty.txt")})
    (tmp_path / "labels.txt").write_text("loose.jpg\n")
    with pytest.raises(DataError, match=r"gives no label for 1 images: \['loose\.jpg'\]"):
        annotated(tmp_path, labels={"file": str(tmp_path / "labels.txt")})


def test_a_label_list_that_names_test_images_is_refused(tmp_path: Path) -> None:
    place(tmp_path, ["train/cat/1.jpg", "test/cat/2.jpg"])
    (tmp_path / "labels.txt").write_text("test/cat/2.jpg\n")
    with pytest.raises(DataError, match=r"names 1 images of the test split: \['test/cat/2\.jpg'\]"):
        annotated(tmp_path, labels={"file": str(tmp_path / "labels.txt")})


def test_a_label_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    place(tmp_path, ["cat/1.jpg"])
    (tmp_path / "labels.txt").write_bytes(b"cat/\xff.jpg\n")
    with pytest.raises(DataError, match=r"labels\.txt is no UTF-8 text"):
        annotated(tmp_path, labels={"file": str(tmp_path / "labels.txt")})


def test_a_label_list_that_is_absent_is_named(tmp_path: Path) -> None:
    place(tmp_path, ["cat/1.jpg"])
    with pytest.raises(StorageError, match=r"labels\.txt is not there"):
        annotated(tmp_path, labels={"file": str(tmp_path / "labels.txt")})


# --- preflight -----------------------------------------------------------------------------------------


def test_preflight_names_a_folder_that_is_absent(tmp_path: Path) -> None:
    config = RunConfig(data=DataConfig(source=str(tmp_path / "absent")))
    with pytest.raises(DataError, match=r"there is no folder .*absent; data\.source takes"):
        check(config)


def test_preflight_asks_for_two_classes(tmp_path: Path) -> None:
    place(tmp_path, ["cat/1.jpg", "loose.jpg"])
    with pytest.raises(DataError, match=r"shows 1 class\(es\) and at least two are needed"):
        check(RunConfig(data=DataConfig(source=str(tmp_path))))
    place(tmp_path, ["dog/1.jpg"])
    assert check(RunConfig(data=DataConfig(source=str(tmp_path))))


# --- tables, groups, other formats ---------------------------------------------------------------------


def test_a_table_may_be_parquet_and_names_groups(tmp_path: Path) -> None:
    place(tmp_path, ["a/1.jpg", "a/2.jpg", "a/3.jpg"])
    told = {"path": ["a/1.jpg", "a/2.jpg", "a/3.jpg"], "label": ["cat", None, "dog"], "split": [None, "test", None],
            "group": ["x", "x", "y"]}  # fmt: skip
    pq.write_table(pa.table(told), tmp_path / "list.parquet")
    rows = annotated(tmp_path, annotations="list.parquet")
    assert [(row.label, row.group) for row in rows] == [("cat", "x"), (None, "x"), ("dog", "y")]
    assert [row.split for row in rows] == ["test", "test", None], "x is for testing as a whole"


def test_a_group_with_a_listed_image_is_for_training_as_a_whole(tmp_path: Path) -> None:
    place(tmp_path, [f"a/{n}.jpg" for n in range(6)])
    lines = "".join(f"a/{n}.jpg,cat,g{n // 3}\n" for n in range(6))
    (tmp_path / "list.csv").write_text("path,label,group\n" + lines)
    (tmp_path / "labels.txt").write_text("a/4.jpg\n")
    rows = annotated(tmp_path, annotations="list.csv", labels={"file": str(tmp_path / "labels.txt")})
    assert [row.split for row in rows] == [None, None, None, "train", "train", "train"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,labels\na/1.jpg,cat dog\n", "several labels an image; tenfold learns one class"),
        ('path,label\na/1.jpg,"[cat, dog]"\n', r"line 2: the label \[cat, dog\] looks like several"),
        ("path,label,grup\na/1.jpg,cat,1\n", r"unknown column 'grup'; did you mean 'group'\?"),
    ],
)
def test_what_is_no_single_class_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    place(tmp_path, ["a/1.jpg"])
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        annotated(tmp_path, annotations="list.csv")


def test_a_parquet_column_of_lists_is_refused(tmp_path: Path) -> None:
    place(tmp_path, ["a/1.jpg"])
    pq.write_table(pa.table({"path": ["a/1.jpg"], "label": [["cat", "dog"]]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="the column 'label' holds lists; tenfold learns one class an image"):
        annotated(tmp_path, annotations="list.parquet")
    (tmp_path / "list.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match=r"list\.parquet is no valid Parquet file"):
        annotated(tmp_path, annotations="list.parquet")


def test_a_table_of_addresses_is_a_source(tmp_path: Path) -> None:
    place(tmp_path, ["one/1.jpg", "two/deep/2.jpg", "three.jpg"])
    (tmp_path / "two" / "deep" / "2.jpg").write_bytes(b"second")
    far = (tmp_path / "two" / "deep").as_uri() + "/2.jpg"
    rows = [("one/1.jpg", "cat"), (far, "dog"), (str(tmp_path / "three.jpg"), "")]
    (tmp_path / "images.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    uri = str(tmp_path / "images.csv")
    assert {(row.path, row.label) for row in annotated(uri)} == {(path, label or None) for path, label in rows}
    assert open_source(uri).read(far) == b"second"
    assert check(RunConfig(data=DataConfig(source=uri)))
    with pytest.raises(DataError, match=r"there is no file .*absent\.csv; data\.source takes"):
        check(RunConfig(data=DataConfig(source=str(tmp_path / "absent.csv"))))


def write_idx(path: Path, values: Any, *, zipped: bool) -> None:
    data = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path = path.with_name(path.name + ".gz") if zipped else path
    path.write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_a_source_with_its_own_test_split(tmp_path: Path, zipped: bool) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 4, 6), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", images, zipped=zipped)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.array([0, 1, 2, 1, 0], np.uint8), zipped=zipped)
    rows = annotated(tmp_path)
    assert [row.split for row in rows] == ["test"] * 5 + ["train"] * 5
    assert [row.label for row in rows] == ["0", "1", "2", "1", "0"] * 2
    pixels = decode(open_source(str(tmp_path)).read("test/00003.png")).pixels
    np.testing.assert_array_equal(pixels[..., 0], images[3])


def test_a_cut_idx_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03\0\0")[:-3])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is no whole IDX file"):
        open_source(str(tmp_path))


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian_is_read() -> None:
    source = open_source(str(FASHION))
    assert sum(1 for _ in source.list()) == 70_000


# --- data sets of torchvision ----------------------------------------------------------------------------


def test_a_data_set_of_torchvision_that_is_there_already_is_a_source_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path))
    raw = tmp_path / "datasets" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images, zipped=False)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.array([0, 1, 2, 1, 9], np.uint8), zipped=False)
    found = annotated("torchvision://FashionMNIST")
    assert [(row.path, row.label, row.split) for row in found if row.path.endswith("4.png")] == [
        ("test/0000004.png", "Ankle boot", "test"), ("train/0000004.png", "Ankle boot", "train"),
    ]  # fmt: skip
    pixels = decode(open_source("torchvision://FashionMNIST").read("train/0000003.png")).pixels
    np.testing.assert_array_equal(pixels, np.repeat(images[3][..., None], 3, axis=2))


def test_a_data_set_that_cannot_be_downloaded_is_an_error_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"torchvision://CIFAR10 is not whole in .*datasets and cannot be downloaded"):
        open_source("torchvision://CIFAR10")


def test_a_data_set_that_torchvision_does_not_have_is_refused_with_a_suggestion() -> None:
    with pytest.raises(DataError, match=r"no data set 'CIFAR11'.*CIFAR10"):
        open_source("torchvision://CIFAR11")
