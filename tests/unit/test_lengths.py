"""How long a training is: nothing that trains nothing."""

from __future__ import annotations

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
