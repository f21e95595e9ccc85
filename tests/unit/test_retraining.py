"""What is new to a champion, what a retraining starts from, and how one that ends early is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from rich.console import Console

from tenfold.cli.display import RETRAIN_STAGES, Display
from tenfold.components.novelty import stage as novelty
from tenfold.components.preflight.champion import warmed
from tenfold.components.preflight.stage import Request
from tenfold.components.promote.stage import keep_encoder
from tenfold.config import DataConfig, Description, HeadConfig, ResNetConfig, RetrainConfig, RunConfig, load_config
from tenfold.data.build import build_dataset
from tenfold.data.compact import compact
from tenfold.data.contents import content_of, contents, count_new, numbered
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.errors import DataError
from tenfold.models.saved import build, save
from tenfold.registry import ENCODER_TAG, Registered, Registry
from tenfold.report.stopped import render_stopped
from tenfold.storage import FileStore
from tenfold.tracking import parent_run, task_run
from tenfold.work import Work

NETWORK, HEAD = ResNetConfig(depth=10, width=0.125), HeadConfig(layers=2, features=8)


class Place:
    """A folder of images in three classes and its data sets."""

    def __init__(self, root: Path) -> None:
        self.images, self.store = root / "images", FileStore(root / "store")
        self.fill(range(30))

    def fill(self, numbers: range, *, darker: bool = False) -> None:
        for number in numbers:
            path = self.images / "abc"[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
            if darker:
                with Image.open(path) as image:
                    other = image.point(lambda value: value // 3)
                other.save(path)

    def build(self) -> Dataset:
        config = DataConfig.model_validate({"source": str(self.images), "labels": {"per_class": 2},
                                            "max_bad_fraction": 0.2})  # fmt: skip
        return build_dataset(open_source(str(self.images)), config, self.store)[0]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- what is new --------------------------------------------------------------------------------------


def test_images_are_new_by_their_content_whatever_they_are_called(place: Place) -> None:
    first = place.build()
    (place.images / "a" / "0.png").rename(place.images / "a" / "other-name.png")
    (place.images / "b" / "1.png").unlink()
    place.fill(range(30, 37))
    (place.images / "c" / "copy.png").write_bytes(picture(30))
    (place.images / "c" / "broken.png").write_bytes(b"<html>")
    second = place.build()
    assert count_new(second, first) == 7
    assert count_new(first, second) == 1, "what was removed is new to the one that lacks it"
    assert count_new(second, second) == 0


def test_a_data_set_that_was_packed_anew_has_nothing_new(place: Place) -> None:
    place.build()
    place.fill(range(30, 37))
    second = place.build()
    packed = compact(second)
    assert packed.digest != second.digest
    assert count_new(packed, second) == count_new(second, packed) == 0


def test_the_samples_of_a_split_are_numbered_with_their_contents(place: Place) -> None:
    place.build()
    place.fill(range(30, 50))
    for number in (0, 7, 31):
        (place.images / "abc"[number % 3] / f"{number}.png").unlink()
    (place.images / "a" / "copy.png").write_bytes((place.images / "b" / "1.png").read_bytes())
    dataset = place.build()
    reader = SplitReader(dataset, "unlabelled")
    assert any(shard.dropped for shard in reader.shards), "else nothing is shown of rows that do not count"
    found = numbered(dataset, "unlabelled")
    assert sorted(found.numbers.tolist()) == list(range(len(reader)))
    for number, content in zip(found.numbers.tolist(), found.contents.tolist(), strict=True):
        assert content_of(reader.image(number).tobytes()) == content
    assert np.array_equal(np.intersect1d(found.contents, contents(dataset)), np.unique(found.contents))


def test_a_data_set_of_which_nothing_tells_what_it_was_made_of_is_an_error(place: Place) -> None:
    first = place.build()
    place.fill(range(30, 31))
    second = place.build()
    for entry in list(place.store.list(f"datasets/{first.digest}/source-")):
        place.store.delete(entry.key)
    with pytest.raises(DataError, match="which images it was made of"):
        count_new(second, first)


def decide(place: Place, work: Work, least: int, known: str | None, folder: Path) -> bool:
    work.store.write(f"runs/{work.environment.run_id}/config.json", b'{"name": "nightly"}')
    outputs = novelty.Outputs(folder / "told.md")
    return novelty.run(RetrainConfig(min_new_images=least), novelty.Inputs(place.build().uri, known), outputs, work)


@pytest.mark.parametrize(("least", "goes_on"), [(8, False), (7, True), (0, True)])
def test_it_goes_on_with_as_many_new_images_as_are_asked_for(
    least: int, goes_on: bool, place: Place, make_work: Callable[..., Work], tmp_path: Path
) -> None:
    first, work = place.build(), make_work("novelty", store=place.store)
    place.fill(range(30, 37))
    assert decide(place, work, least, first.uri, tmp_path) is goes_on
    assert "7 images that the champion's data set lacks" in (tmp_path / "told.md").read_text()
    parent = parent_run(work.environment)
    tags = parent.client.get_run(parent.run_id).data.tags
    assert tags["tenfold.new_images"] == "7"
    assert ("tenfold.stopped" in tags) is not goes_on
    assert work.store.exists("runs/run/report.html") is not goes_on
    assert work.store.exists("runs/run/result.json") is not goes_on


@pytest.mark.parametrize(("kind", "goes_on"), [("alike", False), ("darker", True)])
def test_new_images_that_are_like_the_known_ones_start_no_training_where_that_is_asked(
    kind: str, goes_on: bool, place: Place, make_work: Callable[..., Work], tmp_path: Path
) -> None:
    place.fill(range(30, 90))
    first, work = place.build(), make_work("novelty", store=place.store)
    description = Description(kind="classifier", network=NETWORK, classes=["a", "b", "c"], image_size=16)
    torch.manual_seed(0)
    save(tmp_path / "student", build(description), description)
    tracker = task_run(work.environment, "promote")
    data = (place.images / "a" / "0.png").read_bytes()
    Registry(work.environment, "m").register(tmp_path / "student", data, "w" * 64, tracker.run_id, {})
    tracker.finish("FINISHED")
    place.fill(range(90, 150), darker=kind == "darker")
    outputs = novelty.Outputs(tmp_path / "told.md")
    inputs = novelty.Inputs(place.build().uri, first.uri, "m/1")
    work.store.write(f"runs/{work.environment.run_id}/config.json", b'{"name": "nightly"}')
    assert novelty.run(RetrainConfig(min_new_images=5, min_drift=0.75), inputs, outputs, work) is goes_on
    assert "60 images that the champion's data set lacks" in outputs.told.read_text()
    assert f"{'at least' if goes_on else 'not clearly'} 75% as is asked for" in outputs.told.read_text()
    assert novelty.run(RetrainConfig(min_new_images=5), inputs, outputs, work), "nobody asks unless it is set"


def test_where_the_champion_cannot_be_asked_a_retraining_goes_on_and_says_so(
    place: Place, make_work: Callable[..., Work], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place.fill(range(30, 60))
    first, work = place.build(), make_work("novelty", store=place.store)
    place.fill(range(60, 100))
    parent_run(work.environment)
    outputs, inputs = novelty.Outputs(tmp_path / "told.md"), novelty.Inputs(place.build().uri, first.uri, "gone/1")
    assert novelty.run(RetrainConfig(min_new_images=5, min_drift=0.75), inputs, outputs, work)
    assert "whether the new images differ cannot be told, so it goes on" in capfd.readouterr().err


def test_one_that_ends_early_leaves_a_page_and_a_result_that_say_so(
    place: Place, make_work: Callable[..., Work], tmp_path: Path
) -> None:
    work = make_work("novelty", store=place.store)
    assert not decide(place, work, 1, place.build().uri, tmp_path)
    result = json.loads(work.store.read("runs/run/result.json"))["stopped"]
    assert (result["new_images"], result["min_new_images"]) == (0, 1)
    page = work.store.read("runs/run/report.html").decode()
    assert "Nothing to retrain on" in page
    assert "0 images that the champion&#39;s data set lacks, fewer than the 1 that are asked for" in page


def test_with_no_champion_it_goes_on(place: Place, make_work: Callable[..., Work], tmp_path: Path) -> None:
    assert decide(place, make_work("novelty", store=place.store), 10**6, None, tmp_path)


def test_where_the_champion_s_data_set_is_gone_every_image_is_new(
    place: Place, make_work: Callable[..., Work], tmp_path: Path
) -> None:
    gone = f"{place.store.uri}/datasets/{'0' * 64}"
    assert decide(place, make_work("novelty", store=place.store), 30, gone, tmp_path)


def test_the_page_shows_names_as_text() -> None:
    page = render_stopped("r", "<script>", "<b>", "file:///x")
    assert "<script>" not in page
    assert "&lt;b&gt;" in page


# --- what it starts from ------------------------------------------------------------------------------


@pytest.fixture
def champion(tmp_path: Path) -> Registered:
    """A champion with its encoder in a store."""
    description = Description(kind="simclr", network=NETWORK, head=HEAD, image_size=16)
    torch.manual_seed(0)
    save(tmp_path / "encoder", build(description), description)
    address = keep_encoder(tmp_path / "encoder", FileStore(tmp_path / "store"))
    return Registered("3", "w" * 64, {ENCODER_TAG: address})


def configured(*assignments: str) -> RunConfig:
    mine = ["pretrain.network={depth: 10, width: 0.125}", "pretrain.head={layers: 2, features: 8}"]
    return load_config(None, assignments=[*mine, *assignments])


def test_pretraining_starts_from_the_champion_s_encoder_for_a_share_of_its_length(champion: Registered) -> None:
    config, told = warmed(configured("pretrain.steps=101"), champion)
    assert config.pretrain.init is not None
    assert config.pretrain.init.path == champion.tags[ENCODER_TAG]
    assert config.pretrain.init.path.endswith(str(config.pretrain.init.digest))
    assert (config.pretrain.steps, config.pretrain.epochs) == (31, None)
    assert "version 3" in told
    config, _ = warmed(configured("pretrain.epochs=50", "retrain.pretrain_share=0.5"), champion)
    assert (config.pretrain.steps, config.pretrain.epochs) == (None, 25)


def test_another_champion_is_another_configuration_of_pretraining_and_of_nothing_before(
    champion: Registered, tmp_path: Path
) -> None:
    description = Description(kind="simclr", network=NETWORK, head=HEAD, image_size=16)
    torch.manual_seed(1)
    save(tmp_path / "other", build(description), description)
    other = Registered("4", "x" * 64, {ENCODER_TAG: keep_encoder(tmp_path / "other", FileStore(tmp_path / "store"))})
    one, two = (warmed(configured(), each)[0].stage_strings() for each in (champion, other))
    assert {stage for stage in one if one[stage] != two[stage]} == {"pretrain"}


def test_settings_of_retraining_decide_no_stage_s_result() -> None:
    one, two = configured().stage_strings(), configured("retrain.min_new_images=7").stage_strings()
    assert one == two


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("retrain.warm_start=false", "retrain.warm_start is false"),
        ("pretrain.network.depth=18", "another than the champion's"),
        ("pretrain.head.features=16", "another than the champion's"),
        ("pretrain.enabled=false", "pretrain.enabled is false"),
    ],
)
def test_it_starts_from_scratch_where_that_is_asked_for_or_the_networks_differ(
    assignment: str, told: str, champion: Registered
) -> None:
    before = configured(assignment)
    config, note = warmed(before, champion)
    assert config == before
    assert told in note


def test_it_starts_from_scratch_where_there_is_no_champion_or_no_encoder_of_it(champion: Registered) -> None:
    before = configured()
    for each in (None, Registered("3", "w" * 64, {}), Registered("3", "w" * 64, {ENCODER_TAG: "file:///gone"})):
        config, note = warmed(before, each)
        assert config == before
        assert "from scratch" in note


def test_an_encoder_that_the_user_gives_is_kept(champion: Registered, tmp_path: Path) -> None:
    text = f"pretrain: {{init: {{path: {tmp_path / 'encoder'}, skip: true}}}}"
    before = Request("", f"data: {{source: digits}}\n{text}", {"finetune.from_head_layer": "0"}).resolve()
    config, note = warmed(before, champion)
    assert config == before
    assert "pretrain.init" in note


def test_a_damaged_encoder_is_not_kept_for_later(champion: Registered, tmp_path: Path) -> None:
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match="is damaged"):
        keep_encoder(tmp_path / "encoder", FileStore(tmp_path / "elsewhere"))
    assert not list(FileStore(tmp_path / "elsewhere").list())


# --- what it looks like -------------------------------------------------------------------------------


def test_stages_behind_an_early_end_are_not_told_as_cached(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    told = [{"kind": kind, "stage": stage, "seconds": 1.0} for stage in RETRAIN_STAGES[:5]
            for kind in ("preparing", "started", *(["stopped"] if stage == "novelty" else []), "finished")]  # fmt: skip
    told += [{"kind": kind, "stage": "finish", "seconds": 1.0} for kind in ("preparing", "started", "finished")]
    events.write_text("".join(json.dumps(event) + "\n" for event in told))
    text = io.StringIO()
    with Display(events, Console(file=text, width=100), RETRAIN_STAGES):
        pass
    assert "novelty: done" in text.getvalue()
    assert "cached" not in text.getvalue()
