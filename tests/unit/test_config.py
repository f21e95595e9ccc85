from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from tenfold.config import (
    SECTIONS,
    STAGES,
    DistillConfig,
    MemoryConfig,
    ResNetConfig,
    RunConfig,
    SelfTrainConfig,
    ViTConfig,
    about_preset,
    compose,
    load_config,
    load_preset,
    preset_names,
)
from tenfold.environment import Environment
from tenfold.errors import ConfigError, did_you_mean, redact
from tenfold.optim.build import peak_rate


def differing(one: RunConfig, other: RunConfig) -> set[str]:
    before, after = one.stage_strings(), other.stage_strings()
    return {stage for stage in STAGES if before[stage] != after[stage]}


# --- faults -------------------------------------------------------------------------------------------


def test_every_fault_is_named_at_once_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(text="distill: {temprature: 0.1, alpha: 2}\ndata: {shard_images: 0}\naugment: {image_size: big}")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the configuration has 4 faults:"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {
        "distill.temprature",
        "distill.alpha",
        "data.shard_images",
        "augment.image_size",
    }
    assert "(given: 2)" in str(caught.value)


def test_a_mistyped_key_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"distill\.temprature: there is no such key; did you mean 'temperature'\?"):
        load_config(text="distill: {temprature: 0.1}")


def test_a_mistyped_key_deep_inside_an_optional_section_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"augment\.strong\.jitter\.brigthness.*did you mean 'brightness'\?"):
        load_config(text="augment: {strong: {jitter: {brigthness: 0.1}}}")


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"promote\.qqq: there is no such key; known here: model, min_gain"):
        load_config(text="promote: {qqq: 1}")


def test_a_mistyped_section_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"pretrian: there is no such key; did you mean 'pretrain'\?"):
        load_config(text="pretrian: {steps: 1}")


def test_an_unknown_preset_gets_a_suggestion_and_the_list() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'digit'; did you mean 'digits'\?.*`tenfold presets` lists all"):
        load_config("digit")


@pytest.mark.parametrize("value", [".nan", ".inf", "-1", "0"])
def test_a_temperature_that_is_no_positive_finite_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.temperature"):
        load_config(assignments=[f"distill.temperature={value}"])


def test_broken_yaml_and_yaml_that_is_no_mapping_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overrides is no valid YAML"):
        load_config(text="a: [1")
    with pytest.raises(ConfigError, match="overrides must be a mapping of sections, not a list"):
        load_config(text="[1, 2]")
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_config(file=tmp_path / "absent.yaml")


def test_keys_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"faults?:"):
        load_config(text="1: 2")


def test_fine_tuning_cannot_keep_more_head_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"from_head_layer is 3, but pretrain\.head\.layers is 2"):
        load_config(assignments=["finetune.from_head_layer=3", "pretrain.head.layers=2"])


def test_a_student_that_starts_from_the_teacher_has_its_network() -> None:
    with pytest.raises(ConfigError, match=r"distill\.network must equal pretrain\.network"):
        load_config(assignments=["distill.init=finetuned", "pretrain.network.depth=50"])
    load_config(assignments=["distill.init=finetuned", "pretrain.network.depth=50", "distill.network.depth=50"])


# --- layers -------------------------------------------------------------------------------------------


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: file\nseed: 1\npretrain: {temperature: 0.1}\n")
    config = load_config("digits", file, "name: text\nseed: 2", ["name=set"])
    assert (config.name, config.seed, config.pretrain.temperature) == ("set", 2, 0.1)
    assert config.pretrain.batch_size == 128  # of the preset


def test_a_file_may_name_the_preset_that_it_builds_on(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: digits\nseed: 5\n")
    assert compose(None, file, "", []) == ("digits", {"seed": 5})
    config = load_config(file=file)
    assert (config.augment.image_size, config.seed) == (16, 5)


def test_a_later_length_in_epochs_ends_an_earlier_one_in_steps() -> None:
    assert load_config("digits").pretrain.steps is not None
    pretrain = load_config("digits", assignments=["pretrain.epochs=3"]).pretrain
    assert (pretrain.steps, pretrain.epochs) == (None, 3)


def test_a_later_length_in_steps_ends_an_earlier_one_in_epochs(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("distill: {epochs: 7}")
    distill = load_config(file=file, text="distill: {steps: 9}").distill
    assert (distill.steps, distill.epochs) == (9, None)


def test_a_length_replaces_the_default_in_the_other_unit() -> None:
    assert load_config(text="pretrain: {steps: 9}").pretrain.epochs is None
    assert load_config(text="finetune: {epochs: 2}").finetune.steps is None


def test_both_lengths_in_one_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="give one of steps and epochs"):
        load_config(text="pretrain: {steps: 9, epochs: 2}")


@pytest.mark.parametrize(
    ("earlier", "later", "kept"),
    [
        ("per_class: 3", "fraction: 0.5", {"per_class": None, "fraction": 0.5, "file": None}),
        ("fraction: 0.5", "file: labels.csv", {"per_class": None, "fraction": None, "file": "labels.csv"}),
        ("file: labels.csv", "per_class: 3", {"per_class": 3, "fraction": None, "file": None}),
    ],
)
def test_a_later_way_to_choose_labels_ends_an_earlier_one(
    tmp_path: Path, earlier: str, later: str, kept: dict[str, object]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{labels: {{seed: 4, {earlier}}}}}")
    labels = load_config(file=file, text=f"data: {{labels: {{{later}}}}}").data.labels
    assert labels.model_dump() == {**kept, "seed": 4}


def test_two_ways_to_choose_labels_in_one_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="give one of per_class, fraction and file"):
        load_config(text="data: {labels: {per_class: 3, fraction: 0.5}}")


def test_naming_a_way_as_null_leaves_the_others_alone() -> None:
    labels = load_config("digits", text="data: {labels: {fraction: null}}").data.labels
    assert labels.per_class == 2


# --- --set --------------------------------------------------------------------------------------------


def test_set_reads_values_as_yaml() -> None:
    config = load_config(assignments=[
        "distill.temperature=1e-1", "self_train.enabled=false", "augment.contrastive.crop.area=[0.3, 1]",
        "augment.strong.jitter=null", "promote.model=a=b", "pretrain.network={depth: 50, width: 2}",
    ])  # fmt: skip
    assert config.distill.temperature == 0.1
    assert config.self_train.enabled is False
    assert config.augment.contrastive.crop is not None
    assert config.augment.contrastive.crop.area == (0.3, 1.0)
    assert config.augment.contrastive.crop.aspect == (3 / 4, 4 / 3)
    assert config.augment.strong.jitter is None
    assert config.promote.model == "a=b"
    assert (config.pretrain.network.depth, config.pretrain.network.width) == (50, 2.0)


def test_set_takes_several_keys_of_one_section() -> None:
    config = load_config(assignments=["distill.alpha=0.5", "distill.temperature=2", "distill.optimizer.momentum=0.5"])
    assert (config.distill.alpha, config.distill.temperature, config.distill.optimizer.momentum) == (0.5, 2.0, 0.5)


def test_set_names_every_assignment_that_it_cannot_read() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(assignments=["distill.temperature", "seed=1", "distill..alpha=1", "=3"])
    assert [line.split("'")[1] for line in str(caught.value).splitlines()] == [
        "distill.temperature",
        "distill..alpha=1",
        "=3",
    ]


# --- what a configuration is ----------------------------------------------------------------------------


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.distill.temperature = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.distill = DistillConfig()  # type: ignore[misc]


def test_a_changed_distillation_temperature_changes_the_string_of_distill_alone() -> None:
    assert differing(load_config(), load_config(assignments=["distill.temperature=0.1"])) == {"distill"}


def test_the_name_of_a_run_changes_no_stage() -> None:
    assert differing(load_config(), load_config(assignments=["name=other"])) == set()


def test_the_students_network_changes_the_baseline_too() -> None:
    changed = load_config(assignments=["distill.network.depth=10"])
    assert differing(load_config(), changed) == {"distill", "baseline"}


def test_equal_values_written_differently_give_equal_strings() -> None:
    one = load_config(text="distill: {temperature: 1, optimizer: {learning_rate: 0.1, momentum: 1}}")
    other = load_config(text="distill: {optimizer: {momentum: 1.0, learning_rate: 1e-1}, temperature: 1.0}")
    assert differing(one, other) == set()


def test_a_stage_string_is_canonical_json_and_reads_back_as_its_section() -> None:
    config = load_config("digits")
    for stage, text in config.stage_strings().items():
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        section = getattr(config.resolved(), SECTIONS[stage])
        assert type(section).model_validate_json(text) == section


def test_the_seed_of_the_run_fills_in_where_a_stage_has_none() -> None:
    config = load_config(assignments=["seed=7", "distill.seed=3"]).resolved()
    seeds = {
        name: getattr(config, name).seed for name in ("pretrain", "finetune", "self_train", "baseline", "evaluate")
    }
    assert set(seeds.values()) == {7}
    assert config.pseudo_label.seed == 7
    assert config.distill.seed == 3


def test_another_seed_changes_the_training_stages_and_not_the_data() -> None:
    changed = differing(load_config(), load_config(assignments=["seed=1"]))
    assert {"pretrain", "finetune", "distill", "baseline"} <= changed
    assert not changed & {"shard", "augment", "promote"}


def test_the_baseline_takes_the_network_of_a_student_from_scratch() -> None:
    baseline = load_config(assignments=["distill.network.depth=34", "pretrain.network.depth=50"]).resolved().baseline
    assert baseline.network is not None
    assert (baseline.network.depth, baseline.head, baseline.from_head_layer) == (34, None, 0)


def test_the_baseline_takes_network_and_head_of_a_student_that_starts_from_the_teacher() -> None:
    config = load_config("digits").resolved()
    assert config.distill.init == "finetuned"
    assert config.baseline.network == config.pretrain.network
    assert config.baseline.head == config.pretrain.head
    assert config.baseline.from_head_layer == config.finetune.from_head_layer == 1


def test_resolving_twice_changes_nothing() -> None:
    config = load_config("digits").resolved()
    assert config.resolved() == config


@pytest.mark.parametrize(
    ("given", "images", "steps"),
    [({"steps": 5}, 1000, 5), ({"epochs": 3}, 1000, 31), ({"epochs": 0.01}, 100, 1)],
)
def test_a_length_is_steps_or_epochs_of_the_data_and_never_nothing(
    given: dict[str, float], images: int, steps: int
) -> None:
    section = DistillConfig.model_validate({"epochs": None, **given, "batch_size": 100})
    assert section.length(images).steps == steps


IMAGENET = 1_281_167


@pytest.mark.parametrize(
    ("name", "stage", "images", "steps"),
    [("simclrv2-r50-1x-1pct", "pretrain", IMAGENET, 250_228), ("simclrv2-r50-1x-1pct", "finetune", 12_811, 751),
     ("simclrv2-r152-3x-sk-10pct", "finetune", 128_116, 3_754),
     ("simclrv2-r50-2x-sk-100pct", "finetune", IMAGENET, 37_535)],
)  # fmt: skip
def test_the_papers_presets_have_the_steps_of_the_official_checkpoints(
    name: str, stage: str, images: int, steps: int
) -> None:
    assert getattr(load_config(name), stage).length(images).steps == steps


def test_the_papers_presets_have_the_papers_values() -> None:
    narrow, wide = load_config("simclrv2-r50-1x-10pct"), load_config("simclrv2-r152-3x-sk-1pct")
    assert wide.pretrain.network == ResNetConfig(depth=152, width=3, selective_kernels=True, small_images=False)
    assert peak_rate(narrow.pretrain.optimizer, 4096) == pytest.approx(6.4)
    assert narrow.pretrain.length(IMAGENET).warmup == 12_511
    assert peak_rate(narrow.finetune.optimizer, 1024) == pytest.approx(0.16)
    assert peak_rate(wide.finetune.optimizer, 1024) == pytest.approx(0.064)
    assert (narrow.pretrain.temperature, narrow.pretrain.memory) == (0.1, MemoryConfig(size=65_536, momentum=0.999))
    linear = load_config("simclrv2-r50-2x-linear").finetune
    assert (linear.frozen, linear.from_head_layer, linear.optimizer.name) == (True, 0, "sgd")
    assert peak_rate(linear.optimizer, linear.batch_size) == pytest.approx(1.6)
    first = load_config("simclr-r50-4x-linear").pretrain
    assert first.length(IMAGENET).warmup == 3_127
    assert (first.head.layers, first.memory, peak_rate(first.optimizer, 4096)) == (2, None, pytest.approx(4.8))


@pytest.mark.parametrize(
    ("name", "tuned", "trained"),
    [  # peak rate, layer decay, epochs, batch and view of fine-tuning; the same of self-training, threshold, drop path
        ("base-1pct", (1e-4, 0.65, 100, 512, "labelled"), (5e-4, 0.75, 100, 128, 0.6, 0.0)),
        ("base-10pct", (5e-4, 0.65, 100, 512, "strong"), (5e-4, 0.75, 100, 128, 0.5, 0.1)),
        ("base-10pct-scratch", (4e-4, 1.0, 500, 1024, "strong"), (5e-4, 0.85, 100, 128, 0.5, 0.1)),
        ("large-1pct", (2e-3, 0.75, 50, 512, "labelled"), (5e-4, 0.75, 100, 128, 0.6, 0.1)),
        ("large-10pct", (2e-3, 0.75, 50, 512, "strong"), (1e-3, 0.75, 100, 128, 0.6, 0.2)),
        ("huge-1pct", (5e-3, 0.75, 50, 128, "labelled"), (1.25e-3, 0.75, 50, 64, 0.7, 0.05)),
        ("huge-10pct", (5e-4, 0.75, 50, 128, "strong"), (1.25e-3, 0.75, 50, 128, 0.6, 0.1)),
    ],
)
def test_semi_vit_s_presets_have_the_official_values(
    name: str, tuned: tuple[object, ...], trained: tuple[object, ...]
) -> None:
    config = load_config(f"semi-vit-{name}")
    first, second = config.finetune, config.self_train
    rates = [peak_rate(stage.optimizer, stage.batch_size) for stage in (first, second)]
    view = config.augment.finetune
    assert (pytest.approx(rates[0]), first.optimizer.layer_decay, first.epochs, first.batch_size, view) == tuned
    assert (
        pytest.approx(rates[1]), second.optimizer.layer_decay, second.epochs, second.batch_size, second.threshold,
        second.drop_path,
    ) == trained  # fmt: skip
    few = name.endswith("-1pct")
    assert (first.mixup, first.cutmix) == ((0, 0) if few else (0.8, 1.0))
    assert (second.unlabelled_weight, second.ratio, second.average, second.align) == (5, 5, 0.9999, "none")
    assert second.pseudo_mixup
    network = config.pretrain.network
    assert isinstance(network, ViTConfig)
    assert (network.patch, network.pool) == ((14, "token") if name.startswith("huge") else (16, "average"))
    assert config.pretrain.enabled != name.endswith("scratch")
    whole = config.resolved()
    assert not whole.distill.enabled
    assert not whole.pseudo_label.enabled
    assert whole.baseline.network == network
    assert whole.augment.pretrain == "masked"


def test_a_network_of_another_kind_takes_nothing_from_the_one_before() -> None:
    vit = load_config("digits", assignments=[
        "distill.network.vit=tiny", "distill.network.patch=8", "distill.init=scratch",
    ]).distill.network  # fmt: skip
    assert vit == ViTConfig(vit="tiny", patch=8)
    deeper = load_config("semi-vit-base-10pct", assignments=["pretrain.network.depth=6"]).pretrain.network
    assert deeper == ViTConfig(vit="base", depth=6)
    with pytest.raises(ConfigError, match=r"pretrain\.network\.depth: .*48 \(given: 50\)"):  # a ResNet's
        load_config("semi-vit-base-10pct", assignments=["pretrain.network.depth=50"])
    back = load_config(
        "semi-vit-base-10pct",
        assignments=["pretrain.network={vit: null, depth: 18}", "pretrain.method=simclr", "finetune.drop_path=0",
                     "self_train.drop_path=0"],
    ).pretrain.network  # fmt: skip
    assert back == ResNetConfig(depth=18)


TEACHER, STUDENT, FRESH = "pretrain.network", "distill.network", "distill.init=scratch"


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        ([f"{TEACHER}.vit=smal"], f"{TEACHER}.vit: input should be 'tiny', 'small', 'base'"),
        ([f"{TEACHER}.widht=2"], f"{TEACHER}.widht: there is no such key; did you mean 'width'?"),
        ([f"{STUDENT}.vit=tiny", f"{STUDENT}.pach=2"], f"{STUDENT}.pach: there is no such key; did you mean 'patch'?"),
        (["pretrain.method=mae"], "it needs a transformer, for example network.vit=small"),
        ([f"{TEACHER}.vit=tiny", f"{TEACHER}.patch=5", FRESH],
         f"augment.image_size is 16, which is no whole number of patches of 5 pixels ({TEACHER}.patch)"),
        ([f"{STUDENT}.vit=tiny", FRESH, "augment.image_size=24"], f"({STUDENT}.patch)"),
        (["finetune.drop_path=0.1"], "finetune.drop_path is for transformers, and pretrain.network is a ResNet"),
        ([f"{TEACHER}.vit=tiny", f"{TEACHER}.patch=4", FRESH, "pretrain.method=mae"],
         "trains no projection head: set finetune.from_head_layer=0"),
        ([f"{TEACHER}.vit=tiny", FRESH, "pretrain.method=mae", "finetune.from_head_layer=0"],
         "of 1 patches leaves none to see"),
        (["pretrain.enabled=false", "pretrain.init.path=x"], "enabled is false, so there can be no init"),
        (["augment.pretrain=masked"], "augment.pretrain goes with pretrain.method"),
    ],
)  # fmt: skip
def test_what_methods_and_networks_do_not_share_is_refused_with_the_cure(assignments: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_config("digits", assignments=assignments)


def test_the_teacher_s_average_is_taken_from_the_length_of_the_run_unless_it_is_given() -> None:
    config = SelfTrainConfig()
    assert config.decay(1000) ** 70 == pytest.approx(0.5)
    assert SelfTrainConfig(average=0.9999).decay(1000) == 0.9999
    assert 0 < config.decay(1) < 1


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_tells_its_source_cost_and_accuracy(name: str) -> None:
    about = about_preset(name)
    assert all(about.model_dump().values())
    if name.startswith(("simclr", "semi-vit")):
        assert name in about.command


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert load_preset(name)
    config = load_config(name)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


# --- errors --------------------------------------------------------------------------------------------


def test_a_suggestion_is_made_for_a_close_word_only() -> None:
    assert did_you_mean("temprature", ["alpha", "temperature"]) == "; did you mean 'temperature'?"
    assert did_you_mean("zzz", ["alpha", "temperature"]) == ""


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:pass@host/db failed", "postgresql://***@host/db failed"),
        ("http://me:p@ss@host:5000/x", "http://***@host:5000/x"),
        ("https://host/a@b and mail me@host", "https://host/a@b and mail me@host"),
        ("Authorization: Bearer abc.def-1 was refused", "Authorization: *** was refused"),
        ("token eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl expired", "token *** expired"),
    ],
)
def test_users_passwords_and_tokens_leave_addresses_and_texts(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_secrets_of_the_environment_leave_texts(monkeypatch: pytest.MonkeyPatch, home: Callable[..., Path]) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-1234")
    shown = redact("key wJalrXUtnFEMI/K7MDENG, bearer token-1234")
    assert shown == "key ***, bearer ***"


@pytest.mark.parametrize(
    ("assignment", "where"),
    [
        ("pretrain.seed=-1", "pretrain.seed"),
        ("augment.weak.crop.area=[1.0,0.1]", "augment.weak.crop.area"),
        ("augment.weak.crop.aspect=[-1,0]", "augment.weak.crop.aspect"),
    ],
)
def test_values_that_training_could_not_use_are_refused_with_their_place(assignment: str, where: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(where)):
        load_config(assignments=[assignment])


def test_a_name_may_look_like_a_number() -> None:
    assert load_config(assignments=["name=2024"]).name == "2024"


def test_a_setting_of_the_environment_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_THREADS", "two")
    with pytest.raises(ConfigError, match="TENFOLD_THREADS is 'two'"):
        Environment.read()
