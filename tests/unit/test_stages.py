from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tenfold.augment.spec import ViewSpec, parse_spec
from tenfold.components.augment import stage as augment
from tenfold.components.distill import stage as distill
from tenfold.components.evaluate import stage as evaluate
from tenfold.components.finetune import stage as finetune
from tenfold.components.pretrain import stage as pretrain
from tenfold.components.promote import stage as promote
from tenfold.components.pseudo_label import stage as pseudo_label
from tenfold.components.self_train import stage as self_train
from tenfold.config import (
    AugmentConfig,
    BaselineConfig,
    DataConfig,
    Description,
    DistillConfig,
    EvaluateConfig,
    EvalViewConfig,
    FinetuneConfig,
    HeadConfig,
    JitterConfig,
    PretrainConfig,
    PropagateConfig,
    PseudoLabelConfig,
    ResNetConfig,
    SelfTrainConfig,
    ViewConfig,
)
from tenfold.data.build import build_dataset
from tenfold.data.decode import decode
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.environment import Environment
from tenfold.errors import DataError
from tenfold.evaluation.inference import apply, evaluation_images, probabilities
from tenfold.fingerprint import digest
from tenfold.models.saved import load, load_classifier, save
from tenfold.progress import Reporter
from tenfold.storage import FileStore
from tenfold.work import Work

TINY = ResNetConfig(depth=10, width=0.125)
HEAD = HeadConfig(layers=2, features=8)
SIDE = 16
RANDOM = ViewSpec(backend="torchvision", image_size=SIDE, view=ViewConfig(flip=0)).encoded()
STRONG = ViewSpec(backend="torchvision", image_size=SIDE, view=ViewConfig(flip=0, jitter=JitterConfig())).encoded()
EVALUATION = ViewSpec(backend="torchvision", image_size=SIDE, evaluation=EvalViewConfig(crop_proportion=1.0)).encoded()
SHORT = {"steps": 3, "epochs": None, "batch_size": 16}


class Made(NamedTuple):
    """What a chain of stages left, a folder each."""

    root: Path
    encoder: Path
    baseline: Path
    finetuned: Path
    teacher: Path
    soft_labels: Path
    student: Path


def new_work(folder: Path, name: str) -> Work:
    environment = replace(
        Environment.read(), home=folder / "home", run_id="run", device="cpu", threads=1, checkpoint_seconds=1e9,
        events=None, owner=None,
    )  # fmt: skip
    return Work(name, name.ljust(64, "0"), FileStore(folder / "store"), environment, Reporter(name))


@pytest.fixture
def work(tmp_path: Path) -> Callable[[str], Work]:
    return lambda name="stage": new_work(tmp_path, name)


def teach(root: Path, made: Made, dataset: Dataset) -> None:
    uri = dataset.uri
    pretrain.run(
        PretrainConfig(**SHORT, network=TINY, head=HEAD),
        pretrain.Inputs(uri, RANDOM, EVALUATION), pretrain.Outputs(made.encoder), new_work(root, "pretrain"),
    )  # fmt: skip
    finetune.run(
        FinetuneConfig(**SHORT), finetune.Inputs(uri, RANDOM, EVALUATION, made.encoder),
        finetune.Outputs(made.finetuned), new_work(root, "finetune"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every stage once, in the pipeline's order, each for three steps."""
    root = tmp_path_factory.mktemp("stages")
    made = Made(root, *(root / name for name in Made._fields[1:]))
    uri = digits.uri
    teach(root, made, digits)
    finetune.run(
        BaselineConfig(**SHORT, network=TINY), finetune.Inputs(uri, RANDOM, EVALUATION, None),
        finetune.Outputs(made.baseline), new_work(root, "baseline"),
    )  # fmt: skip
    self_train.run(
        SelfTrainConfig(**SHORT, ratio=2, threshold=0.1), self_train.Inputs(uri, RANDOM, STRONG, made.finetuned),
        self_train.Outputs(made.teacher), new_work(root, "self_train"),
    )  # fmt: skip
    pseudo_label.run(
        PseudoLabelConfig(views=1), pseudo_label_inputs(made, digits),
        pseudo_label.Outputs(made.soft_labels), new_work(root, "pseudo_label"),
    )  # fmt: skip
    distill.run(
        DistillConfig(**SHORT, network=TINY),
        distill.Inputs(uri, RANDOM, EVALUATION, made.soft_labels, made.teacher, made.finetuned),
        distill.Outputs(made.student), new_work(root, "distill"),
    )  # fmt: skip
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def history(folder: Path) -> list[dict[str, float]]:
    return list(json.loads((folder / "history.json").read_text()))


def pseudo_label_inputs(made: Made, dataset: Dataset, **change: Path) -> pseudo_label.Inputs:
    inputs = pseudo_label.Inputs(
        dataset=dataset.uri, weak=RANDOM, evaluation=EVALUATION, teacher=made.teacher, finetuned=made.finetuned,
        encoder=made.encoder,
    )  # fmt: skip
    return replace(inputs, **change)


def distill_inputs(made: Made, dataset: Dataset, **change: Path) -> distill.Inputs:
    inputs = distill.Inputs(dataset.uri, RANDOM, EVALUATION, made.soft_labels, made.teacher, made.finetuned)
    return replace(inputs, **change)


@pytest.fixture
def stranger(made: Made, tmp_path: Path) -> Path:
    """The fine-tuned classifier with its classes in another order."""
    model, description = load_classifier(made.finetuned)
    folder = tmp_path / "stranger"
    save(folder, model, description.model_copy(update={"classes": description.classes[::-1]}))
    return folder


# --- augment ------------------------------------------------------------------------------------------


def test_augment_gives_each_stage_its_view_and_shows_them(
    digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = AugmentConfig(image_size=SIDE, finetune="strong")
    outputs = augment.Outputs(tmp_path / "views", tmp_path / "preview.html")
    found = augment.run(config, augment.Inputs(digits.uri), outputs, work("augment"))
    assert parse_spec(found.contrastive).view == config.contrastive
    assert found.finetune == found.strong != found.weak == found.distill
    facts = json.loads((outputs.views / "views.json").read_text())
    assert facts["hashes"] == {name: parse_spec(text).hash for name, text in found._asdict().items()}
    assert facts["throughput_views_per_second"] > 0
    with Image.open(outputs.views / "preview.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 50
    assert "data:image/png;base64," in outputs.preview.read_text()


def test_channel_statistics_are_those_of_the_pixels(digits: Dataset) -> None:
    reader = SplitReader(digits, "labelled")
    found = augment.channel_statistics(reader)
    pixels = np.stack([decode(reader.image(number).tobytes()).pixels for number in range(len(reader))])
    np.testing.assert_allclose(found["mean"], pixels.mean((0, 1, 2)) / 255, atol=1e-9)
    np.testing.assert_allclose(found["std"], pixels.std((0, 1, 2)) / 255, atol=1e-9)


# --- the training stages ------------------------------------------------------------------------------


def test_pretraining_saves_encoder_head_and_curves(made: Made) -> None:
    model, description = load(made.encoder)
    assert description.kind == "simclr"
    assert (description.network, description.head, description.image_size) == (TINY, HEAD, SIDE)
    assert len(history(made.encoder)) == 3
    assert "contrast_accuracy" in history(made.encoder)[0]
    assert model.encoder.features == 64


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


def test_pretraining_can_watch_its_features_and_take_an_encoder_as_it_is(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = pretrain.Inputs(digits.uri, RANDOM, EVALUATION)
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


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_student_can_learn_from_the_labelled_images_alone(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], alpha: float
) -> None:
    config = DistillConfig(**SHORT, network=TINY, images="labelled", alpha=alpha)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = distill.Distillation.loss

        def loss(self: Any, batches: Any) -> Any:
            seen.extend(batches["unlabelled"].numbers.tolist())
            assert len(self.soft) == 20
            return whole(self, batches)

        patch.setattr(distill.Distillation, "loss", loss)
        distill.run(config, distill_inputs(made, digits), distill.Outputs(tmp_path / "s"), work("distill"))
    assert max(seen) < 20


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


def described(folder: Path) -> Description:
    """Return the description without the digest of the weights."""
    return load_classifier(folder)[1].model_copy(update={"weights": None})


def test_self_training_keeps_the_teacher_s_description_and_changes_its_weights(made: Made) -> None:
    assert described(made.teacher) == described(made.finetuned)
    assert not torch.equal(weights(made.teacher)["linear.weight"], weights(made.finetuned)["linear.weight"])
    assert history(made.teacher)[-1]["confident_share"] > 0


def test_self_training_that_is_switched_off_passes_the_teacher_on(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = self_train.Inputs(digits.uri, RANDOM, STRONG, made.finetuned)
    self_train.run(SelfTrainConfig(enabled=False), inputs, self_train.Outputs(tmp_path / "t"), work("self_train"))
    for name in ("model.safetensors", "model.json", "history.json"):
        assert (tmp_path / "t" / name).read_bytes() == (made.finetuned / name).read_bytes()


def test_self_training_without_a_confident_label_warns_and_stays_finite(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    events = tmp_path / "events"
    heard = replace(work("self_train"), reporter=Reporter("self_train", events))
    inputs = self_train.Inputs(digits.uri, RANDOM, STRONG, made.finetuned)
    self_train.run(SelfTrainConfig(**SHORT, threshold=1.0), inputs, self_train.Outputs(tmp_path / "t"), heard)
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert any(event["kind"] == "warning" and "threshold 1.0" in event["text"] for event in told)
    assert all(np.isfinite(point["loss"]) for point in history(tmp_path / "t"))


def test_soft_labels_are_distributions_a_file_a_shard_and_true_where_the_label_is_known(
    made: Made, digits: Dataset
) -> None:
    index = json.loads((made.soft_labels / "index.json").read_text())
    shards = digits.manifest.splits["unlabelled"].shards
    assert index["shards"] == [shard.sha256 for shard in shards]
    assert len(shards) > 1
    parts = [load_file(made.soft_labels / f"{s.sha256}.safetensors")["probabilities"] for s in shards]
    assert [len(part) for part in parts] == [shard.count for shard in shards]
    soft = torch.cat(parts)
    assert torch.allclose(soft.sum(1), torch.ones(len(soft)), atol=1e-5)
    assert torch.equal(distill.read_soft_labels(made.soft_labels, digits), soft)
    unlabelled, labelled = SplitReader(digits, "unlabelled"), SplitReader(digits, "labelled")
    for key, label in zip(labelled.keys, labelled.labels(), strict=True):
        assert soft[unlabelled.keys.index(key), label] == pytest.approx(1)
    assert (made.soft_labels / "confidence.png").stat().st_size > 0


@pytest.fixture(scope="module")
def plain(made: Made, digits: Dataset) -> Path:
    """Soft labels without any extra."""
    folder = made.root / "plain-soft-labels"
    inputs = pseudo_label_inputs(made, digits)
    pseudo_label.run(PseudoLabelConfig(), inputs, pseudo_label.Outputs(folder), new_work(made.root, "plain"))
    return folder


def predictions(folder: Path, dataset: Dataset) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a classifier's predictions for the unlabelled images, as evaluation makes them."""
    model, _ = load_classifier(folder)
    images = evaluation_images(SplitReader(dataset, "unlabelled"), parse_spec(EVALUATION))
    return apply(probabilities(model), images, torch.device("cpu"))


def test_soft_labels_without_extras_are_the_teacher_s_own_predictions(made: Made, plain: Path, digits: Dataset) -> None:
    soft = distill.read_soft_labels(plain, digits).numpy()
    known = set(SplitReader(digits, "labelled").keys)
    unknown = [n for n, key in enumerate(SplitReader(digits, "unlabelled").keys) if key not in known]
    np.testing.assert_allclose(soft[unknown], predictions(made.teacher, digits)[unknown], atol=1e-5)


def test_soft_labels_can_be_propagated_balanced_and_sharpened(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = pseudo_label_inputs(made, digits)
    config = PseudoLabelConfig(propagate=PropagateConfig(neighbours=5), balance=True)
    pseudo_label.run(config, inputs, pseudo_label.Outputs(tmp_path / "soft"), work("pseudo_label"))
    soft = distill.read_soft_labels(tmp_path / "soft", digits)
    np.testing.assert_allclose(soft.mean(0), 0.1, atol=0.01)
    assert not torch.allclose(soft, distill.read_soft_labels(made.soft_labels, digits))


def test_soft_labels_of_both_teachers_are_their_mean(
    made: Made, plain: Path, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = pseudo_label_inputs(made, digits)
    pseudo_label.run(
        PseudoLabelConfig(teachers="both"), inputs, pseudo_label.Outputs(tmp_path / "both"), work("pseudo_label")
    )
    both, one = (distill.read_soft_labels(folder, digits).numpy() for folder in (tmp_path / "both", plain))
    unlabelled = SplitReader(digits, "unlabelled")
    known = set(SplitReader(digits, "labelled").keys)
    unknown = [number for number, key in enumerate(unlabelled.keys) if key not in known][:200]
    other = predictions(made.finetuned, digits)
    np.testing.assert_allclose(both[unknown], (one[unknown] + other[unknown]) / 2, atol=1e-5)
    assert not np.allclose(one[unknown], other[unknown])


# --- distillation -------------------------------------------------------------------------------------


def test_the_student_has_its_own_network_and_the_data_set_s_classes(made: Made, digits: Dataset) -> None:
    _, description = load_classifier(made.student)
    assert description.network == TINY
    assert description.head is None
    assert description.classes == digits.manifest.classes


@pytest.mark.parametrize("targets", ["soft_labels", "live_teacher"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_student_learns_from_soft_labels_or_the_live_teacher_with_and_without_true_labels(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], targets: Any, alpha: float
) -> None:
    config = DistillConfig(**SHORT, network=TINY, targets=targets, alpha=alpha)
    distill.run(config, distill_inputs(made, digits), distill.Outputs(tmp_path / "s"), work("distill"))
    first = history(tmp_path / "s")[0]
    assert (first["supervised_loss"] > 0) == (alpha < 1)
    mixed = alpha * first["distillation_loss"] + (1 - alpha) * first["supervised_loss"]
    assert first["loss"] == pytest.approx(mixed, rel=1e-5)


def test_a_student_can_start_from_the_finetuned_teacher(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = DistillConfig(
        steps=1, epochs=None, batch_size=16, network=TINY, init="finetuned",
        optimizer={"name": "sgd", "learning_rate": 1e-30, "warmup": 0},  # type: ignore[arg-type]
    )  # fmt: skip
    distill.run(config, distill_inputs(made, digits), distill.Outputs(tmp_path / "s"), work("distill"))
    before, after = weights(made.finetuned), weights(tmp_path / "s")
    for name, parameter in load_classifier(made.finetuned)[0].named_parameters():
        assert torch.equal(before[name], after[name]), name
        assert torch.equal(parameter.detach(), after[name])
    assert described(tmp_path / "s") == described(made.finetuned)


def test_soft_labels_of_another_data_set_are_refused(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    config = DataConfig.model_validate({"labels": {"per_class": 3}, "split": {"test_fraction": 0.3}})
    other, _ = build_dataset(open_source("digits"), config, FileStore(tmp_path / "other"))
    with pytest.raises(DataError, match="another data set"):
        distill.run(
            DistillConfig(**SHORT, network=TINY), replace(distill_inputs(made, digits), dataset=other.uri),
            distill.Outputs(tmp_path / "s"), work("distill"),
        )  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_soft_labels_with_other_classes_are_refused(made: Made, digits: Dataset, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.soft_labels, tmp_path / "soft"))
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "classes": index["classes"][::-1]}))
    with pytest.raises(DataError):
        distill.read_soft_labels(folder, digits)


# --- other classes (F15) ------------------------------------------------------------------------------


def test_self_training_refuses_a_teacher_of_other_classes(
    stranger: Path, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    with pytest.raises(DataError, match="classes"):
        self_train.run(
            SelfTrainConfig(**SHORT), self_train.Inputs(digits.uri, RANDOM, STRONG, stranger),
            self_train.Outputs(tmp_path / "t"), work("self_train"),
        )  # fmt: skip


def test_pseudo_labelling_refuses_a_teacher_of_other_classes(
    stranger: Path, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    with pytest.raises(DataError, match="classes"):
        pseudo_label.run(
            PseudoLabelConfig(), pseudo_label_inputs(made, digits, teacher=stranger),
            pseudo_label.Outputs(tmp_path / "p"), work("pseudo_label"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "who"), [({"targets": "live_teacher"}, "teacher"), ({"init": "finetuned"}, "finetuned")]
)
def test_distillation_refuses_other_classes_before_training(
    stranger: Path, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work],
    settings: dict[str, Any], who: str,
) -> None:  # fmt: skip
    config = DistillConfig(**SHORT, network=TINY, **settings)
    with pytest.raises(DataError, match="classes"):
        distill.run(
            config, distill_inputs(made, digits, **{who: stranger}), distill.Outputs(tmp_path / "s"), work("distill")
        )
    assert not (tmp_path / "s").exists()


# --- evaluation ---------------------------------------------------------------------------------------


def seal(folder: Path, stage: str, **config: Any) -> Path:
    """Leave the lineage that the pipeline would."""
    folder.mkdir(exist_ok=True)
    lineage = {"stage": stage, "fingerprint": stage.ljust(64, "0"), "run_id": "run", "mlflow_run_id": "m" * 32,
               "seconds": 10.0, "code": "c" * 64, "config": config}  # fmt: skip
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


def evaluate_inputs(made: Made, dataset: Dataset, *, self_trained: bool) -> evaluate.Inputs:
    return evaluate.Inputs(
        dataset.uri, EVALUATION, seal(made.root / "views", "augment"), seal(made.encoder, "pretrain"),
        seal(made.baseline, "baseline"), seal(made.finetuned, "finetune"),
        seal(made.teacher, "self_train", enabled=self_trained), seal(made.soft_labels, "pseudo_label"),
        seal(made.student, "distill"),
    )  # fmt: skip


@pytest.mark.parametrize("self_trained", [True, False])
def test_evaluation_measures_every_rung_on_the_same_test_images(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], self_trained: bool
) -> None:
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html")
    inputs = evaluate_inputs(made, digits, self_trained=self_trained)
    result = evaluate.run(EvaluateConfig(bootstrap=100), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    rungs = {rung["id"]: rung for rung in found["rungs"]}
    assert list(rungs)[-1] == "student"
    assert ("self_trained" in rungs) is self_trained
    assert rungs.keys() >= {"pixels_logistic", "pixels_spreading", "encoder_logistic", "baseline", "finetuned"}
    assert rungs["pixels_logistic"]["scores"]["top1"]["value"] > 0.5, "digits are easy even on pixels"
    assert rungs["student"]["scores"]["top1"]["value"] == result.student.top1.value
    assert rungs["student"]["seconds"] == (50 if self_trained else 40)
    predictions = json.loads((outputs.evaluation / "predictions.json").read_text())
    truth = SplitReader(digits, "test").labels().tolist()
    assert predictions["truth"] == truth
    assert promote.accuracy(predictions) == pytest.approx(result.student.top1.value)
    assert found["test_images"] == len(truth)
    assert outputs.report.read_text().startswith("<!doctype html>")


def test_evaluation_works_where_every_training_image_is_labelled(
    made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_without_labels", lambda readers: [])
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html")
    inputs = evaluate_inputs(made, digits, self_trained=True)
    evaluate.run(EvaluateConfig(bootstrap=100), inputs, outputs, work("evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    assert "pixels_spreading" in {rung["id"] for rung in found["rungs"]}


def test_evaluation_refuses_a_classifier_of_other_classes(
    stranger: Path, made: Made, digits: Dataset, tmp_path: Path, work: Callable[[str], Work]
) -> None:
    inputs = replace(evaluate_inputs(made, digits, self_trained=True), finetuned=seal(stranger, "finetune"))
    outputs = evaluate.Outputs(tmp_path / "evaluation", tmp_path / "report.html")
    with pytest.raises(DataError, match="classes"):
        evaluate.run(EvaluateConfig(bootstrap=100), inputs, outputs, work("evaluate"))
    assert not outputs.report.exists()


def test_two_test_splits_have_one_name_only_if_images_classes_and_view_are_equal(digits: Dataset) -> None:
    spec = parse_spec(EVALUATION)
    name = evaluate.test_split_name(digits, spec)
    assert name == evaluate.test_split_name(digits, spec)
    cropped = spec.model_copy(update={"evaluation": EvalViewConfig(crop_proportion=0.5)})
    assert evaluate.test_split_name(digits, cropped) != name
    renamed = digits.manifest.model_copy(update={"classes": digits.manifest.classes[::-1]})
    assert evaluate.test_split_name(replace(digits, manifest=renamed), spec) != name


def test_the_accuracy_of_no_predictions_is_not_a_number() -> None:
    assert np.isnan(promote.accuracy({"truth": [], "predicted": []}))
