"""How long a training is: nothing that trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.config import SelfTrainConfig, load_config
from tenfold.errors import ConfigError

SECTIONS = ("pretrain", "finetune", "self_train", "distill", "baseline")


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("length", ["steps=0", "steps=-5", "epochs=0", "epochs=-5", "epochs=.nan", "epochs=1.0e300"])
def test_a_training_of_no_length_is_refused_in_every_section(section: str, length: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{length.partition('=')[0]}"):
        load_config("digits", assignments=[f"{section}.{length}"])


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("length", ["steps=1", "epochs=0.5"])
def test_a_short_one_is_not(section: str, length: str) -> None:
    config = getattr(load_config("digits", assignments=[f"{section}.{length}"]), section)
    assert config.length(1000, 10).steps >= 1


def test_a_warm_up_in_epochs_or_as_a_share_ends_the_other_one() -> None:
    whole = load_config("semi-vit-base-1pct", assignments=["finetune.optimizer.warmup=0.5", "finetune.steps=100"])
    assert whole.finetune.optimizer.warmup_epochs is None
    assert whole.finetune.length(1000).warmup == 50


def test_the_average_of_a_run_of_a_few_steps_is_half_a_step_old_at_least() -> None:
    assert SelfTrainConfig().decay(2) == 0.5
    assert SelfTrainConfig().decay(1000) == pytest.approx(0.5 ** (1 / 70))


def test_two_lengths_at_once_are_refused_and_a_later_layer_s_ends_an_earlier_one_s(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of steps and epochs"):
        load_config("digits", assignments=["distill.epochs=5", "distill.steps=7"])
    (tmp_path / "run.yaml").write_text("preset: digits\ndistill: {epochs: 5}\n")
    distill = load_config(file=tmp_path / "run.yaml", assignments=["distill.steps=7"]).distill
    assert (distill.steps, distill.epochs) == (7, None)
