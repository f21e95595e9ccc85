from __future__ import annotations

import numpy as np
import pytest

from tenfold.data.listing import place
from tenfold.data.manifest import SPLITS, Dataset
from tenfold.data.reader import Order, SplitReader
from tenfold.errors import DataError

# --- samples -------------------------------------------------------------------------------------------


def test_a_reader_gives_every_sample_of_its_split(digits: Dataset) -> None:
    for name in SPLITS:
        reader = SplitReader(digits, name)
        assert len(reader) == digits.manifest.splits[name].count == len(reader.keys) == len(set(reader.keys))
    assert [shard.count for shard in SplitReader(digits, "unlabelled").shards][:-1] == [500, 500]


def test_numbers_run_on_over_the_shards(digits: Dataset) -> None:
    reader = SplitReader(digits, "unlabelled")
    places = [place(reader.path(number)) for number in range(len(reader))]
    assert places == sorted(places)
    last, first = reader.sample(499), reader.sample(500)
    assert last.key == reader.keys[499]
    assert first.key == reader.keys[500]
    assert last.image != first.image


def test_labels_are_those_of_the_paths(digits: Dataset) -> None:
    reader = SplitReader(digits, "test")
    expected = [digits.manifest.classes.index(reader.path(n).split("/")[0]) for n in range(len(reader))]
    assert reader.labels().tolist() == expected
    assert reader.labels().dtype == np.int64


def test_the_unlabelled_split_carries_no_label(digits: Dataset) -> None:
    reader = SplitReader(digits, "unlabelled")
    assert reader.label(0) == -1
    assert reader.sample(0).label is None


def test_an_image_borrows_the_mapped_file_and_cannot_be_written(digits: Dataset) -> None:
    image = SplitReader(digits, "test").image(0)
    assert image[:4].tobytes() == b"\x89PNG"
    assert not image.flags.writeable


# --- the order of training -------------------------------------------------------------------------------


def epoch(order: Order, number: int) -> list[int]:
    start = number * order.epoch_length
    return [order[position] for position in range(start, start + order.epoch_length)]


def test_each_epoch_is_a_permutation_and_each_another_one() -> None:
    order = Order(96, 8, seed=3)
    epochs = [epoch(order, number) for number in range(4)]
    assert all(sorted(one) == list(range(96)) for one in epochs)
    assert len({tuple(one) for one in epochs}) == 4


def test_an_epoch_is_cut_to_whole_batches_and_no_image_is_left_out_for_ever() -> None:
    order = Order(10, 4, seed=0)
    assert order.epoch_length == 8
    assert all(len(set(epoch(order, number))) == 8 for number in range(5))
    assert {image for number in range(20) for image in epoch(order, number)} == set(range(10))


def test_the_order_hangs_on_the_seed_alone() -> None:
    one, same, other = Order(50, 5, seed=1), Order(50, 5, seed=1), Order(50, 5, seed=2)
    assert [one[p] for p in range(150)] == [same[p] for p in range(150)]
    assert epoch(one, 0) != epoch(other, 0)


def test_a_position_can_be_asked_for_in_any_order() -> None:
    forward, jumping = Order(30, 7, seed=1), Order(30, 7, seed=1)
    expected = [forward[position] for position in range(120)]
    positions = np.random.default_rng(0).permutation(120)
    assert [jumping[int(position)] for position in positions] == [expected[position] for position in positions]


def test_the_batch_size_does_not_change_the_permutation() -> None:
    assert epoch(Order(48, 8, seed=1), 2) == epoch(Order(48, 16, seed=1), 2)


def test_a_set_smaller_than_a_batch_is_repeated_whole() -> None:
    order = Order(5, 64, seed=0)
    assert order.epoch_length == 5
    drawn = [order[position] for position in range(64)]
    assert all(sorted(drawn[start : start + 5]) == list(range(5)) for start in range(0, 60, 5))


def test_without_shuffling_images_come_as_they_lie_and_none_is_cut() -> None:
    order = Order(10, 4, seed=0, shuffle=False)
    assert [order[position] for position in range(12)] == [*range(10), 0, 1]


def test_no_image_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="there is no image to train on"):
        Order(0, 4, seed=0)
