from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenfold.errors import NonFiniteError, StorageError
from tenfold.storage import FileStore, Store
from tenfold.storage.store import Content
from tenfold.training.checkpoint import Checkpoint, Checkpoints
from tenfold.work import Work

MakeWork = Callable[..., Work]


class Heard:
    """A reporter that remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def save_checkpoint(work: Work, checkpoint: Checkpoint) -> None:
    with Checkpoints(work) as kept:
        kept.save(checkpoint)


def latest_checkpoint(work: Work) -> Checkpoint | None:
    with Checkpoints(work, writes=False) as kept:
        return kept.latest()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def work(make_work: MakeWork, heard: Heard) -> Work:
    return replace(make_work(), reporter=heard)  # type: ignore[arg-type]


def at(step: int) -> Checkpoint:
    tensors = {
        "weight": torch.full((3, 4, 2, 2), float(step)).to(memory_format=torch.channels_last),
        "count": torch.tensor(step),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "bytes": torch.arange(5, dtype=torch.uint8),
        "nothing": torch.empty(0, dtype=torch.uint8),
    }
    return Checkpoint(step, tensors, {"history": [{"step": step, "loss": 0.1 + step}]})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return (
        a.step == b.step
        and a.values == b.values
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    )


def keys(store: Store) -> list[str]:
    return sorted(entry.key for entry in store.list())


def test_a_fresh_place_has_no_checkpoint(work: Work) -> None:
    assert latest_checkpoint(work) is None


def test_the_newest_checkpoint_comes_back_whole(work: Work) -> None:
    for step in (9, 10):
        save_checkpoint(work, at(step))
    found = latest_checkpoint(work)
    assert found is not None
    assert same(found, at(10))
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == {
        name: tensor.dtype for name, tensor in at(10).tensors.items()
    }


def test_the_newest_is_told_by_its_step_and_not_by_the_order_of_writing(work: Work) -> None:
    for step in (30, 7):
        save_checkpoint(work, at(step))
    found = latest_checkpoint(work)
    assert found is not None
    assert found.step == 30


def test_two_checkpoints_of_a_run_are_kept(work: Work) -> None:
    for step in range(1, 6):
        save_checkpoint(work, at(step))
    steps = {key.split("/checkpoints/")[1].split("/")[0] for key in keys(work.store)}
    assert steps == {"000000004", "000000005"}
    assert len(keys(work.store)) == 6


def test_another_run_of_the_same_fingerprint_is_read_and_never_touched(make_work: MakeWork) -> None:
    first, second = make_work(run_id="first"), make_work(run_id="second")
    for step in (5, 6):
        save_checkpoint(first, at(step))
    its = {key: first.store.read(key) for key in keys(first.store)}
    found = latest_checkpoint(second)
    assert found is not None
    assert found.step == 6
    for step in (7, 8, 9):
        save_checkpoint(second, at(step))
    assert {key: first.store.read(key) for key in keys(first.store) if key.startswith(first.own)} == its
    found = latest_checkpoint(first)
    assert found is not None
    assert found.step == 9


def test_a_run_whose_name_starts_like_another_s_does_not_remove_its_checkpoints(make_work: MakeWork) -> None:
    longer, shorter = make_work(run_id="run-10"), make_work(run_id="run-1")
    save_checkpoint(longer, at(1))
    for step in (2, 3, 4):
        save_checkpoint(shorter, at(step))
    assert [key for key in keys(longer.store) if key.startswith(longer.own)]


def test_another_fingerprint_s_checkpoint_is_not_read(make_work: MakeWork) -> None:
    save_checkpoint(make_work(fingerprint="a" * 64), at(5))
    assert latest_checkpoint(make_work(fingerprint="b" * 64)) is None


def test_a_half_written_checkpoint_is_ignored(work: Work, heard: Heard) -> None:
    save_checkpoint(work, at(5))
    save_checkpoint(work, at(6))
    work.store.delete(f"{work.own}checkpoints/000000006/complete.json")
    found = latest_checkpoint(work)
    assert found is not None
    assert found.step == 5
    assert heard.warnings == [], "it was cut off, as can happen any time; nothing is wrong with it"


def test_a_checkpoint_is_complete_only_when_everything_else_is_there(work: Work) -> None:
    written: list[str] = []

    class Recording(FileStore):
        def write(self, key: str, data: bytes) -> None:
            written.append(key.rpartition("/")[2])
            super().write(key, data)

    assert isinstance(work.store, FileStore)
    save_checkpoint(replace(work, store=Recording(work.store.root)), at(1))
    assert written[-1] == "complete.json"
    assert set(written) == {"state.safetensors", "state.json", "complete.json"}


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "complete.json"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.99])
def test_a_flipped_bit_falls_back_to_the_checkpoint_before_with_a_warning(
    work: Work, heard: Heard, name: str, where: float
) -> None:
    for step in (5, 6):
        save_checkpoint(work, at(step))
    key = f"{work.own}checkpoints/000000006/{name}"
    data = bytearray(work.store.read(key))
    if name == "complete.json":  # of this one, only what is read can matter: the digests
        data[data.index(b'"state.json":"') + 14 + int(where * 60)] ^= 0x10
    else:
        data[int(where * len(data))] ^= 0x10
    work.store.write(key, bytes(data))
    found = latest_checkpoint(work)
    assert found is not None
    assert same(found, at(5))
    assert len(heard.warnings) == 1
    assert "000000006" in heard.warnings[0]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"3", b"{}", b'{"sha256":{}}', b'{"sha256":[]}'])
def test_a_complete_file_that_says_nothing_falls_back_with_a_warning(work: Work, heard: Heard, content: bytes) -> None:
    for step in (5, 6):
        save_checkpoint(work, at(step))
    work.store.write(f"{work.own}checkpoints/000000006/complete.json", content)
    found = latest_checkpoint(work)
    assert found is not None
    assert found.step == 5
    assert len(heard.warnings) == 1


def test_a_file_that_is_gone_falls_back_with_a_warning(work: Work, heard: Heard) -> None:
    for step in (5, 6):
        save_checkpoint(work, at(step))
    work.store.delete(f"{work.own}checkpoints/000000006/state.safetensors")
    found = latest_checkpoint(work)
    assert found is not None
    assert found.step == 5
    assert len(heard.warnings) == 1


def test_when_all_are_damaged_there_is_none(work: Work, heard: Heard) -> None:
    for step in (5, 6):
        save_checkpoint(work, at(step))
        work.store.write(f"{work.own}checkpoints/{step:09d}/state.json", b"{}")
    assert latest_checkpoint(work) is None
    assert len(heard.warnings) == 2


def test_the_values_are_kept_without_loss(work: Work) -> None:
    values = {"history": [{"loss": 0.1 + 0.2, "tiny": 5e-324}], "text": "gr\u00fcn"}
    save_checkpoint(work, Checkpoint(1, {"x": torch.zeros(1)}, values))
    found = latest_checkpoint(work)
    assert found is not None
    assert found.values == values


def test_nothing_but_safetensors_and_json_is_written(work: Work) -> None:
    save_checkpoint(work, at(1))
    assert isinstance(work.store, FileStore)
    for path in Path(work.store.root).rglob("*.*"):
        assert path.suffix in {".safetensors", ".json"}
        if path.suffix == ".json":
            json.loads(path.read_text())


class Waiting(FileStore):
    """Its writes begin when they are let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.let = threading.Event()

    def write(self, key: str, data: bytes) -> None:  # type: ignore[override]
        assert self.let.wait(60)
        super().write(key, data)


class Full(FileStore):
    """A disk that is full from the first write on."""

    def write(self, key: str, data: bytes) -> None:  # type: ignore[override]
        raise StorageError(f"{self.uri}/{key}: No space left on device")


def on(work: Work, kind: type[FileStore]) -> Work:
    assert isinstance(work.store, FileStore)
    return replace(work, store=kind(work.store.root))


def scored(step: int, score: float | None) -> Checkpoint:
    return replace(at(step), score=score)


def kept_steps(work: Work) -> list[int]:
    return sorted({int(key.split("/checkpoints/")[1].split("/")[0]) for key in keys(work.store)})


def test_saving_goes_on_in_the_background_until_it_is_waited_for(work: Work) -> None:
    slow = on(work, Waiting)
    assert isinstance(slow.store, Waiting)
    with Checkpoints(slow) as kept:
        kept.save(at(1))
        assert keys(work.store) == [], "save returned before anything was written"
        slow.store.let.set()
        kept.wait()
        assert kept_steps(work) == [1]
        kept.save(at(2))
    assert kept_steps(work) == [1, 2], "leaving waits for the last one"


@pytest.mark.parametrize(
    "occasion",
    [lambda kept: kept.save(at(2)), lambda kept: kept.wait(), lambda kept: kept.__exit__(None, None, None)],
    ids=["save", "wait", "leave"],
)
def test_a_write_that_failed_is_told_at_the_next_occasion_and_once(
    work: Work, occasion: Callable[[Checkpoints], None]
) -> None:
    kept = Checkpoints(on(work, Full))
    kept.save(at(1))
    with pytest.raises(StorageError, match="No space left"):
        occasion(kept)
    kept.__exit__(None, None, None)
    assert keys(work.store) == []


class Away(FileStore):
    """A store that is away for so many writes."""

    left = 0

    def write(self, key: str, content: Content) -> None:
        if self.left:
            self.left -= 1
            raise StorageError(f"{self.uri}/{key}: the server cannot be reached", again=True)
        super().write(key, content)


@pytest.mark.parametrize(("away", "written"), [(2, [3, 4]), (3, [])])
def test_a_store_that_is_away_for_two_checkpoints_costs_warnings_and_for_three_the_training(
    work: Work, heard: Heard, away: int, written: list[int]
) -> None:
    kept = Checkpoints(on(work, Away))
    assert isinstance(kept._work.store, Away)
    kept._work.store.left = away

    def train() -> None:
        for step in (1, 2, 3, 4):
            kept.save(at(step))
        kept.wait()

    if written:
        train()
    else:
        with pytest.raises(StorageError, match="cannot be reached"):
            train()
    kept.__exit__(None, None, None)
    assert kept_steps(work) == written
    assert len(heard.warnings) == 2
    assert all("training goes on without it" in warning for warning in heard.warnings)


def test_an_error_that_ends_the_training_is_not_hidden_by_a_write_that_failed(work: Work) -> None:
    def train() -> None:
        with Checkpoints(on(work, Full)) as kept:
            kept.save(at(1))
            raise NonFiniteError("the first")

    with pytest.raises(NonFiniteError, match="the first"):
        train()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.9, 0.2, 0.3, 0.4], [2, 4, 5]),
        ([0.1, 0.9, 0.2, 0.9, 0.4], [2, 4, 5]),
        ([0.9, 0.9, 0.2, 0.3, 0.4], [1, 4, 5]),
        ([0.1, 0.2, 0.3, 0.4, 0.9], [4, 5]),
        ([None, 0.2, None, None, None], [2, 4, 5]),
        ([None, None, None, None, None], [4, 5]),
        ([0.0, None, -1.0, None, None], [1, 4, 5]),
    ],
)
def test_the_last_two_and_the_best_are_kept_and_of_equals_the_earlier(
    work: Work, scores: list[float | None], expected: list[int]
) -> None:
    with Checkpoints(work) as kept:
        for step, score in enumerate(scores, start=1):
            kept.save(scored(step, score))
    assert kept_steps(work) == expected


def test_the_score_stands_in_the_complete_file_and_comes_back(work: Work) -> None:
    save_checkpoint(work, scored(3, 0.625))
    assert json.loads(work.store.read(f"{work.own}checkpoints/000000003/complete.json"))["score"] == 0.625
    found = latest_checkpoint(work)
    assert found is not None
    assert found.score == 0.625


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"score":"high"}', b'{"score":NaN}'])
def test_a_damaged_complete_file_of_its_own_does_not_end_a_run_that_removes_old_ones(
    work: Work, content: bytes
) -> None:
    for step, score in ((1, 0.5), (2, 0.4)):
        save_checkpoint(work, scored(step, score))
    work.store.write(f"{work.own}checkpoints/000000002/complete.json", content)
    with Checkpoints(work) as kept:
        for step in (3, 4):
            kept.save(scored(step, 0.1))
    assert kept_steps(work) == [1, 3, 4], "the damaged one is no best one"


def test_a_start_removes_what_its_own_run_left_half_written_and_passes_over_another_s(make_work: MakeWork) -> None:
    own, other = make_work(run_id="own"), make_work(run_id="other")
    assert isinstance(own.store, FileStore)
    for work in (own, other):
        save_checkpoint(work, at(4))
        half = f"{work.own}checkpoints/000000005/"
        work.store.write(f"{half}state.safetensors", b"half")
        (own.store.root / half / ".writing-abc").write_bytes(b"less")
    with Checkpoints(own) as kept:
        found = kept.latest()
    assert found is not None
    assert found.step == 4
    left = [path.relative_to(own.store.root).as_posix() for path in own.store.root.rglob("*") if path.is_file()]
    assert [name for name in left if name.startswith(own.own) and "000000005" in name] == []
    assert sum(name.startswith(other.own) and "000000005" in name for name in left) == 2
