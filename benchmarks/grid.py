"""A grid of cells on CIFAR-10: one encoder, then what starts from it, side by side; it goes on where it stopped.

A cell is a training with the stage that the pipeline uses, in a process of its own. It leaves a file when it is done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import current_commit
from scipy import stats

from tenfold.augment.spec import resolve_specs
from tenfold.config import RunConfig
from tenfold.data.build import build_dataset
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.environment import Environment, allocator
from tenfold.evaluation.inference import infer, probabilities
from tenfold.fingerprint import canonical_json, digest
from tenfold.launch import launch
from tenfold.models.saved import load_classifier
from tenfold.progress import Reporter
from tenfold.storage import open_store
from tenfold.work import Work
from tenfold.worker import perform


class Grid:
    """The benchmark's home: images, one store, a folder for each cell's training and a file for each cell's result.

    A cell is known by its name and the settings that it depends on, so one that other settings gave is made again.
    """

    def __init__(self, home: Path, settings: Callable[[str], Mapping[str, Any]]) -> None:
        """Take a folder as the home; ``settings`` returns what the cell of a name depends on."""
        self.home, self.images, self._settings = home, home / "images", settings
        self.cells = home / "cells"
        self.cells.mkdir(parents=True, exist_ok=True)

    def unpack(self, archive: Path) -> None:
        """Unpack the images once."""
        if not (self.images / "test").is_dir():
            aside = self.home / "images.part"
            with tarfile.open(archive) as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has no filters
                tar.extractall(aside)
            aside.rename(self.images)

    def key(self, name: str) -> str:
        """Return what a cell's settings are called."""
        return digest(canonical_json(self._settings(name)))

    def held(self, name: str) -> bool:
        """Tell whether a cell is done with the settings of now."""
        path = self.cells / f"{name}.json"
        return path.is_file() and json.loads(path.read_text())["settings"] == self.key(name)

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Write a cell's result, whole or not at all, with its settings and the commit that made it."""
        aside = self.cells / f"{name}.part"
        aside.write_text(json.dumps({**result, "settings": self.key(name), "commit": current_commit()}))
        aside.rename(self.cells / f"{name}.json")

    def results(self) -> dict[str, dict[str, Any]]:
        """Return what the cells that are done left."""
        return {path.stem: json.loads(path.read_text()) for path in sorted(self.cells.glob("*.json"))}

    def commits(self) -> list[str]:
        """Return the commits that made the cells."""
        return sorted({cell["commit"] for cell in self.results().values()})

    def spend(self, seconds: float = 0.0) -> float:
        """Add to the time that the grid took over all calls, and return it."""
        path = self.home / "elapsed.json"
        spent = float(json.loads(path.read_text())) if path.is_file() else 0.0
        path.write_text(json.dumps(spent + seconds))
        return spent + seconds

    def made(self, name: str) -> Path:
        """Return the folder of the network that a cell left."""
        return self.home / "made" / f"{name}-{self.key(name)[:12]}" / "network"

    def work(self, stage: str, name: str, config: RunConfig, threads: int) -> tuple[Dataset, Work]:
        """Return the data set of a cell and what its stage works with."""
        uri = (self.home / "store").as_uri()
        environment = replace(Environment.read(), home=self.made(name).parent, store=uri, threads=threads)
        environment.home.mkdir(parents=True, exist_ok=True)
        store = open_store(uri)
        dataset, _ = build_dataset(open_source(config.data.source), config.data, store)
        reporter = Reporter(stage, environment.home / "events.jsonl")
        return dataset, Work(stage, self.key(name), store, environment, reporter)

    def pretrain(self, config: RunConfig, processes: int = 1) -> None:
        """Pretrain the one encoder, the cell ``encoder``, on every core, which the processes share."""
        start = time.monotonic()
        dataset, work = self.work("pretrain", "encoder", config, Environment.read().threads)
        specs, made = resolve_specs(config.augment), {"encoder": self.made("encoder")}
        inputs: dict[str, str | Path | None] = {
            "dataset": dataset.uri, "views": specs.pretrain.encoded(), "evaluation": specs.evaluation.encoded(),
            "watched": dataset.uri if config.pretrain.watched else None,
        }  # fmt: skip
        os.environ["TENFOLD_HOME"] = str(work.environment.home)  # the processes' own
        work = replace(work, environment=replace(work.environment, processes=processes))
        run = launch if processes > 1 else perform
        run("pretrain", None, canonical_json(config.pretrain.model_dump()), inputs, made, work)
        points = json.loads((self.made("encoder") / "history.json").read_text())
        watched_points = [point for point in points if "knn_accuracy" in point]
        self.keep("encoder", {"watched": watched_points, "processes": processes,
                              "seconds": time.monotonic() - start})  # fmt: skip

    def run(self, archive: Path, *waves: list[str]) -> None:
        """Run the cells that are missing: the encoder on every core, then each wave's with a core each.

        Each is this script again with ``--cell NAME``.
        """
        begun, cores = time.monotonic(), Environment.read().threads

        def run(name: str, threads: int = 1) -> None:
            if self.held(name):
                return
            start = time.monotonic()
            command = [sys.executable, sys.argv[0], str(archive), "--home", str(self.home), "--cell", name]
            environment = {**allocator(), "OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
            with (self.home / f"{name}.txt").open("a") as output:
                subprocess.run(command, env=environment, check=True, stdout=output, stderr=subprocess.STDOUT)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)

        try:
            run("encoder", cores)
            with ThreadPoolExecutor(cores) as pool:
                for wave in waves:
                    list(pool.map(run, wave))
        finally:
            self.spend(time.monotonic() - begun)


def top1(classifier: Path, dataset: Dataset, config: RunConfig, work: Work) -> float:
    """Return the accuracy of a saved classifier on the test images."""
    reader, (model, _) = SplitReader(dataset, "test", work.cache), load_classifier(classifier)
    view = resolve_specs(config.augment).evaluation
    found = infer({"p": probabilities(model)}, reader, view, list(range(len(reader))), torch.device("cpu"))["p"]
    return float((found.argmax(1) == reader.labels()).mean())


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean and its 95% interval over the subsets, by Student's t."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}
