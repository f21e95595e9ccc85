"""What `tenfold plan` says of stages before anything ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.config import load_config
from tenfold.environment import Environment
from tenfold.pipelines.plan import make_plan


def test_stages_that_are_switched_off_are_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path))
    config = load_config("digits", assignments=["method=semi_vit", "self_train.enabled=false"])
    told = {step.stage: step.why for step in make_plan(config, None, Environment.read())}
    for stage in ("self_train", "pseudo_label", "distill"):
        assert told[stage] == f"in a moment: {stage}.enabled is false, so it passes on what it is given"
    assert told["finetune"] == "it never ran here"


def test_a_pretraining_that_is_skipped_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path))
    config = load_config("digits", assignments=["pretrain.init={path: somewhere, skip: true}"])
    told = {step.stage: step.why for step in make_plan(config, None, Environment.read())}
    assert told["pretrain"] == "in a moment: pretrain.init.skip is true, so it takes the encoder as it is"
    off = load_config("digits", assignments=["pretrain.enabled=false", "self_train={enabled: false, foreign: 0.1}"])
    assert not off.resolved().self_train.enabled, "what is switched off asks for no features"
