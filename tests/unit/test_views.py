from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tenfold.augment.evaluation import evaluation_view
from tenfold.augment.spec import ViewSpec, parse_spec, resolve_backend, resolve_specs
from tenfold.augment.stream import Batch, ViewStream, one_pass
from tenfold.config import (
    AffineConfig,
    AugmentConfig,
    BlurConfig,
    CropConfig,
    EraseConfig,
    EvalViewConfig,
    JitterConfig,
    ViewConfig,
)
from tenfold.data.manifest import Dataset, SplitName
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError

CPU = torch.device("cpu")
SIDE = 16
BACKENDS = ["torchvision", "dali"]
PLAIN = ViewConfig(crop=None, flip=0)
#: Everything at once, so that a stream with it depends on every random operation.
FULL = ViewConfig(
    affine=AffineConfig(probability=0.5, rotate=15, translate=0.1, scale=(0.9, 1.1), shear=5),
    jitter=JitterConfig(), grayscale=0.2, blur=BlurConfig(), erase=EraseConfig(),
)  # fmt: skip


def random_spec(backend: Any, view: ViewConfig) -> ViewSpec:
    return ViewSpec(backend=backend, image_size=SIDE, view=view)


def open_stream(
    reader: SplitReader, specs: list[ViewSpec], seed: int = 3, state: dict[str, torch.Tensor] | None = None,
    batch_size: int = 8, shuffle: bool = True,
) -> ViewStream:  # fmt: skip
    return ViewStream(reader, specs, batch_size, seed, CPU, 1, state, shuffle=shuffle)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.numbers, b.numbers) and all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


@pytest.fixture(scope="module")
def reader(digits: Dataset) -> SplitReader:
    return SplitReader(digits, "labelled")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_holds_float_views_of_the_wanted_size_between_0_and_1(coloured: SplitReader, backend: str) -> None:
    batch = next(open_stream(coloured, [random_spec(backend, FULL), random_spec(backend, PLAIN)]))
    assert [tuple(view.shape) for view in batch.views] == [(8, 3, SIDE, SIDE)] * 2
    for view in batch.views:
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1
        assert view.max() > 0.5, "pixels of 0..255 became 0..1"
    assert batch.numbers.shape == (8,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_seeds_give_equal_batches_and_another_seed_gives_others(reader: SplitReader, backend: str) -> None:
    first, again, other = (open_stream(reader, [random_spec(backend, FULL)], seed) for seed in (3, 3, 4))
    for _ in range(3):
        a, b, c = next(first), next(again), next(other)
        assert same(a, b)
        assert not torch.equal(a.views[0], c.views[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_views_of_one_image_are_drawn_independently(coloured: SplitReader, backend: str) -> None:
    first, second = next(open_stream(coloured, [random_spec(backend, FULL)] * 2)).views
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_stream_gives_large_and_small_crops_of_each_image(coloured: SplitReader, backend: str) -> None:
    small = ViewConfig(crop=CropConfig(area=(0.05, 0.2)))
    specs = [random_spec(backend, FULL)] * 2
    specs += [ViewSpec(backend=backend, image_size=SIDE // 2, view=small)] * 4  # type: ignore[arg-type]
    views = next(open_stream(coloured, specs)).views
    assert [view.shape[-1] for view in views] == [SIDE] * 2 + [SIDE // 2] * 4
    assert len({view.sum().item() for view in views}) == 6, "each is a draw of its own"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_gets_another_view_in_the_next_epoch(reader: SplitReader, backend: str) -> None:
    stream = open_stream(reader, [random_spec(backend, FULL)], batch_size=len(reader))
    first, second = next(stream), next(stream)
    assert sorted(first.numbers.tolist()) == sorted(second.numbers.tolist())
    views = {int(n): view for n, view in zip(first.numbers, first.views[0], strict=True)}
    assert all(not torch.equal(views[int(n)], v) for n, v in zip(second.numbers, second.views[0], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_tell_which_images_the_views_show(reader: SplitReader, backend: str) -> None:
    batch = next(open_stream(reader, [random_spec(backend, PLAIN)]))
    ordered = next(iter(one_pass(reader, [random_spec(backend, PLAIN)], len(reader), 0, CPU, 1))).views[0]
    for number, view in zip(batch.numbers.tolist(), batch.views[0], strict=True):
        assert torch.equal(view, ordered[number])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_each_global_batch_in_one_order_and_go_on_from_their_states(
    coloured: SplitReader, backend: str, ranks: int
) -> None:
    view = random_spec(backend, FULL)

    def opened(rank: int, of: int, state: Any = None) -> ViewStream:
        return ViewStream(coloured, [view], 8 // of, 3, CPU, 1, state, part=(rank, of))

    whole, parts = opened(0, 1), [opened(rank, ranks) for rank in range(ranks)]
    met: list[int] = []
    for turn in range(4):
        one, several = next(whole), [next(part) for part in parts]
        assert one.numbers.tolist() == [number for batch in several for number in batch.numbers.tolist()]
        assert torch.equal(one.views[0], torch.cat([batch.views[0] for batch in several]))
        met += one.numbers.tolist()
        if turn == 1:
            parts = [opened(rank, ranks, part.state()) for rank, part in enumerate(parts)]
    length = len(coloured) // 8 * 8
    assert len(set(met[:length])) == length


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_goes_on_bit_for_bit_from_its_state(reader: SplitReader, backend: str) -> None:
    specs = [random_spec(backend, FULL), random_spec(backend, FULL)]
    straight = open_stream(reader, specs)
    for _ in range(4):  # 20 images in batches of 8: the third batch lies in the second epoch
        next(straight)
    state = straight.state()
    resumed = open_stream(reader, specs, state=state)
    for _ in range(3):
        assert same(next(straight), next(resumed))


_GO_ON = """
import sys, torch
from safetensors.torch import load_file, save_file
from tenfold.augment.spec import parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
uri, folder, *specs = sys.argv[1:]
reader = SplitReader(open_dataset(uri), "labelled")
for spec in map(parse_spec, specs):
    state = load_file(f"{folder}/{spec.backend}.state")
    stream = ViewStream(reader, [spec, spec], 8, 3, torch.device("cpu"), 1, state)
    batches = [next(stream) for _ in range(3)]
    parts = {f"{i}.{j}": view for i, batch in enumerate(batches) for j, view in enumerate(batch.views)}
    numbers = {f"{i}.numbers": batch.numbers for i, batch in enumerate(batches)}
    save_file(parts | numbers, f"{folder}/{spec.backend}.next")
"""


def test_a_new_process_goes_on_bit_for_bit_from_a_saved_state_with_both_backends(
    digits: Dataset, reader: SplitReader, tmp_path: Path
) -> None:
    expected = {}
    for backend in BACKENDS:
        stream = open_stream(reader, [random_spec(backend, FULL)] * 2)
        for _ in range(4):
            next(stream)
        save_file(stream.state(), tmp_path / f"{backend}.state")
        expected[backend] = [next(stream) for _ in range(3)]
    encoded = [random_spec(backend, FULL).encoded() for backend in BACKENDS]
    command = [sys.executable, "-c", _GO_ON, digits.uri, str(tmp_path), *encoded]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for backend, batches in expected.items():
        found = load_file(tmp_path / f"{backend}.next")
        for i, batch in enumerate(batches):
            assert torch.equal(found[f"{i}.numbers"], batch.numbers)
            assert all(torch.equal(found[f"{i}.{j}"], view) for j, view in enumerate(batch.views))


ALWAYS = {
    "crop": {"crop": CropConfig(area=(0.2, 0.5))},
    "flip": {"flip": 1.0},
    "rotate": {"affine": AffineConfig(rotate=30)},
    "translate": {"affine": AffineConfig(translate=0.3)},
    "scale": {"affine": AffineConfig(scale=(1.3, 1.5))},
    "scale by one factor": {"affine": AffineConfig(scale=(1.3, 1.3))},
    "shear": {"affine": AffineConfig(shear=20)},
    "jitter": {"jitter": JitterConfig(probability=1)},
    "hue": {"jitter": JitterConfig(probability=1, brightness=0, contrast=0, saturation=0, hue=0.3)},
    "grayscale": {"grayscale": 1.0},
    "blur": {"blur": BlurConfig(probability=1, sigma=(1.0, 2.0))},
    "blur of one width": {"blur": BlurConfig(probability=1, sigma=(1.0, 1.0))},
    "erase": {"erase": EraseConfig(probability=1, area=(0.1, 0.2))},
    "erase of one size": {"erase": EraseConfig(probability=1, area=(0.1, 0.1))},
}
NEVER = {
    "flip": {"flip": 0.0},
    "affine": {"affine": AffineConfig(probability=0, rotate=30)},
    "jitter": {"jitter": JitterConfig(probability=0)},
    "grayscale": {"grayscale": 0.0},
    "blur": {"blur": BlurConfig(probability=0)},
    "erase": {"erase": EraseConfig(probability=0)},
}


def changed_images(reader: SplitReader, backend: str, change: dict[str, Any]) -> list[bool]:
    view = PLAIN.model_copy(update=change)
    found, plain = (next(open_stream(reader, [random_spec(backend, v)], shuffle=False)).views[0] for v in (view, PLAIN))
    return ((found - plain).abs().amax(dim=(1, 2, 3)) > 0.01).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALWAYS)
def test_an_operation_of_probability_1_changes_every_image(coloured: SplitReader, backend: str, name: str) -> None:
    assert all(changed_images(coloured, backend, ALWAYS[name]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NEVER)
def test_an_operation_of_probability_0_leaves_every_image_alone(coloured: SplitReader, backend: str, name: str) -> None:
    assert not any(changed_images(coloured, backend, NEVER[name]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_operation_of_probability_one_half_is_drawn_image_by_image(reader: SplitReader, backend: str) -> None:
    view = PLAIN.model_copy(update={"erase": EraseConfig(probability=0.5, area=(0.3, 0.5))})
    specs = [random_spec(backend, view), random_spec(backend, PLAIN)]
    stream = open_stream(reader, specs, batch_size=64)
    found, plain = next(stream).views
    changed = ((found - plain).abs().amax(dim=(1, 2, 3)) > 0).float().mean()
    assert 0.25 < changed < 0.75


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_certain_flip_mirrors_left_and_right(coloured: SplitReader, backend: str) -> None:
    specs = [random_spec(backend, PLAIN.model_copy(update={"flip": 1.0})), random_spec(backend, PLAIN)]
    mirrored, plain = next(open_stream(coloured, specs)).views
    assert torch.equal(mirrored, plain.flip(3))
    assert not torch.equal(mirrored, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_certain_grayscale_makes_the_channels_equal(coloured: SplitReader, backend: str) -> None:
    spec = random_spec(backend, PLAIN.model_copy(update={"grayscale": 1.0}))
    view = next(open_stream(coloured, [spec])).views[0]
    assert (view.amax(1) - view.amin(1)).max() <= 2 / 255


@pytest.mark.parametrize("backend", BACKENDS)
def test_erasing_blackens_the_wanted_share_of_the_image(reader: SplitReader, backend: str) -> None:
    view = PLAIN.model_copy(update={"erase": EraseConfig(probability=1, area=(0.25, 0.25))})
    found, plain = next(open_stream(reader, [random_spec(backend, v) for v in (view, PLAIN)], batch_size=20)).views
    for erased, before in zip(found, plain, strict=True):
        rows, columns = torch.nonzero((erased != before).any(0), as_tuple=True)
        assert (erased[:, rows, columns] == 0).all()
        assert rows.max() - rows.min() <= SIDE / 2
        assert columns.max() - columns.min() <= SIDE / 2
        assert len(rows) <= (SIDE / 2 + 1) ** 2


def test_views_of_both_backends_agree_on_odd_sizes(coloured: SplitReader) -> None:
    batches = []
    for backend in BACKENDS:
        spec = ViewSpec(backend=backend, image_size=SIDE, evaluation=EvalViewConfig())  # type: ignore[arg-type]
        stream = open_stream(coloured, [spec, random_spec(backend, FULL)], shuffle=False)
        batches.append([next(stream) for _ in range(3)][-1])
    assert torch.equal(batches[0].numbers, batches[1].numbers)
    for one, other in zip(batches[0].views, batches[1].views, strict=True):
        assert (one - other).abs().max() < 2e-5


def test_the_evaluation_view_is_the_centre_of_simclr() -> None:
    height, width = 32, 48
    pixels = np.zeros((height, width, 3), np.uint8)
    side, top, left = 28, 2, 10  # 0.875 * 32, and (side left over + 1) // 2
    pixels[top : top + side, left : left + side] = 255
    assert (evaluation_view(pixels, EvalViewConfig(), side) == 1).all()
    assert (evaluation_view(pixels, EvalViewConfig(crop_proportion=0.95), side) < 1).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 3)])
def test_the_evaluation_view_of_a_tiny_image_is_finite(shape: tuple[int, int]) -> None:
    view = evaluation_view(np.full((*shape, 3), 51, np.uint8), EvalViewConfig(), SIDE)
    assert torch.allclose(view, torch.full((3, SIDE, SIDE), 0.2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_pass_yields_each_image_once_in_order_with_a_smaller_last_batch(reader: SplitReader, backend: str) -> None:
    batches = list(one_pass(reader, [random_spec(backend, PLAIN)], 8, 0, CPU, 1))
    assert [len(batch.numbers) for batch in batches] == [8, 8, 4]
    assert [len(batch.views[0]) for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.numbers for batch in batches]).tolist() == list(range(20))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_pass_over_fewer_images_than_a_batch_is_one_batch(reader: SplitReader, backend: str) -> None:
    (batch,) = one_pass(reader, [random_spec(backend, PLAIN)], 64, 0, CPU, 1)
    assert batch.numbers.tolist() == list(range(20))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_holds_no_image_twice_and_an_epoch_none_before_all_whole_batches(
    reader: SplitReader, backend: str
) -> None:
    stream = open_stream(reader, [random_spec(backend, PLAIN)], batch_size=6)
    epoch = [next(stream).numbers.tolist() for _ in range(3)]
    flat = [number for batch in epoch for number in batch]
    assert len(set(flat)) == 18
    assert flat != sorted(flat)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_images_than_a_batch_are_repeated(reader: SplitReader, backend: str) -> None:
    numbers = next(open_stream(reader, [random_spec(backend, PLAIN)], batch_size=50)).numbers.tolist()
    assert sorted(numbers[:20]) == list(range(20))
    assert sorted(numbers[20:40]) == list(range(20))


def test_views_of_two_backends_do_not_fit_one_stream(reader: SplitReader) -> None:
    with pytest.raises(DataError, match="one backend"):
        open_stream(reader, [random_spec(backend, PLAIN) for backend in BACKENDS])


@pytest.mark.parametrize(("split", "labelled"), [("unlabelled", False), ("labelled", True), ("test", True)])
def test_labels_never_reach_an_unlabelled_reader(digits: Dataset, split: SplitName, labelled: bool) -> None:
    reader = SplitReader(digits, split)
    labels = reader.labels()
    assert len(labels) == digits.manifest.splits[split].count > 0
    assert (labels >= 0).all() if labelled else (labels == -1).all()
    held = b"".join(digits.store.read(f"shards/{shard.sha256}.tar") for shard in reader.shards)
    assert (b'"label"' in held) == labelled


def test_each_stage_gets_the_view_that_the_configuration_names() -> None:
    specs = resolve_specs(AugmentConfig(image_size=24, finetune="strong", distill="weak"))
    assert specs.finetune == specs.strong != specs.weak
    assert specs.distill == specs.weak
    assert specs.evaluation.view is None
    assert {spec.image_size for _, spec in specs} == {24}
    assert {spec.backend for _, spec in specs} == {resolve_backend("auto")}


def test_a_specification_survives_its_canonical_string_and_its_hash_follows_its_content() -> None:
    spec = random_spec("torchvision", FULL)
    assert parse_spec(spec.encoded()) == spec
    assert parse_spec(spec.encoded()).hash == spec.hash
    assert spec.model_copy(update={"image_size": 17}).hash != spec.hash
    assert random_spec("dali", FULL).hash != spec.hash


@pytest.mark.parametrize("change", [{"version": 2}, {"unheard_of": 1}, {"backend": "pillow"}])
def test_a_specification_of_another_version_is_refused(change: dict[str, Any]) -> None:
    text = json.dumps({**random_spec("dali", FULL).model_dump(), **change})
    with pytest.raises(DataError, match="cannot be read by this version"):
        parse_spec(text)
