"""The form of both pipelines: each field reaches its own place in the configuration, as it was typed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl
from PIL import Image

from tenfold.components.preflight.component import preflight, retrain_preflight
from tenfold.components.preflight.stage import FORM, RETRAIN_FORM, TEXTS, Request
from tenfold.config import load_config
from tenfold.errors import ConfigError
from tenfold.pipelines.compile import compile_pipeline

#: What is typed into each field, and what the configuration then holds; no two are alike, and no preset has them.
TYPED: dict[str, tuple[str, Any]] = {
    "name": ("run #7", "run #7"), "source": ("s3://bucket/a #1", "s3://bucket/a #1"),
    "annotations": ("yes", "yes"), "labels_per_class": ("3", 3), "labels_fraction": ("0.07", 0.07),
    "labels_file": ("s3://bucket/labels: new.csv", "s3://bucket/labels: new.csv"), "model_name": ("on", "on"),
    "min_gain": ("0.031", 0.031), "test_fraction": ("0.41", 0.41), "seed": ("97", 97), "image_size": ("40", 40),
    "method": ("semi_vit", "semi_vit"),
    "teacher_depth": ("34", 34), "teacher_width": ("1.5", 1.5), "pretrain_epochs": ("23", 23),
    "temperature": ("0.13", 0.13), "finetune_steps": ("29", 29), "self_train_on": ("false", False),
    "threshold": ("0.83", 0.83), "student_depth": ("10", 10), "student_width": ("0.375", 0.375),
    "distill_epochs": ("19", 19), "distill_temperature": ("1.7", 1.7), "alpha": ("0.63", 0.63),
    "min_new_images": ("37", 37), "warm_start": ("off", False), "pretrain_share": ("0.47", 0.47),
}  # fmt: skip
#: Where the configuration has it; written here once more, so that a slip in the table of the code is seen.
PLACES = {
    "name": "name", "source": "data.source", "annotations": "data.annotations",
    "labels_per_class": "data.labels.per_class", "labels_fraction": "data.labels.fraction",
    "labels_file": "data.labels.file", "model_name": "promote.model", "min_gain": "promote.min_gain",
    "test_fraction": "data.split.test_fraction", "seed": "seed", "image_size": "augment.image_size",
    "method": "method",
    "teacher_depth": "pretrain.network.depth", "teacher_width": "pretrain.network.width",
    "pretrain_epochs": "pretrain.epochs", "temperature": "pretrain.temperature", "finetune_steps": "finetune.steps",
    "self_train_on": "self_train.enabled", "threshold": "self_train.threshold",
    "student_depth": "distill.network.depth", "student_width": "distill.network.width",
    "distill_epochs": "distill.epochs", "distill_temperature": "distill.temperature", "alpha": "distill.alpha",
    "min_new_images": "retrain.min_new_images", "warm_start": "retrain.warm_start",
    "pretrain_share": "retrain.pretrain_share",
}  # fmt: skip
LABELS = ("labels_per_class", "labels_fraction", "labels_file")
FORMS = pytest.mark.parametrize(
    ("form", "function", "pipeline", "task"),
    [
        (FORM, preflight, "semi-supervised", "preflight"),
        (RETRAIN_FORM, retrain_preflight, "retrain", "retrain-preflight"),
    ],
)


def at(values: Mapping[str, Any], place: str) -> Any:
    found: Any = values
    for part in place.split("."):
        found = found[part]
    return found


def filled(form: Mapping[str, str], *left_empty: str, **other: str) -> dict[str, str]:
    """Return the arguments of a form whose fields are all filled in, but for some."""
    overrides = "distill: {init: scratch}"  # else the student's network is the teacher's
    return {"preset": "digits", "overrides": overrides} | {
        field: "" if field in left_empty else other.get(field, TYPED[field][0]) for field in form
    }


@pytest.mark.parametrize("form", [FORM, RETRAIN_FORM])
@pytest.mark.parametrize("labels", LABELS)
def test_each_field_is_read_back_at_its_own_place(form: dict[str, str], labels: str) -> None:
    others = set(LABELS) - {labels}
    held = Request.of(form, filled(form, *others)).resolve().model_dump()
    fields = [field for field in form if field not in others]
    assert {field: at(held, PLACES[field]) for field in fields} == {field: TYPED[field][1] for field in fields}


@FORMS
def test_the_component_hands_each_argument_on_to_its_place(
    form: dict[str, str], function: Callable[..., Any], pipeline: str, task: str, tmp_path: Path
) -> None:
    source = tmp_path / "images #1"
    for kind in ("cat", "dog"):
        (source / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(source / kind / "one.png")
    (source / "yes").write_text("path,label\ncat/one.png,cat\ndog/one.png,dog\n")
    resolved = tmp_path / "resolved.json"
    left = ("labels_fraction", "labels_file")
    function(**filled(form, *left, source=str(source)), resolved=dsl.Artifact(uri=str(resolved)))
    held = json.loads(resolved.read_text())
    assert at(held, "data.source") == str(source)
    fields = [field for field in form if field not in {*left, "source"}]
    assert {field: at(held, PLACES[field]) for field in fields} == {field: TYPED[field][1] for field in fields}


@FORMS
def test_the_pipeline_has_the_form_s_fields_and_hands_each_to_preflight_under_its_own_name(
    form: dict[str, str], function: Callable[..., Any], pipeline: str, task: str, tmp_path: Path
) -> None:
    compile_pipeline(tmp_path / "pipeline.yaml", pipeline=pipeline)
    spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    fields = {"preset", "overrides", *form}
    assert set(spec["root"]["inputDefinitions"]["parameters"]) == fields
    assert set(inspect.signature(function).parameters) == fields | {"resolved"}
    body = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    handed = body[task]["inputs"]["parameters"]
    assert handed == {field: {"componentInputParameter": f"pipelinechannel--{field}"} for field in fields}
    outer = spec["root"]["dag"]["tasks"]["exit-handler-1"]["inputs"]["parameters"]
    for field in fields:
        assert outer[f"pipelinechannel--{field}"] == {"componentInputParameter": field}


@pytest.mark.parametrize("typed", ["on", "2024-01-01", "[a", "null", "a: b", "'quoted'", "x=y #z", "ä 🙂"])
def test_text_is_taken_as_it_was_typed(typed: str) -> None:
    texts = {"name": typed, "data.source": f"s3://{typed}", "data.labels.file": f"s3://{typed}"}
    held = Request("digits", "", texts).resolve().model_dump()
    assert {place: at(held, place) for place in texts} == texts


def test_fields_of_text_are_those_whose_places_hold_text() -> None:
    assert {place for field, place in PLACES.items() if isinstance(TYPED[field][1], str)} == TEXTS


@pytest.mark.parametrize(
    "given",
    [{"labels_per_class": "5", "labels_fraction": "0.1"}, {"labels_fraction": "0.1", "labels_file": "labels.csv"},
     {"labels_per_class": "5", "labels_file": "labels.csv"}],
)  # fmt: skip
def test_two_ways_to_choose_labels_are_refused_and_none_is_dropped_in_silence(given: dict[str, str]) -> None:
    values = {"preset": "digits", "overrides": "", **dict.fromkeys(FORM, ""), **given}
    with pytest.raises(ConfigError, match="give one of per_class, fraction and file"):
        Request.of(FORM, values).load()
    (last, value) = list(given.items())[-1]
    alone = {**values, **dict.fromkeys(given, ""), last: value, "overrides": "data: {labels: {per_class: 3}}"}
    labels = Request.of(FORM, alone).load().data.labels
    assert labels.per_class is None, "the form ends what the overrides chose"
    assert str(getattr(labels, PLACES[last].rpartition(".")[2])) == value


def test_blanks_around_a_field_are_dropped_and_a_blank_field_is_as_in_the_preset() -> None:
    request = Request("digits", "name: kept", {"name": "  ", "data.source": " s3://bucket/a ", "seed": "\n"})
    config = request.resolve()
    assert (config.name, config.data.source) == ("kept", "s3://bucket/a")
    assert config.seed == Request("digits", "", {}).resolve().seed


def test_a_labels_file_ends_the_preset_s_other_choice_of_labels() -> None:
    labels = Request("digits", "", {"data.labels.file": "s3://bucket/list.csv"}).resolve().data.labels
    assert (labels.file, labels.per_class, labels.fraction) == ("s3://bucket/list.csv", None, None)


def test_the_form_leaves_what_is_empty_to_the_preset_and_wins_over_the_overrides() -> None:
    request = Request("digits", "seed: 3\nname: a", {"name": "b", "distill.temperature": ""})
    config = request.resolve()
    assert (config.name, config.seed) == ("b", 3)
    assert config.distill.temperature == load_config("digits").distill.temperature


def test_the_form_makes_paths_absolute_and_decides_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Request("", "", {"data.source": "images", "data.labels.file": "labels.csv"}).resolve()
    assert config.data.source == str(tmp_path / "images")
    assert config.data.labels.file == str(tmp_path / "labels.csv")
    assert config.augment.backend in {"dali", "torchvision"}
    assert Request("", "", {"data.source": "s3://bucket/x"}).resolve().data.source == "s3://bucket/x"
