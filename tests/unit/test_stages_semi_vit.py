"""Semi-ViT's stages: a masked autoencoder, a transformer fine-tuned and self-trained, and what is passed on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import EVALUATION, RANDOM, SHORT, SIDE, STRONG, TINY, Made, described, history, new_work, seal, weights

from tenfold.components.distill import stage as distill
from tenfold.components.evaluate import stage as evaluate
from tenfold.components.finetune import stage as finetune
from tenfold.components.pretrain import stage as pretrain
from tenfold.components.pseudo_label import stage as pseudo_label
from tenfold.components.self_train import stage as self_train
from tenfold.config import (
    DataConfig,
    DecoderConfig,
    DistillConfig,
    EvaluateConfig,
    FinetuneConfig,
    InitConfig,
    MAEConfig,
    PretrainConfig,
    PseudoLabelConfig,
    SelfTrainConfig,
    ViTConfig,
)
from tenfold.data.build import build_dataset
from tenfold.data.manifest import Dataset
from tenfold.data.sources import open_source
from tenfold.errors import DataError
from tenfold.fingerprint import digest
from tenfold.models.heads import Classifier, SimCLRModel
from tenfold.models.mae import MaskedAutoencoder
from tenfold.models.saved import load, load_classifier, load_pretrained
from tenfold.models.vit import ViT
from tenfold.progress import Reporter
from tenfold.storage import FileStore
from tenfold.work import Work

VIT = ViTConfig(vit="tiny", width=24, heads=3, depth=2, patch=4)
MAE = MAEConfig(decoder=DecoderConfig(width=16, depth=1, heads=2))
PRETRAIN = PretrainConfig(**SHORT, method="mae", network=VIT, mae=MAE, watch=2)
ALL = {
    "pseudo_mixup": True, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "drop_path": 0.2, "foreign": 0.2,
    "align": "estimated", "monitor": 3, "ratio": 2, "threshold": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def vit(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every stage once, three steps each, with a transformer."""
    root = tmp_path_factory.mktemp("vit")
    made = Made(root, *(root / name for name in Made._fields[1:]))
    uri = digits.uri
    pretrain.run(
        PRETRAIN, pretrain.Inputs(uri, RANDOM, EVALUATION, uri), pretrain.Outputs(made.encoder),
        new_work(root, "pretrain"),
    )  # fmt: skip
    finetune.run(
        FinetuneConfig(
            **SHORT, from_head_layer=0, drop_path=0.2, mixup=0.8, optimizer={"name": "adamw", "layer_decay": 0.7}
        ),
        finetune.Inputs(uri, STRONG, EVALUATION, made.encoder), finetune.Outputs(made.finetuned),
        new_work(root, "finetune"),
    )  # fmt: skip
    self_train.run(
        SelfTrainConfig(**SHORT, **ALL), self_inputs(digits, made), self_train.Outputs(made.teacher),
        new_work(root, "self_train"),
    )  # fmt: skip
    return made


def self_inputs(dataset: Dataset, made: Made) -> self_train.Inputs:
    return self_train.Inputs(dataset.uri, RANDOM, STRONG, EVALUATION, made.finetuned, made.encoder)


def notes(work: Work, events: Path) -> tuple[Work, Callable[[], str]]:
    heard = replace(work, reporter=Reporter(work.stage, events))
    return heard, lambda: "\n".join(str(json.loads(line).get("text")) for line in events.read_text().splitlines())


def test_a_masked_autoencoder_is_trained_watched_and_kept_with_its_decoder(vit: Made) -> None:
    model, description = load_pretrained(vit.encoder)
    assert isinstance(model, MaskedAutoencoder)
    assert (description.kind, description.network, description.decoder, description.head) == (
        "mae",
        VIT,
        MAE.decoder,
        None,
    )
    points = history(vit.encoder)
    assert points[-1]["loss"] < points[0]["loss"]
    assert 0 <= points[-1]["knn_accuracy"] <= 1


def test_fine_tuning_takes_the_encoder_over_and_makes_a_norm_of_its_own(vit: Made) -> None:
    encoder, tuned = weights(vit.encoder), weights(vit.finetuned)
    assert not any(name.startswith(("decoder", "mask")) for name in tuned)
    assert torch.equal(encoder["encoder.mean"], tuned["encoder.mean"])
    moved = {name: float((tuned[name] - encoder[name]).abs().max()) for name in tuned if name in encoder}
    lowest = moved["encoder.network.patch_embed.proj.weight"]
    highest = moved["encoder.network.blocks.1.attn.qkv.weight"]
    assert 0 < lowest < highest  # layers learn the slower the lower they are
    model, _ = load_classifier(vit.finetuned)
    assert isinstance(model.encoder, ViT)


def test_self_training_a_transformer_changes_it_and_measures_its_health(vit: Made) -> None:
    assert described(vit.teacher) == described(vit.finetuned)
    points = history(vit.teacher)
    assert points[-1]["confident_share"] > 0
    assert all(0 <= point["neighbour_accuracy"] <= 1 for point in points)
    assert all(point["class_divergence"] >= 0 for point in points)


@pytest.mark.parametrize("method", ["fixmatch", "pseudo_label"])
def test_the_other_methods_of_self_training_keep_the_student(
    method: Any, vit: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = SelfTrainConfig(**SHORT, method=method, ratio=2, threshold=0.1, monitor=0)
    self_train.run(config, self_inputs(digits, vit), self_train.Outputs(tmp_path / "t"), work("self_train"))
    assert not torch.equal(weights(tmp_path / "t")["linear.weight"], weights(vit.finetuned)["linear.weight"])


def test_self_training_that_harms_is_ended_and_the_fine_tuned_teacher_is_kept(
    made: Made, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    labels = DataConfig.model_validate({"labels": {"per_class": 10}, "split": {"test_fraction": 0.3}})
    digits, _ = build_dataset(open_source("digits"), labels, FileStore(tmp_path / "data"))
    many = {"steps": 400, "epochs": None, "batch_size": 4}
    config = SelfTrainConfig(
        **many, ratio=4, threshold=0.0, unlabelled_weight=50.0, align="none", average=0.5, monitor=20,
        optimizer={"name": "adamw", "learning_rate": 0.05, "warmup": 0.0},
    )  # fmt: skip
    good = tmp_path / "good"
    finetune.run(
        FinetuneConfig(steps=150, epochs=None, batch_size=20, optimizer={"name": "adamw", "learning_rate": 1e-2}),
        finetune.Inputs(digits.uri, RANDOM, EVALUATION, made.encoder), finetune.Outputs(good), work("finetune"),
    )  # fmt: skip
    heard, told = notes(work("self_train"), tmp_path / "events")
    inputs = replace(self_inputs(digits, made), teacher=good)
    self_train.run(config, inputs, self_train.Outputs(tmp_path / "t"), heard)
    assert history(tmp_path / "t")[-1]["step"] < 400
    assert "self-training did harm and was ended: of 100 labelled images" in told()
    assert "; the fine-tuned teacher is kept" in told()
    before, after = weights(good), weights(tmp_path / "t")
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, said = notes(work("self_train"), tmp_path / "more")  # from the checkpoint: the same, and nothing is trained
    self_train.run(config, inputs, self_train.Outputs(tmp_path / "u"), again)
    assert (tmp_path / "u" / "model.safetensors").read_bytes() == (tmp_path / "t" / "model.safetensors").read_bytes()
    assert "; the fine-tuned teacher is kept" in said()


def test_an_average_that_outlives_the_run_is_warned_of(
    vit: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    heard, told = notes(work("self_train"), tmp_path / "events")
    config = SelfTrainConfig(**SHORT, average=0.9999, ratio=2, threshold=0.1, monitor=0)
    self_train.run(config, self_inputs(digits, vit), self_train.Outputs(tmp_path / "t"), heard)
    assert "self_train.average is 0.9999: after all 3 steps the average still is 100% its start" in told()


def test_a_filter_that_needs_more_labels_says_so_and_leaves_no_image_out(
    vit: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    heard, told = notes(work("self_train"), tmp_path / "events")
    config = SelfTrainConfig(**SHORT, foreign=0.01, ratio=2, threshold=0.1)
    self_train.run(config, self_inputs(digits, vit), self_train.Outputs(tmp_path / "t"), heard)
    assert "needs 99 labelled images; with 20 no image is left out" in told()
    assert "leaves out 0 images of " in told()


def test_where_nothing_is_distilled_the_teacher_is_the_student(
    vit: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    labels, student = tmp_path / "labels", tmp_path / "student"
    pseudo_label.run(
        PseudoLabelConfig(enabled=False),
        pseudo_label.Inputs(digits.uri, RANDOM, EVALUATION, vit.teacher, vit.finetuned, vit.encoder),
        pseudo_label.Outputs(labels), work("pseudo_label"),
    )  # fmt: skip
    assert [path.name for path in labels.iterdir()] == ["none.txt"], (
        "a stage that leaves nothing is taken for one that failed"
    )
    distill.run(
        DistillConfig(enabled=False),
        distill.Inputs(digits.uri, RANDOM, EVALUATION, labels, vit.teacher, vit.finetuned),
        distill.Outputs(student), work("distill"),
    )  # fmt: skip
    assert weights(student).keys() == weights(vit.teacher).keys()
    assert (student / "model.safetensors").read_bytes() == (vit.teacher / "model.safetensors").read_bytes()


def test_a_teacher_that_is_served_as_it_is_is_measured_once(
    vit: Made, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    student = shutil.copytree(vit.teacher, tmp_path / "student")
    inputs = evaluate.Inputs(
        digits.uri, EVALUATION, seal(tmp_path / "views", "augment"), seal(vit.encoder, "pretrain"),
        seal(made.baseline, "baseline"), seal(vit.finetuned, "finetune"), seal(vit.teacher, "self_train", enabled=True),
        seal(tmp_path / "labels", "pseudo_label", enabled=False), seal(student, "distill", enabled=False),
    )  # fmt: skip
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html", tmp_path / "served")
    evaluate.run(EvaluateConfig(export=False, bootstrap=100), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    titles = {rung["id"]: rung["title"] for rung in found["rungs"]}
    assert titles["student"] == "self-trained teacher"
    assert "self_trained" not in titles
    assert found["rungs"][-1]["seconds"] == 30  # of pretraining, fine-tuning and self-training
    assert "distill" not in found["curves"]
    assert "transformer, width 24, 2 blocks, patches of 4 pixels" in outputs.report.read_text()


def test_a_resnet_and_a_smaller_transformer_learn_from_a_transformer(
    vit: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    pseudo_label.run(
        PseudoLabelConfig(),
        pseudo_label.Inputs(digits.uri, RANDOM, EVALUATION, vit.teacher, vit.finetuned, vit.encoder),
        pseudo_label.Outputs(tmp_path / "labels"), work("pseudo_label"),
    )  # fmt: skip
    inputs = distill.Inputs(digits.uri, RANDOM, EVALUATION, tmp_path / "labels", vit.teacher, vit.finetuned)
    for network in (TINY, VIT.model_copy(update={"depth": 1})):
        folder = tmp_path / type(network).__name__
        distill.run(DistillConfig(**SHORT, network=network), inputs, distill.Outputs(folder), work(folder.name))
        assert described(folder).network == network


def test_a_transformer_is_pretrained_contrastively_and_a_switched_off_pretraining_gives_a_fresh_one(
    digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = pretrain.Inputs(digits.uri, RANDOM, EVALUATION)
    pretrain.run(PretrainConfig(**SHORT, network=VIT), inputs, pretrain.Outputs(tmp_path / "simclr"), work("pretrain"))
    model, _ = load_pretrained(tmp_path / "simclr")
    assert isinstance(model, SimCLRModel)
    assert isinstance(model.encoder, ViT)
    off = PretrainConfig(enabled=False, network=VIT, seed=4)
    pretrain.run(off, inputs, pretrain.Outputs(tmp_path / "fresh"), work("fresh"))
    assert history(tmp_path / "fresh") == []
    torch.manual_seed(4)
    fresh = ViT(**VIT.model_dump(), image_size=SIDE).state_dict()
    assert torch.equal(weights(tmp_path / "fresh")["encoder.network.pos_embed"], fresh["network.pos_embed"])


def test_nothing_is_monitored_by_features_that_learned_the_labels(
    vit: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    off, views = PretrainConfig(enabled=False, network=VIT, seed=4), pretrain.Inputs(digits.uri, RANDOM, EVALUATION)
    pretrain.run(off, views, pretrain.Outputs(tmp_path / "fresh"), work("fresh"))
    heard, told = notes(work("self_train"), tmp_path / "events")
    config = SelfTrainConfig(**SHORT, ratio=2, threshold=0.1)
    inputs = replace(self_inputs(digits, vit), encoder=tmp_path / "fresh")
    self_train.run(config, inputs, self_train.Outputs(tmp_path / "t"), heard)
    assert "no monitor: nothing was pretrained" in told()
    assert all("neighbour_accuracy" not in point for point in history(tmp_path / "t"))


def test_pretraining_goes_on_from_another_method_s_encoder_and_refuses_other_images(
    vit: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    init = InitConfig(path=str(vit.encoder), digest=digest((vit.encoder / "model.json").read_text()))
    simclr = PretrainConfig(**SHORT, network=VIT, init=init)
    inputs = pretrain.Inputs(digits.uri, RANDOM, EVALUATION)
    pretrain.run(simclr, inputs, pretrain.Outputs(tmp_path / "on"), work("pretrain"))
    assert load(tmp_path / "on")[1].kind == "simclr"
    first, on = (weights(folder)["encoder.network.pos_embed"] for folder in (vit.encoder, tmp_path / "on"))
    assert float((first - on).abs().max()) < 0.3  # three steps away, and no fresh draw
    wider = json.loads(EVALUATION) | {"image_size": 32}
    larger = replace(inputs, views=json.dumps(json.loads(RANDOM) | {"image_size": 32}), evaluation=json.dumps(wider))
    with pytest.raises(DataError, match=r"for images of side 16, and augment\.image_size is 32"):
        pretrain.run(simclr, larger, pretrain.Outputs(tmp_path / "no"), work("other"))


def test_a_classifier_is_no_encoder(vit: Made) -> None:
    with pytest.raises(DataError, match="holds a classifier, not a pretrained encoder"):
        load_pretrained(vit.finetuned)
    assert isinstance(load(vit.finetuned)[0], Classifier)
