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
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from grid import Grid, interval, top1
from record import RESULTS, current_commit, write_result

from tenfold.augment.spec import resolve_specs
from tenfold.config import load_config
from tenfold.evaluation.figures import save_ladder_png
from tenfold.evaluation.label_curve import equal_labels

SUBSETS, BUDGETS = 3, (50, 100, 250, 500)
#: Steps of training on the labels alone: more labels are worth a longer run.
STEPS = {50: 2500, 100: 2500, 250: 3000, 500: 3500}
PRESET = "cifar10-cpu"


def sets(grid: Grid, subset: int) -> list[str]:
    """Return the settings of a label subset and its training seed."""
    return [f"data.source={grid.images}", f"seed={subset}", f"data.labels.seed={subset}"]


def settings(name: str) -> dict[str, Any]:
    """Return what a cell depends on."""
    config = load_config(PRESET).resolved().model_dump()
    kind, *numbers = name.split("-")
    used = {"encoder": ("augment", "pretrain"), "supervised": ("augment", "baseline")}.get(kind, tuple(config))
    steps = {"steps": STEPS[int(numbers[0])]} if kind == "supervised" else {}
    return {"cell": name, **{section: config[section] for section in used}, **steps}


def run_pipeline(grid: Grid, subset: int) -> None:
    """Run the pipeline on one label subset, from the one encoder."""
    home, run_id = grid.home / f"run-{subset}", f"subset-{subset}"
    command = [str(Path(sys.executable).parent / "tenfold"), "run", "--preset", PRESET]
    for item in [*sets(grid, subset), f"pretrain.init.path={grid.made('encoder')}", "pretrain.init.skip=true",
                 "evaluate.selection=0", "evaluate.export=false"]:  # fmt: skip
        command += ["--set", item]
    environment = {**os.environ, "TENFOLD_HOME": str(home), "TENFOLD_RUN_ID": run_id, "TENFOLD_THREADS": "1"}
    home.mkdir(exist_ok=True)
    start = time.monotonic()
    with (home / "output.txt").open("a") as output:
        subprocess.run(command, env=environment, check=True, stdout=output, stderr=subprocess.STDOUT)
    result = json.loads((home / "store" / "runs" / run_id / "result.json").read_text())["evaluation"]
    grid.keep(f"run-{subset}", {**result, "seconds": time.monotonic() - start})


def train_supervised(grid: Grid, budget: int, subset: int) -> None:
    """Train the student's network on ``budget`` labels a class alone, with the stage that the pipeline uses."""
    from tenfold.components.finetune import stage as finetune

    name = f"supervised-{budget}-{subset}"
    assignments = [*sets(grid, subset), f"data.labels.per_class={budget}", f"baseline.steps={STEPS[budget]}"]
    config = load_config(PRESET, assignments=assignments).resolved()
    start = time.monotonic()
    dataset, work = grid.work("baseline", name, config, 1)
    specs = resolve_specs(config.augment)
    inputs = finetune.Inputs(dataset.uri, specs.baseline.encoded(), specs.evaluation.encoded(), None)
    finetune.run(config.baseline, inputs, finetune.Outputs(grid.made(name)), work)
    accuracy = top1(grid.made(name), dataset, config, work)
    grid.keep(name, {"top1": accuracy, "seconds": time.monotonic() - start})


def run_cell(grid: Grid, name: str) -> None:
    """Run one cell of the grid by its name."""
    kind, *numbers = name.split("-")
    if kind == "encoder":
        grid.pretrain(load_config(PRESET, assignments=sets(grid, 0)).resolved())
    elif kind == "run":
        run_pipeline(grid, int(numbers[0]))
    else:
        train_supervised(grid, int(numbers[0]), int(numbers[1]))


def labels_saved(curve: dict[int, float], accuracy: float) -> dict[str, Any]:
    """Return the labels a class at which the supervised curve reaches ``accuracy``, and the factor over the least."""
    found = equal_labels(curve, accuracy)
    return {"labels_a_class": found.labels, "factor": found.labels / min(curve), "beyond": found.beyond}


def summarize(grid: Grid) -> dict[str, Any]:
    """Return the result file's content from the cells."""
    cells = grid.results()
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
        "elapsed_seconds": grid.spend(), "commits": grid.commits(),
        "cell_seconds": {name: cell["seconds"] for name, cell in cells.items()},
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
    commit, grid = current_commit(), Grid(options.home.absolute(), settings)
    grid.unpack(options.archive)
    if options.cell:
        run_cell(grid, options.cell)
        return
    waiting = [f"run-{subset}" for subset in range(SUBSETS)]
    waiting += [f"supervised-{budget}-{subset}" for budget in BUDGETS[1:] for subset in range(SUBSETS)]
    grid.run(options.archive, waiting)
    result = summarize(grid)
    path = write_result("cifar10", {"what": __doc__, **result}, commit)
    rows = [
        {"id": row["id"], "title": row["title"], "seconds": row["seconds"], "served": row["id"] == "student",
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
