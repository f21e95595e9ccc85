"""Settings that were asked for and decide nothing are told, and no others."""

from __future__ import annotations

import pytest

from tenfold.components.preflight.stage import FORM, Request
from tenfold.config import idle, leaves, load_config

OFF = "nothing is distilled; distill.enabled=true makes a student"


CASES: list[tuple[str, list[str], list[str]]] = [
    ("digits", ["pretrain.temperature=0.2", "distill.alpha=0.5", "pretrain.optimizer.weight_decay=0.5"], []),
    ("digits", ["pretrain.mae.mask=0.5"], ["pretrain.mae.mask has no effect: pretrain.method is simclr"]),
    ("digits", ["pretrain.optimizer.name=adamw", "pretrain.optimizer.momentum=0.5"],
     ["pretrain.optimizer.momentum has no effect: pretrain.optimizer.name is adamw"]),
    ("digits", ["distill.optimizer.name=lars", "distill.optimizer.betas=[0.9, 0.95]"],
     ["distill.optimizer.betas has no effect: distill.optimizer.name is lars"]),
    ("digits", ["finetune.optimizer.warmup_epochs=1", "finetune.optimizer.warmup=0.2"],
     ["finetune.optimizer.warmup has no effect: finetune.optimizer.warmup_epochs is set"]),
    ("digits", ["distill.enabled=false", "distill.alpha=0.5", "pseudo_label.views=3"],
     [f"distill.alpha, pseudo_label.views have no effect: {OFF}"]),
    ("digits", ["self_train.enabled=false", "self_train.threshold=0.9"],
     ["self_train.threshold has no effect: self_train.enabled is false"]),
    ("digits", ["self_train.enabled=true", "self_train.pseudo_mixup=false", "self_train.pseudo_cutmix=0.1"],
     ["self_train.pseudo_cutmix has no effect: self_train.pseudo_mixup is false"]),
    ("digits", ["pretrain.enabled=false", "pretrain.epochs=3", "pretrain.head.layers=2",
                "self_train.foreign=0"], ["pretrain.epochs has no effect: pretrain.enabled is false"]),
    ("digits", ["evaluate.selection=0", "evaluate.tolerance=0.1"],
     ["evaluate.tolerance has no effect: evaluate.selection is 0"]),
    ("digits", ["evaluate.ship=student", "evaluate.tolerance=0.1"],
     ["evaluate.tolerance has no effect: evaluate.ship is student"]),
    ("cifar10-vit-cpu", ["finetune.batch_norm=local"],
     ["finetune.batch_norm has no effect: a transformer without a projection head has no batch norm"]),
    ("cifar10-vit-cpu", ["pretrain.batch_norm=local"], []),
    ("digits", ["pretrain.batch_norm=local"], []),
    ("digits", ["data.labels={per_class: null, file: labels.csv, seed: 3}"],
     ["data.labels.seed has no effect: data.labels.file says which images are labelled"]),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "sets", "told"), CASES)
def test_what_decides_nothing_is_told_with_the_reason(preset: str, sets: list[str], told: list[str]) -> None:
    config = load_config(preset, assignments=sets)
    given = [each.partition("=")[0] for each in sets]
    if "data.labels" in given:
        given = ["data.labels.per_class", "data.labels.file", "data.labels.seed"]
    assert idle(config, given) == told


@pytest.mark.parametrize(
    ("preset", "off", "setting"),
    [
        ("digits", ["distill.enabled=false"], "distill.alpha=0.37"),
        ("digits", ["distill.enabled=false"], "pseudo_label.views=7"),
        ("digits", ["self_train.enabled=false"], "self_train.threshold=0.37"),
        ("digits", ["self_train.enabled=true", "self_train.pseudo_mixup=false"], "self_train.pseudo_cutmix=0.37"),
        ("digits", ["pretrain.enabled=false", "self_train.foreign=0"], "pretrain.epochs=37"),
        ("digits", ["pretrain.enabled=false", "self_train.foreign=0"], "pretrain.temperature=0.37"),
        ("digits", ["pretrain.init={path: /somewhere, skip: true}"], "pretrain.optimizer.learning_rate=0.37"),
        ("digits", [], "pretrain.mae.mask=0.37"),
        ("digits", ["evaluate.selection=0"], "evaluate.tolerance=0.37"),
        ("semi-vit-base-1pct", [], "pretrain.temperature=0.37"),
        ("semi-vit-base-1pct", [], "pretrain.batch_norm=local"),
        ("semi-vit-base-1pct", [], "finetune.optimizer.momentum=0.37"),
    ],
)  # fmt: skip
def test_what_is_told_to_be_idle_changes_no_stage(preset: str, off: list[str], setting: str) -> None:
    with_it, without = load_config(preset, assignments=[*off, setting]), load_config(preset, assignments=off)
    assert idle(with_it, [setting.partition("=")[0]])
    assert with_it.model_dump() != without.model_dump()
    assert with_it.stage_strings() == without.stage_strings()


@pytest.mark.parametrize(("preset", "sets", "told"), [case for case in CASES if not case[2]])
def test_what_is_not_told_changes_its_stage(preset: str, sets: list[str], told: list[str]) -> None:
    for setting in sets:
        assert load_config(preset, assignments=[setting]).stage_strings() != load_config(preset).stage_strings()


def test_of_the_form_and_the_overrides_what_was_given_is_looked_at_and_nothing_of_the_preset() -> None:
    form = dict.fromkeys(FORM.values(), "") | {"pretrain.temperature": "0.2", "distill.alpha": " "}
    request = Request("semi-vit-base-1pct", "distill: {temperature: 0.5}", form)
    config = request.load()
    assert not config.distils
    assert request.idle(config) == [
        f"distill.temperature has no effect: {OFF}", "pretrain.temperature has no effect: pretrain.method is mae",
    ]  # fmt: skip
    assert Request("semi-vit-base-1pct", "", {}).idle(config) == []


def test_leaves_are_the_paths_of_values() -> None:
    assert list(leaves({"a": {"b": 1, "c": {}}, "d": None})) == ["a.b", "a.c", "d"]
