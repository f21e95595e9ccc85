from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tenfold.data.cache import ShardCache
from tenfold.data.listing import place
from tenfold.data.manifest import SPLITS, Dataset
from tenfold.data.reader import Order, RankOrder, SplitReader
from tenfold.errors import DataError
from tenfold.storage import FileStore

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


# --- many shards, many ranks ------------------------------------------------------------------------------


def test_a_set_of_many_shards_is_walked_in_groups_of_them() -> None:
    sizes = [7, 3, 9, 5, 8, 6, 4, 10]
    order = Order(sizes, 4, seed=1, window=3)
    starts = np.cumsum([0, *sizes])
    met = [int(np.searchsorted(starts, number, side="right")) - 1 for number in epoch(order, 0)]
    assert sorted(epoch(order, 0)) == list(range(52))
    runs = [set(met[at:until]) for at, until in zip(order._bounds[:-1], order._bounds[1:], strict=True)]
    assert sorted(len(run) for run in runs) == [2, 3, 3]
    assert set.union(*runs) == set(range(8))
    assert epoch(order, 0) != epoch(order, 1)
    assert [order[p] for p in (51, 0, 120, 51)] == [Order(sizes, 4, seed=1, window=3)[p] for p in (51, 0, 120, 51)]


def test_the_shards_of_a_group_and_of_the_next_one_are_told_before_they_are_needed() -> None:
    told: list[list[int]] = []
    order = Order([5] * 10, 5, seed=0, window=4, soon=lambda shards: told.append(list(shards)))
    epoch(order, 0)
    assert [len(shards) for shards in told] == [8, 6, 2]
    assert sorted({shard for shards in told for shard in shards}) == list(range(10))


@pytest.mark.parametrize("window", [64, 2])
@pytest.mark.parametrize("count", [96, 101])
def test_the_order_of_all_ranks_together_is_the_same_for_any_number_of_them(count: int, window: int) -> None:
    sizes = [count // 4] * 3 + [count - 3 * (count // 4)]
    orders = {}
    for ranks in (1, 2, 4):
        share = 16 // ranks
        own = [RankOrder(Order(sizes, 16, seed=5, window=window), share, rank, ranks) for rank in range(ranks)]
        batches = 2 * (count // 16)
        orders[ranks] = [
            own[rank][batch * share + k] for batch in range(batches) for rank in range(ranks) for k in range(share)
        ]
    assert orders[1] == orders[2] == orders[4]
    one = orders[1][: count // 16 * 16]
    assert len(set(one)) == len(one), "each sample once"
    assert one != sorted(one)


def test_rows_that_the_manifest_drops_are_not_there(digits: Dataset) -> None:
    whole = SplitReader(digits, "unlabelled")
    split = digits.manifest.splits["unlabelled"]
    shards = [s.model_copy(update={"dropped": [0, 3]}) if n == 1 else s for n, s in enumerate(split.shards)]
    splits = {**digits.manifest.splits, "unlabelled": split.model_copy(update={"shards": shards})}
    reader = SplitReader(replace(digits, manifest=digits.manifest.model_copy(update={"splits": splits})), "unlabelled")
    first = split.shards[0].count
    assert reader.keys == [key for number, key in enumerate(whole.keys) if number not in {first, first + 3}]


# --- the cache --------------------------------------------------------------------------------------------


class Afar(FileStore):
    """A folder that pretends to be far away: fetching copies, and counts."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.uri, self.fetched = f"afar://{root}", list[str]()

    def fetch(self, key: str, folder: Path) -> Path:
        self.fetched.append(key)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / key.replace("/", "_")
        path.write_bytes(self.read(key))
        return path


def afar(digits: Dataset) -> Dataset:
    assert isinstance(digits.store, FileStore)
    return replace(digits, store=Afar(digits.store.root))


def test_a_cache_keeps_shards_for_later_readers_and_mends_damaged_ones(digits: Dataset, tmp_path: Path) -> None:
    far = afar(digits)
    first = SplitReader(far, "unlabelled", tmp_path)
    fetched = len(far.store.fetched)  # type: ignore[attr-defined]
    assert fetched == 2 * len(first.shards)
    SplitReader(far, "unlabelled", tmp_path)
    assert len(far.store.fetched) == fetched  # type: ignore[attr-defined]
    path = tmp_path / f"{first.shards[0].sha256}.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = SplitReader(far, "unlabelled", tmp_path)
    assert len(far.store.fetched) == fetched + 1  # type: ignore[attr-defined]
    assert again.image(0).tobytes() == first.image(0).tobytes()


def test_a_cache_stays_below_its_limit_and_removes_the_least_recently_used(digits: Dataset, tmp_path: Path) -> None:
    shards = digits.manifest.splits["unlabelled"].shards
    far = afar(digits)
    cache = ShardCache(tmp_path, int(1.5 * shards[0].size))
    for shard in shards[:2]:
        cache.fetch(far.store, shard, "tar")
    assert {path.name for path in tmp_path.glob("*.tar")} == {f"{shards[1].sha256}.tar"}
    cache = ShardCache(tmp_path, sum(shard.size for shard in shards[:2]))
    cache.fetch(far.store, shards[0], "tar")
    os.utime(tmp_path / f"{shards[1].sha256}.tar", (1, 1))
    os.utime(tmp_path / f"{shards[0].sha256}.tar", (2, 2))
    cache.fetch(far.store, shards[1], "tar")  # used again: now the newest
    cache.fetch(far.store, shards[2], "tar")
    assert {path.name for path in tmp_path.glob("*.tar")} >= {f"{shards[1].sha256}.tar", f"{shards[2].sha256}.tar"}
    assert not (tmp_path / f"{shards[0].sha256}.tar").exists()


def test_processes_that_want_a_shard_at_once_fetch_it_once(digits: Dataset, tmp_path: Path) -> None:
    far, shard = afar(digits), digits.manifest.splits["unlabelled"].shards[0]
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: ShardCache(tmp_path, 10**9).fetch(far.store, shard, "tar"), range(8)))
    assert len(found) == 1
    assert len(far.store.fetched) == 1  # type: ignore[attr-defined]
