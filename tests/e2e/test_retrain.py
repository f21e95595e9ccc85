"""Retraining on a folder of images that grows, as the command line runs it: four times in a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

TENFOLD = str(Path(sys.executable).parent / "tenfold")
pytestmark = pytest.mark.timeout(900)  # whole runs, on a machine that may be busy
CLASSES = ("flat", "fine", "steep", "tight")
TINY = """
preset: images
data: {labels: {per_class: 6}}
augment: {image_size: 16, strong: {erase: null}}
pretrain: {network: {depth: 10, width: 0.125}, batch_size: 32, steps: 20}
finetune: {steps: 40, batch_size: 24}
self_train: {enabled: false}
pseudo_label: {views: 0, propagate: null}
distill: {network: {depth: 10, width: 0.125}, batch_size: 32, steps: 30}
baseline: {steps: 4, batch_size: 8}
evaluate: {bootstrap: 200, selection: 0, export: false}
promote: {model: stripes}
retrain: {pretrain_share: 0.5}
"""


def draw(kind: int | None, rng: np.random.Generator) -> Image.Image:
    """Stripes of the class: lying or standing, wide or narrow; None: noise."""
    pixels = rng.normal(128, 40 if kind is None else 12, (16, 16, 3))
    if kind is not None:
        wave = 80 * np.sin(np.arange(16) * (0.8, 2.2)[kind % 2] + rng.uniform(0, 6))
        pixels += wave[:, None, None] if kind < 2 else wave[None, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class Place:
    """A home, and a source that the tests let grow."""

    def __init__(self, folder: Path) -> None:
        self.home, self.source, self.config = folder / "home", folder / "images", folder / "tiny.yaml"
        self.config.write_text(TINY)
        self.rng = np.random.default_rng(0)
        for number in range(48):
            self.add(f"train/{CLASSES[number % 4]}", number % 4)
            if number < 40:
                self.add(f"test/{CLASSES[number % 4]}", number % 4)

    def add(self, folder: str, kind: int | None) -> None:
        place = self.source / folder
        place.mkdir(parents=True, exist_ok=True)
        draw(kind, self.rng).save(place / f"{len(list(place.iterdir())):03d}.png")

    def poison(self) -> None:
        """Make every training image noise."""
        for path in sorted(self.source.glob("train/*/*.png")) + sorted(self.source.glob("unlabelled/*.png")):
            draw(None, self.rng).save(path)

    def retrain(self, run_id: str) -> str:
        done = subprocess.run(
            [TENFOLD, "retrain", "--config", str(self.config), "--set", f"data.source={self.source}",
             "--min-new-images", "30"],
            env={**os.environ, "TENFOLD_HOME": str(self.home), "TENFOLD_RUN_ID": run_id, "TENFOLD_THREADS": "1"},
            capture_output=True, text=True, timeout=800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def started(self, run_id: str) -> list[str]:
        return [event["stage"] for event in self.events(run_id) if event["kind"] == "started"]

    def events(self, run_id: str) -> list[dict[str, Any]]:
        return list(map(json.loads, (self.home / "runs" / run_id / "events.jsonl").read_text().splitlines()))

    def notes(self, run_id: str, stage: str) -> list[str]:
        return [e["text"] for e in self.events(run_id) if e["kind"] == "note" and e["stage"] == stage]

    def result(self, run_id: str) -> dict[str, Any]:
        return dict(json.loads((self.home / "store" / "runs" / run_id / "result.json").read_text()))

    def student(self) -> dict[str, str]:
        """Return the tags of the champion."""
        client = MlflowClient(f"sqlite:///{self.home}/mlflow.db", f"sqlite:///{self.home}/mlflow.db")
        version = client.get_model_version_by_alias("stripes", "champion")
        return {"version": str(version.version), **version.tags}

    def parent(self, run_id: str) -> Any:
        client = MlflowClient(f"sqlite:///{self.home}/mlflow.db")
        experiment = client.get_experiment_by_name("tenfold")
        condition = f"tags.`tenfold.run_id` = '{run_id}' and tags.`tenfold.task` = 'pipeline'"
        return client.search_runs([experiment.experiment_id], condition)[0]

    def encoder(self, run_id: str) -> dict[str, Any]:
        """Return the lineage of the encoder that a run pretrained."""
        found = (json.loads(path.read_text()) for path in self.home.glob("kfp/*/pretrain/encoder/lineage.json"))
        return next(lineage for lineage in found if lineage["run_id"] == run_id)


WHOLE = {"augment", "pretrain", "finetune", "self_train", "pseudo_label", "distill", "baseline", "evaluate", "promote"}
SMALL = ["preflight", "list_images", "pack", "shard", "novelty"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """After the first retraining."""
    made = Place(tmp_path_factory.mktemp("growing"))
    made.retrain("first")
    return made


@pytest.fixture(scope="module")
def grown(place: Place) -> Place:
    """After one on many new unlabelled images."""
    for number in range(60):
        place.add("unlabelled", number % 4)
    place.retrain("grown")
    return place


@pytest.mark.slow
def test_with_no_champion_a_retraining_trains_from_scratch_and_makes_one(place: Place) -> None:
    assert set(place.started("first")) == {*SMALL, *WHOLE, "finish"}
    assert place.encoder("first")["config"]["init"] is None
    assert place.student()["tenfold.run_id"] == "first"
    assert float(place.student()["tenfold.top1"]) > 0.5, "else a poisoned student might pass the gate"
    kept = Path(place.student()["tenfold.encoder"].removeprefix("file://"))
    assert (kept / "model.safetensors").is_file()


@pytest.mark.slow
def test_with_nothing_new_it_ends_early_and_has_succeeded(place: Place) -> None:
    told = place.retrain("same")
    assert place.started("same") == [*SMALL, "finish"]
    assert "Nothing to retrain on: 0 images that the champion's data set lacks, fewer than the 30" in told
    assert "cached" not in told
    assert place.result("same")["stopped"]["new_images"] == 0
    assert "Nothing to retrain on" in (place.home / "runs" / "same" / "report.html").read_text()
    parent = place.parent("same")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["tenfold.stopped"].startswith("0 images")
    assert place.student()["tenfold.run_id"] == "first"


@pytest.mark.slow
def test_of_a_source_that_grew_the_new_images_alone_are_packed_and_pretraining_starts_warm(grown: Place) -> None:
    champion = dict(grown.student())
    packed = [e["total"] for e in grown.events("grown") if e["kind"] == "progress" and e["stage"] == "pack"]
    assert set(packed) == {60}
    assert grown.notes("grown", "novelty") == [
        "60 images that the champion's data set lacks, and at least 30 are asked for"
    ]
    assert set(grown.started("grown")) == {*SMALL, *WHOLE, "finish"}
    begun = grown.encoder("grown")["config"]
    assert begun["steps"] == 10, "half as long as from scratch"
    first = json.loads((grown.home / "store" / "runs" / "first" / "result.json").read_text())["verdict"]
    assert begun["init"]["path"].rpartition("/")[2] == begun["init"]["digest"]
    assert grown.parent("grown").data.tags["tenfold.retrains"] == f"stripes/{first['version']}"
    assert champion["tenfold.run_id"] in {"first", "grown"}


@pytest.mark.slow
def test_a_student_of_poisoned_images_does_not_pass_the_gate(grown: Place) -> None:
    before = grown.student()
    grown.poison()
    told = grown.retrain("poisoned")
    verdict = grown.result("poisoned")["verdict"]
    assert verdict["alias"] == "challenger"
    assert "not more than the 0.00% that is asked for" in told
    assert grown.student() == before
    ledger = sorted(json.loads(p.read_text())["number"] for p in grown.home.glob("store/promotions/*/*.json"))
    assert len(ledger) == 1 + (before["tenfold.run_id"] == "grown")
