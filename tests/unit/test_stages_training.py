"""The stages augment, pretrain and finetune (and the baseline): what they leave, and what they start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import EVALUATION, HEAD, RANDOM, SHORT, SIDE, TINY, Made, history, new_work, weights
from PIL import Image

from tenfold.augment.spec import parse_spec
from tenfold.components.augment import stage as augment
from tenfold.components.finetune import stage as finetune
from tenfold.components.pretrain import stage as pretrain
from tenfold.config import (
    AugmentConfig,
    DataConfig,
    EvalViewConfig,
    FinetuneConfig,
    PretrainConfig,
)
from tenfold.data.build import build_dataset
from tenfold.data.decode import decode
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.errors import DataError
from tenfold.fingerprint import digest
from tenfold.models.saved import load, load_classifier
from tenfold.progress import Reporter
from tenfold.storage import FileStore
from tenfold.work import Work


def test_augment_gives_each_stage_its_view_and_shows_them(
    digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = AugmentConfig(image_size=SIDE, finetune="strong")
    outputs = augment.Outputs(tmp_path / "views", tmp_path / "preview.html")
    found = augment.run(config, augment.Inputs(digits.uri), outputs, work("augment"))
    assert parse_spec(found.pretrain).view == config.contrastive
    assert found.finetune == found.strong != found.weak == found.distill
    facts = json.loads((outputs.views / "views.json").read_text())
    assert facts["hashes"] == {name: parse_spec(text).hash for name, text in found._asdict().items()}
    assert facts["throughput_views_per_second"] > 0
    with Image.open(outputs.views / "preview.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 50
    assert "data:image/png;base64," in outputs.preview.read_text()


@pytest.fixture(scope="module")
def more_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The digits with ten labels a class."""
    config = DataConfig.model_validate({"labels": {"per_class": 10}, "split": {"test_fraction": 0.3}})
    return build_dataset(open_source("digits"), config, FileStore(tmp_path_factory.mktemp("more") / "store"))[0]


def heard(work: Work, folder: Path) -> tuple[Work, Callable[[], list[str]]]:
    """Return ``work`` with a reporter that is listened to, and what gives its warnings."""
    path = folder / "events.jsonl"

    def warnings() -> list[str]:
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [event["text"] for event in events if event["kind"] == "warning"]

    return replace(work, reporter=Reporter(work.stage, path)), warnings


def test_augment_warns_with_a_picture_of_a_flip_that_breaks_digits(
    more_digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    for flip in (0.5, 0.0):
        views = {"contrastive": {"flip": flip}, "weak": {"flip": 0}, "strong": {"flip": flip}}
        config = AugmentConfig.model_validate({"image_size": SIDE, **views})
        outputs = augment.Outputs(tmp_path / f"views{flip}", tmp_path / "preview.html")
        at_work, warnings = heard(work("augment"), outputs.views)
        augment.run(config, augment.Inputs(more_digits.uri), outputs, at_work)
        facts = json.loads((outputs.views / "views.json").read_text())
        assert warnings() == ([facts["flip"]] if flip else [])
        assert outputs.preview.read_text().count("<img") == (2 if flip else 1)
        if flip:
            assert facts["flip"].startswith("augment.contrastive.flip, augment.strong.flip: of 100 labelled images")
            with Image.open(outputs.views / "flipped.png") as picture:
                assert len(np.unique(np.asarray(picture))) > 10


def test_augment_warns_where_the_views_cannot_keep_up_with_the_network(
    digits: Dataset, tmp_path: Path, work: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = {"network": TINY, "precision": "float32", "batch_size": 8}
    config = AugmentConfig.model_validate({"image_size": SIDE, "weak": {"flip": 0}, "feeds": feeds})
    at_work, warnings = heard(work("augment"), tmp_path)
    assert augment.training_need(config, torch.device("cpu")) > 10
    monkeypatch.setattr(augment, "throughput", lambda *_: 1.0)
    augment.run(config, augment.Inputs(digits.uri), augment.Outputs(tmp_path / "v", tmp_path / "p.html"), at_work)
    assert any("the views come at 1 a second" in text and "it would wait" in text for text in warnings())


def test_channel_statistics_are_those_of_the_pixels(digits: Dataset) -> None:
    reader = SplitReader(digits, "labelled")
    found = augment.channel_statistics(reader, None)
    pixels = np.stack([decode(reader.image(number).tobytes()).pixels for number in range(len(reader))])
    np.testing.assert_allclose(found["mean"], pixels.mean((0, 1, 2)) / 255, atol=1e-9)
    np.testing.assert_allclose(found["std"], pixels.std((0, 1, 2)) / 255, atol=1e-9)


def test_pretraining_saves_encoder_head_and_curves(made: Made) -> None:
    model, description = load(made.encoder)
    assert description.kind == "simclr"
    assert (description.network, description.head, description.image_size) == (TINY, HEAD, SIDE)
    assert len(history(made.encoder)) == 3
    assert "contrast_accuracy" in history(made.encoder)[0]
    assert model.encoder.features == 64


def test_pretraining_can_watch_its_features_and_take_an_encoder_as_it_is(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = pretrain.Inputs(digits.uri, RANDOM, EVALUATION, watched=digits.uri)
    config = PretrainConfig(**SHORT, network=TINY, head=HEAD, watch=3, keep="best")
    pretrain.run(config, inputs, pretrain.Outputs(tmp_path / "watched"), work("pretrain"))
    points = [point for point in history(tmp_path / "watched") if "knn_accuracy" in point]
    assert len(points) == 3
    assert all(0 <= point["knn_accuracy"] <= 1 and point["uniformity"] < 0 < point["alignment"] for point in points)

    digest_ = digest((made.encoder / "model.json").read_text())
    init = {"path": str(made.encoder), "skip": True, "digest": digest_}
    taken = PretrainConfig(**SHORT, network=TINY, head=HEAD, init=init)  # type: ignore[arg-type]
    pretrain.run(taken, inputs, pretrain.Outputs(tmp_path / "taken"), work("pretrain"))
    for name, tensor in weights(made.encoder).items():
        assert torch.equal(tensor, weights(tmp_path / "taken")[name])

    further = taken.model_copy(update={"init": taken.init.model_copy(update={"skip": False})})  # type: ignore[union-attr]
    pretrain.run(further, inputs, pretrain.Outputs(tmp_path / "further"), work("pretrain-further"))
    assert not torch.equal(weights(tmp_path / "further")["encoder.stem.0.0.weight"],
                           weights(made.encoder)["encoder.stem.0.0.weight"])  # fmt: skip
    other = taken.model_copy(update={"init": taken.init.model_copy(update={"digest": "0" * 64})})  # type: ignore[union-attr]
    with pytest.raises(DataError, match="another than preflight saw"):
        pretrain.run(other, inputs, pretrain.Outputs(tmp_path / "other"), work("pretrain"))


def test_a_memory_that_does_not_fit_the_run_is_warned_of(
    digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Reporter, "warn", lambda self, text: told.append(text))
    memory = {"size": 1000, "momentum": 0.999}
    config = PretrainConfig(**SHORT, network=TINY, head=HEAD, memory=memory)  # type: ignore[arg-type]
    pretrain.run(
        config, pretrain.Inputs(digits.uri, RANDOM, EVALUATION), pretrain.Outputs(tmp_path / "e"),
        new_work(tmp_path, "pretrain"),
    )  # fmt: skip
    assert any("at most a quarter, 31" in text for text in told)
    assert any("still is half its start" in text for text in told)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_finetuning_starts_from_the_encoder_and_the_head_layers_that_it_keeps(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], layer: int
) -> None:
    config = FinetuneConfig(
        steps=1, batch_size=16, from_head_layer=layer,
        optimizer={"name": "sgd", "learning_rate": 1e-30, "warmup": 0},  # type: ignore[arg-type]
    )  # fmt: skip
    inputs = finetune.Inputs(digits.uri, RANDOM, EVALUATION, made.encoder)
    finetune.run(config, inputs, finetune.Outputs(tmp_path / "c"), work("finetune"))
    before, after = weights(made.encoder), weights(tmp_path / "c")
    parameters = {name for name, _ in load(tmp_path / "c")[0].named_parameters()} - {"linear.weight", "linear.bias"}
    assert {name.split(".")[2] for name in parameters if name.startswith("head")} == {str(n) for n in range(layer)}
    assert all(torch.equal(before[name], after[name]) for name in parameters)
    description = load_classifier(tmp_path / "c")[1]
    assert description.layer == layer
    assert description.classes == digits.manifest.classes
    assert description.evaluation == EvalViewConfig(crop_proportion=1.0)


def test_linear_evaluation_trains_the_classifier_alone_and_keeps_the_statistics(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = FinetuneConfig(**SHORT, from_head_layer=1, frozen=True)
    finetune.run(
        config, finetune.Inputs(digits.uri, RANDOM, EVALUATION, made.encoder), finetune.Outputs(tmp_path / "linear"),
        work("finetune"),
    )  # fmt: skip
    before, after = weights(made.encoder), weights(tmp_path / "linear")
    for name, tensor in after.items():
        if not name.startswith("linear."):
            assert torch.equal(tensor, before[name]), name
    assert after["linear.weight"].abs().max() > 0


def test_the_baseline_starts_from_nothing_and_has_the_student_s_network(made: Made) -> None:
    model, description = load_classifier(made.baseline)
    assert description.head is None
    assert description.network == load_classifier(made.student)[1].network
    assert model.head is None


def test_equal_seeds_give_equal_classifiers_and_other_seeds_others(made: Made, digits: Dataset, tmp_path: Path) -> None:
    inputs = finetune.Inputs(digits.uri, RANDOM, EVALUATION, made.encoder)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        work = new_work(tmp_path / f"work-{name}", "finetune")
        finetune.run(FinetuneConfig(**SHORT, seed=seed), inputs, finetune.Outputs(tmp_path / name), work)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["linear.weight"], c["linear.weight"])
