from __future__ import annotations

import hashlib
import random
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from tenfold.config import DataConfig
from tenfold.data.annotations import Row
from tenfold.data.pack import sample_key
from tenfold.data.splits import divide, side_of
from tenfold.errors import DataError


class Record(NamedTuple):
    """An image as its source and its bytes tell."""

    path: str
    content: str
    label: str | None
    split: Any
    group: str | None = None

    @property
    def key(self) -> str:
        return sample_key(self.path, self.content)


class Splits(NamedTuple):
    """The records of each split, sorted, and the classes."""

    unlabelled: list[Record]
    labelled: list[Record]
    test: list[Record]
    classes: list[str]


def record(path: str, label: str | None = "cat", split: Any = None, content: str | None = None) -> Record:
    return Record(path, hashlib.sha256((content or path).encode()).hexdigest(), label, split)


def records(count: int, classes: str = "abc", start: int = 0) -> list[Record]:
    return [record(f"{classes[n % len(classes)]}/{n}.png", classes[n % len(classes)]) for n in range(start, count)]


def split(
    given: list[Record],
    listed: frozenset[str] | None = None,
    test_fraction: float = 0.3,
    seed: int = 0,
    labels_seed: int = 0,
    **labels: Any,
) -> Splits:
    """Divide records as the packer and the merger together do it."""
    config = DataConfig.model_validate({
        "labels": {"file": "list" if listed is not None else None, "seed": labels_seed, **labels},
        "split": {"test_fraction": test_fraction, "seed": seed},
    })  # fmt: skip
    own = any(r.split == "test" for r in given)
    rows = []
    for number, r in enumerate(given):
        row = Row(r.path, 1, "", r.label, r.split, None if listed is None else r.path in listed, r.group)
        side = side_of(row, r.content, config.split, own_test=own)
        rows.append({**row._asdict(), "content": r.content, "stored": r.content, "side": side, "shard": "s",
                     "row": number})  # fmt: skip
    columns = ["path", "label", "split", "listed", "group", "content", "stored", "side", "shard", "row"]
    kinds = {"listed": pa.bool_(), "row": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    found = divide(pa.Table.from_pylist(rows, schema), config)
    by_path = {r.path: r for r in given}
    train, test = ([by_path[p] for p in sorted(t["path"].to_pylist())] for t in (found.train, found.test))
    return Splits(train, [by_path[p] for p in sorted(c.path for c in found.labelled)], test, found.classes)


def paths(given: list[Record]) -> set[str]:
    return {r.path for r in given}


def test_every_image_is_either_for_training_or_for_testing() -> None:
    given = records(300)
    splits = split(given)
    assert paths(splits.unlabelled) | paths(splits.test) == paths(given)
    assert not paths(splits.unlabelled) & paths(splits.test)
    assert len(splits.unlabelled) + len(splits.test) == 300
    assert 60 < len(splits.test) < 120
    assert splits.classes == ["a", "b", "c"]


def test_a_growing_source_moves_no_image_between_test_and_train() -> None:
    before, after = split(records(100)), split(records(400))
    old = paths(records(100))
    assert paths(before.test) == paths(after.test) & old
    assert paths(before.unlabelled) == paths(after.unlabelled) & old


def test_equal_contents_fall_into_the_same_split() -> None:
    given = records(90) + [record(f"a/copy{n}.png", "a", content=f"a/{n}.png") for n in range(0, 90, 3)]
    splits = split(given)
    assert not {r.content for r in splits.test} & {r.content for r in splits.unlabelled}
    assert any(r.path.startswith("a/copy") for r in splits.test)
    assert any(r.path.startswith("a/copy") for r in splits.unlabelled)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (record("train/a/1.png", "a", "train", content="same"), record("test/a/2.png", "a", "test", content="same")),
        (
            record("unlabelled/1.png", None, "train", content="same"),
            record("test/a/2.png", "a", "test", content="same"),
        ),
    ],
)
def test_the_same_image_in_train_and_test_of_the_source_is_an_error_that_names_the_pair(
    first: Record, second: Record
) -> None:
    rest = [record("train/a/3.png", "a", "train"), record("train/b/4.png", "b", "train")]
    with pytest.raises(DataError) as caught:
        split([first, second, *rest])
    assert first.path in str(caught.value)
    assert second.path in str(caught.value)


@pytest.mark.parametrize("listed", [False, True])
def test_a_copy_that_must_be_for_training_never_leaves_the_other_for_testing(listed: bool) -> None:
    names = [f"a/copy{n}.png" if listed else f"copy{n}.png" for n in range(0, 90, 3)]
    copies = [
        record(name, "a" if listed else None, content=f"a/{n}.png")
        for name, n in zip(names, range(0, 90, 3), strict=True)
    ]
    chosen = frozenset([*names, "b/1.png", "c/2.png"]) if listed else None
    splits = split(records(90) + copies, chosen)
    assert not {r.content for r in splits.test} & {r.content for r in splits.unlabelled}


def test_the_order_of_the_source_changes_nothing() -> None:
    given = records(200)
    shuffled = random.Random(1).sample(given, len(given))
    assert split(given, per_class=5) == split(shuffled, per_class=5)
    copies = [record(f"{c}/{n}.png", c, "train", content=c) for c in "ab" for n in range(9)]
    copies.append(record("t.png", "a", "test"))
    assert split(copies, per_class=2) == split(copies[::-1], per_class=2)


def test_another_seed_sets_other_images_apart() -> None:
    assert paths(split(records(200)).test) != paths(split(records(200), seed=1).test)


def test_the_seed_of_the_split_and_the_seed_of_the_labels_are_two() -> None:
    one = split(records(200), per_class=5)
    changed = split(records(200), per_class=5, labels_seed=1)
    assert one.test == changed.test
    assert paths(one.labelled) != paths(changed.labelled)


def test_n_images_a_class_keep_their_labels() -> None:
    splits = split(records(300), per_class=4)
    assert [sum(r.label == name for r in splits.labelled) for name in "abc"] == [4, 4, 4]
    assert paths(splits.labelled) <= paths(splits.unlabelled)


def test_fewer_labels_are_a_part_of_more_labels() -> None:
    assert paths(split(records(300), per_class=2).labelled) < paths(split(records(300), per_class=5).labelled)


def test_a_class_with_fewer_images_than_asked_for_gives_all_it_has() -> None:
    given = [*records(100, "ab"), record("c/x.png", "c", "train")]
    assert [r.path for r in split(given, per_class=3).labelled if r.label == "c"] == ["c/x.png"]


def test_a_fraction_is_of_each_class_and_at_least_one_image() -> None:
    given = [record(f"a/{n}", "a", "train") for n in range(40)] + [record(f"b/{n}", "b", "train") for n in range(3)]
    given.append(record("a/t", "a", "test"))
    splits = split(given, fraction=0.1)
    assert sum(r.label == "a" for r in splits.labelled) == 4
    assert sum(r.label == "b" for r in splits.labelled) == 1


def test_without_a_choice_every_label_is_kept() -> None:
    splits = split(records(100))
    assert splits.labelled == splits.unlabelled


def test_listed_images_are_the_labelled_ones_and_never_for_testing() -> None:
    listed = frozenset(f"{'abc'[n % 3]}/{n}.png" for n in range(30))
    splits = split(records(300), listed)
    assert paths(splits.labelled) == listed
    assert listed <= paths(splits.unlabelled)


def test_a_test_split_of_the_source_is_kept_as_it_is() -> None:
    given = [record(f"{c}/{n}", c, "test" if n < 3 else None) for c in "ab" for n in range(50)]
    assert paths(split(given).test) == {f"{c}/{n}" for c in "ab" for n in range(3)}


def test_an_image_without_a_label_is_never_drawn_for_testing() -> None:
    given = records(100) + [record(f"loose{n}.png", None) for n in range(50)]
    splits = split(given)
    assert all(r.label for r in splits.test)
    assert {f"loose{n}.png" for n in range(50)} <= paths(splits.unlabelled)
    assert not any(r.label is None for r in splits.labelled)


def test_a_key_hangs_on_path_and_content() -> None:
    keys = {record("a", content="x").key, record("b", content="x").key, record("a", content="y").key}
    assert len(keys) == 3
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([record("a/1", "a", "train"), record("a/2", "a", "test")], r"show 1 class\(es\); at least two"),
        ([record("a/1", "a", "train"), record("b/1", "b", "train")], "no image is left for the test split"),
        (
            [record("a/1", "a", "train"), record("b/1", "b", "train"), record("t", None, "test")],
            r"1 test images have no label: \['t'\]",
        ),
        (
            [record("a/1", "a", "train"), record("b/1", "b", "train"), record("c/1", "c", "test")],
            "classes that no labelled image shows: c",
        ),
    ],
)
def test_splits_that_cannot_work_are_refused(given: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(given)


def test_a_list_that_leaves_a_test_class_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="classes that no labelled image shows: c"):
        split(records(100), frozenset(["a/0.png", "b/1.png"]))


def test_the_images_of_a_group_are_on_one_side_and_unlabelled_ones_of_a_test_group_on_none() -> None:
    given = [record(f"{'ab'[n % 2]}/{n}.png", "ab"[n % 2])._replace(group=f"patient {n // 5}") for n in range(300)]
    given += [record(f"loose{n}.png", None)._replace(group=f"patient {n}") for n in range(60)]
    splits = split(given)
    tests = {r.group for r in splits.test}
    assert 5 < len(tests) < 35
    assert not tests & {r.group for r in splits.unlabelled}
    left_out = paths(given) - paths(splits.unlabelled) - paths(splits.test)
    assert left_out == {f"loose{n}.png" for n in range(60) if f"patient {n}" in tests}


def test_a_group_that_the_source_has_on_both_sides_is_a_leak() -> None:
    given = [record("train/a/1", "a", "train"), record("train/b/2", "b", "train"), record("test/a/3", "a", "test")]
    with pytest.raises(DataError, match=r"train/a/1 = test/a/3"):
        split([given[0]._replace(group="x"), given[1], given[2]._replace(group="x")])
    assert len(split(given).test) == 1
