"""CIFAR-10 on CPU cores: what 50 labels a class give, and how many labels the unlabelled images save.

One encoder is pretrained on the 50,000 training images. With each of three label subsets (50 a class, and a training
seed of its own) the pipeline goes on from that encoder: fine-tuning, self-training, and a student of the same size.
Beside it, the same network is trained on the labels alone, for 50, 100, 250 and 500 labels a class. The factor of
labels saved is read off that curve: where it reaches the student's accuracy, by a straight line between its points in
the logarithm of the labels.

Intervals are Student's t over the three subsets and their seeds; the encoder and the test images are the same in all,
so they do not show how another encoder would do. Each cell of the grid leaves a file, so an interrupted benchmark
goes on where it stopped. Nothing was chosen by the test images; benchmarks/README.md tells what was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from record import RESULTS, current_commit, write_result
from scipy import stats

from tenfold.augment.spec import resolve_specs
from tenfold.config import RunConfig, load_config
from tenfold.data.build import build_dataset
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.environment import Environment, allocator
from tenfold.evaluation.figures import save_ladder_png
from tenfold.evaluation.inference import infer, probabilities
from tenfold.models.saved import load_classifier
from tenfold.progress import Reporter
from tenfold.storage import open_store
from tenfold.work import Work

SUBSETS, BUDGETS = 3, (50, 100, 250, 500)
#: Steps of training on the labels alone: more labels are worth a longer run.
STEPS = {50: 2500, 100: 2500, 250: 3000, 500: 3500}
PRESET = "cifar10-cpu"


class Grid:
    """The benchmark's home: images, one store and MLflow file, and a file for each cell that is done."""

    def __init__(self, home: Path) -> None:
        self.home, self.images = home, home / "images"
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

    def held(self, name: str) -> bool:
        """Tell whether a cell is done."""
        return (self.cells / f"{name}.json").is_file()

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Write a cell's result, whole or not at all."""
        aside = self.cells / f"{name}.part"
        aside.write_text(json.dumps(result))
        aside.rename(self.cells / f"{name}.json")

    def spend(self, seconds: float = 0.0) -> float:
        """Add to the time that the grid took over all calls, and return it."""
        path = self.home / "elapsed.json"
        spent = float(json.loads(path.read_text())) if path.is_file() else 0.0
        path.write_text(json.dumps(spent + seconds))
        return spent + seconds

    @property
    def encoder(self) -> Path:
        """The folder of the one encoder."""
        return self.home / "encoder" / "encoder"

    def sets(self, subset: int) -> list[str]:
        """Return the settings of a label subset and its training seed."""
        return [f"data.source={self.images}", f"seed={subset}", f"data.labels.seed={subset}"]


def run_pipeline(grid: Grid, subset: int) -> None:
    """Run the pipeline on one label subset, from the one encoder."""
    home, run_id = grid.home / f"run-{subset}", f"subset-{subset}"
    command = [str(Path(sys.executable).parent / "tenfold"), "run", "--preset", PRESET]
    for item in [*grid.sets(subset), f"pretrain.init.path={grid.encoder}", "pretrain.init.skip=true"]:
        command += ["--set", item]
    environment = {**os.environ, "TENFOLD_HOME": str(home), "TENFOLD_RUN_ID": run_id, "TENFOLD_THREADS": "1"}
    home.mkdir(exist_ok=True)
    start = time.monotonic()
    with (home / "output.txt").open("a") as output:
        subprocess.run(command, env=environment, check=True, stdout=output, stderr=subprocess.STDOUT)
    result = json.loads((home / "store" / "runs" / run_id / "result.json").read_text())["evaluation"]
    grid.keep(f"run-{subset}", {**result, "seconds": time.monotonic() - start})


def shard(grid: Grid, stage: str, name: str, config: RunConfig, threads: int) -> tuple[Dataset, Work]:
    """Return the data set of the cell ``name`` and what its stage works with."""
    store_uri = (grid.home / "store").as_uri()
    environment = replace(Environment.read(), home=grid.home / name, store=store_uri, threads=threads)
    environment.home.mkdir(exist_ok=True)
    store = open_store(store_uri)
    dataset, _ = build_dataset(open_source(str(grid.images)), config.data, store)
    return dataset, Work(stage, name, store, environment, Reporter(stage, environment.home / "events.jsonl"))


def pretrain_encoder(grid: Grid) -> None:
    """Pretrain the one encoder, on every core, with the stage that the pipeline uses."""
    from tenfold.components.pretrain import stage as pretrain

    config = load_config(PRESET, assignments=grid.sets(0)).resolved()
    start = time.monotonic()
    dataset, work = shard(grid, "pretrain", "encoder", config, Environment.read().threads)
    specs = resolve_specs(config.augment)
    inputs = pretrain.Inputs(dataset.uri, specs.pretrain.encoded(), specs.evaluation.encoded())
    pretrain.run(config.pretrain, inputs, pretrain.Outputs(grid.encoder), work)
    history = json.loads((grid.encoder / "history.json").read_text())
    watched = [point for point in history if "knn_accuracy" in point]
    grid.keep("encoder", {"watched": watched, "seconds": time.monotonic() - start})


def train_supervised(grid: Grid, budget: int, subset: int) -> None:
    """Train the student's network on ``budget`` labels a class alone, with the stage that the pipeline uses."""
    from tenfold.components.finetune import stage as finetune

    name = f"supervised-{budget}-{subset}"
    assignments = [*grid.sets(subset), f"data.labels.per_class={budget}", f"baseline.steps={STEPS[budget]}"]
    config = load_config(PRESET, assignments=assignments).resolved()
    start = time.monotonic()
    dataset, work = shard(grid, "baseline", name, config, 1)
    specs, folder = resolve_specs(config.augment), work.environment.home / "classifier"
    inputs = finetune.Inputs(dataset.uri, specs.baseline.encoded(), specs.evaluation.encoded(), None)
    finetune.run(config.baseline, inputs, finetune.Outputs(folder), work)
    reader, (model, _) = SplitReader(dataset, "test", work.cache), load_classifier(folder)
    numbers = list(range(len(reader)))
    found = infer({"p": probabilities(model)}, reader, specs.evaluation, numbers, torch.device("cpu"))["p"]
    top1 = float((found.argmax(1) == reader.labels()).mean())
    grid.keep(name, {"top1": top1, "seconds": time.monotonic() - start})


def run_cell(grid: Grid, name: str) -> None:
    """Run one cell of the grid by its name."""
    kind, *numbers = name.split("-")
    if kind == "encoder":
        pretrain_encoder(grid)
    elif kind == "run":
        run_pipeline(grid, int(numbers[0]))
    else:
        train_supervised(grid, int(numbers[0]), int(numbers[1]))


def interval(values: list[float]) -> dict[str, float]:
    """Return mean and 95% t-interval over the subsets."""
    array = np.array(values)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return {"mean": float(array.mean()), "low": float(array.mean() - half), "high": float(array.mean() + half)}


def labels_saved(curve: dict[int, float], accuracy: float) -> dict[str, Any]:
    """Return the labels a class at which the supervised curve reaches ``accuracy``, and the factor over the least."""
    budgets = sorted(curve)
    for few, many in itertools.pairwise(budgets):
        if curve[few] <= accuracy <= curve[many]:
            share = (accuracy - curve[few]) / (curve[many] - curve[few])
            equal = math.exp(math.log(few) + share * math.log(many / few))
            return {"labels_a_class": equal, "factor": equal / budgets[0], "beyond": False}
    above = accuracy > curve[budgets[-1]]
    equal = budgets[-1] if above else budgets[0]
    return {"labels_a_class": equal, "factor": equal / budgets[0], "beyond": above}


def summarize(grid: Grid) -> dict[str, Any]:
    """Return the result file's content from the cells."""
    cells = {path.stem: json.loads(path.read_text()) for path in sorted(grid.cells.glob("*.json"))}
    runs = [cells[f"run-{subset}"] for subset in range(SUBSETS)]
    table = []
    for number, rung in enumerate(runs[0]["rungs"]):
        values = [run["rungs"][number]["top1"]["value"] for run in runs]
        gains = [run["rungs"][-1]["top1"]["value"] - value for run, value in zip(runs, values, strict=True)]
        table.append(
            {"id": rung["id"], "title": rung["title"], "values": values, "top1": interval(values),
             "student_minus_rung": interval(gains) if rung["id"] != "student" else None,
             "seconds": runs[0]["rungs"][number]["seconds"]}
        )  # fmt: skip
    (baseline,) = [row for row in table if row["id"] == "baseline"]
    points: dict[int, list[float]] = {50: baseline["values"]}
    for budget in BUDGETS[1:]:
        points[budget] = [cells[f"supervised-{budget}-{subset}"]["top1"] for subset in range(SUBSETS)]
    curve = {budget: float(np.mean(values)) for budget, values in points.items()}
    return {
        "rungs": table, "test_images": runs[0]["test_images"], "labels_a_class": 50,
        "supervised": {str(budget): {"values": values, "top1": interval(values)} for budget, values in points.items()},
        "labels_saved": labels_saved(curve, table[-1]["top1"]["mean"]), "watched": cells["encoder"]["watched"],
        "elapsed_seconds": grid.spend(), "cell_seconds": {name: cell["seconds"] for name, cell in cells.items()},
        "steps_of_supervised_training": {str(budget): steps for budget, steps in STEPS.items()},
    }  # fmt: skip


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the supervised curve, with the student's and the fine-tuned teacher's accuracy across it."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    curve = {int(budget): point for budget, point in result["supervised"].items()}
    budgets = sorted(curve)
    means = [100 * curve[b]["top1"]["mean"] for b in budgets]
    axes.plot(budgets, means, marker="o", color="#555555", label="the same network on the labels alone")
    for budget in budgets:
        axes.plot([budget] * 3, [100 * v for v in curve[budget]["values"]], "_", color="#555555", markersize=9)
    shown = [row for row in result["rungs"] if row["id"] in {"finetuned", "student"}]
    for row, colour in zip(shown, ("#9467bd", "#1f77b4"), strict=False):
        axes.axhline(100 * row["top1"]["mean"], color=colour, linewidth=1)
        axes.plot([50] * 3, [100 * v for v in row["values"]], "o", color=colour, label=f"{row['title']}, 50 a class")
    axes.set(xscale="log", xlabel="labels a class", ylabel="top-1 on the 10,000 test images, %", xticks=budgets)
    axes.set_xticklabels([str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run what is missing of the grid and write results/cifar10.json and its two figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="tar of CIFAR-10 as JPEG: train/<class>/…, test/<class>/…")
    parser.add_argument("--home", type=Path, default=Path(".tenfold/bench-cifar10"))
    parser.add_argument("--cell", help="run this cell alone (encoder, run-SUBSET, supervised-BUDGET-SUBSET)")
    options = parser.parse_args()
    commit, grid = current_commit(), Grid(options.home.absolute())
    grid.unpack(options.archive)
    if options.cell:
        run_cell(grid, options.cell)
        return
    begun = time.monotonic()
    waiting = [f"run-{subset}" for subset in range(SUBSETS)]
    waiting += [f"supervised-{budget}-{subset}" for budget in BUDGETS[1:] for subset in range(SUBSETS)]
    threads = Environment.read().threads

    def work(name: str, threads: int = 1) -> None:
        if grid.held(name):
            return
        start = time.monotonic()
        with (grid.home / f"{name}.txt").open("a") as output:
            command = [sys.executable, __file__, str(options.archive), "--home", str(grid.home), "--cell", name]
            environment = {
                **allocator(), "OMP_WAIT_POLICY": "PASSIVE", **os.environ,
                "OMP_NUM_THREADS": str(threads),
            }  # fmt: skip
            subprocess.run(command, env=environment, check=True, stdout=output, stderr=subprocess.STDOUT)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)

    try:
        work("encoder", threads)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, waiting))
    finally:
        grid.spend(time.monotonic() - begun)
    result = summarize(grid)
    path = write_result("cifar10", {"what": __doc__, **result}, commit)
    rows = [
        {"id": row["id"], "title": row["title"], "seconds": row["seconds"],
         "scores": {"top1": {"value": row["top1"]["mean"], "low": row["top1"]["low"], "high": row["top1"]["high"]}}}
        for row in result["rungs"]
    ]  # fmt: skip
    save_ladder_png(rows, RESULTS / "cifar10.png")
    draw(result, RESULTS / "cifar10_labels.png")
    for row in result["rungs"]:
        print(f"{row['title']:<48}{100 * row['top1']['mean']:>7.1f}%  {[round(100 * v, 1) for v in row['values']]}")
    print({budget: round(100 * point["top1"]["mean"], 1) for budget, point in result["supervised"].items()})
    print(result["labels_saved"], f"wrote {path}")


if __name__ == "__main__":
    main()
