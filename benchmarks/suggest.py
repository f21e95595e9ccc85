"""Which images to label: what ``tenfold suggest-labels`` picks beside as many at random, on an encoder's features.

Digits and CIFAR-10, each with an encoder that was pretrained on the training images without labels (CIFAR-10's is that
of ``make bench-semi-vit``). From no label at all 20, 50 and 100 images are picked by each way, given their true labels,
and a logistic regression on the features is measured on the test images; five seeds draw the random ones and the
clusters. Beside it, from 200 random labels on, 100 more: the doubtful ones, the typical ones, and random ones. Gains
are paired by seed, with Student's t interval; encoder and test images are the same in all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from grid import Grid, interval
from numpy.typing import NDArray
from record import RESULTS, current_commit, write_result

from tenfold.augment.spec import resolve_specs
from tenfold.config import RunConfig, load_config
from tenfold.data.reader import SplitReader
from tenfold.environment import Environment
from tenfold.evaluation.inference import infer
from tenfold.evaluation.probes import logistic_regression
from tenfold.evaluation.suggest import doubtful, typical
from tenfold.models.saved import load_pretrained

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BUDGETS, SEEDS, KNOWN, MORE = (20, 50, 100), 5, 200, 100


def features(grid: Grid, config: RunConfig) -> dict[str, tuple[Floats, Ints]]:
    """Return features and true classes of the training and test images; the encoder is made where it is not there."""
    if not grid.held("encoder"):
        grid.pretrain(config, processes=2)
    dataset, work = grid.work("pretrain", "encoder", config, Environment.read().threads)
    encoder, view = load_pretrained(grid.made("encoder"))[0].encoder, resolve_specs(config.augment).evaluation
    found = {}
    for split in ("labelled", "test"):
        reader = SplitReader(dataset, split, work.cache)  # type: ignore[arg-type]
        rows = infer({"f": encoder}, reader, view, list(range(len(reader))), torch.device("cpu"))["f"]
        found[split] = (rows, reader.labels())
    return found


def accuracy(data: dict[str, tuple[Floats, Ints]], chosen: Ints) -> float:
    """Return what a logistic regression on the chosen images reaches on the test images."""
    (rows, labels), (queries, truth) = data["labelled"], data["test"]
    classes = int(labels.max()) + 1
    if len(np.unique(labels[chosen])) < 2:
        return float((truth == labels[chosen][0]).mean())
    predicted = logistic_regression(rows[chosen], labels[chosen], queries, classes, 1.0).argmax(1)
    return float((predicted == truth).mean())


def compare(data: dict[str, tuple[Floats, Ints]]) -> dict[str, Any]:
    """Return every way's accuracy at each budget, seed by seed."""
    rows, labels = data["labelled"]
    everything, classes = np.arange(len(rows)), int(labels.max()) + 1
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        for budget in BUDGETS:
            ways = {"random": rng.choice(everything, budget, replace=False),
                    "typical": typical(rows, rows[:0], budget, seed)[0]}  # fmt: skip
            for way, chosen in ways.items():
                found.setdefault(f"from none, {budget}", {}).setdefault(way, []).append(accuracy(data, chosen))
        known = rng.choice(everything, KNOWN, replace=False)
        rest = np.setdiff1d(everything, known)
        guesses = logistic_regression(rows[known], labels[known], rows[rest], classes, 1.0)
        more = {
            "random": rng.choice(len(rest), MORE, replace=False),
            "typical": typical(rows[rest], rows[known], MORE, seed)[0],
            "doubtful": doubtful(rows[rest], guesses, MORE, seed)[0],
        }
        for way, chosen in more.items():
            reached = accuracy(data, np.concatenate([known, rest[chosen]]))
            found.setdefault(f"from {KNOWN}, {MORE} more", {}).setdefault(way, []).append(reached)
    told = {}
    for case, ways in found.items():
        base = np.array(ways["random"])
        told[case] = {
            way: {"values": values, "top1": interval(values),
                  "gain": None if way == "random" else interval((np.array(values) - base).tolist())}
            for way, values in ways.items()
        }  # fmt: skip
    return told


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the gain over random choice in each case."""
    figure, all_axes = plt.subplots(1, len(result), figsize=(9, 3.2), layout="constrained", sharey=True)
    for axes, (name, cases) in zip(all_axes, result.items(), strict=True):
        bars = [(case, way, row["gain"]) for case, ways in cases.items() for way, row in ways.items() if row["gain"]]
        for place, (_, way, gain) in enumerate(bars):
            colour = "#1f77b4" if way == "typical" else "#d95f02"
            axes.plot([place, place], [100 * gain["low"], 100 * gain["high"]], color=colour, alpha=0.5, linewidth=3)
            axes.plot(place, 100 * gain["mean"], "o", color=colour)
        axes.axhline(0, color="#777777", linewidth=1)
        names = [f"{way}\n{case}".replace(", ", ",\n") for case, way, _ in bars]
        axes.set_xticks(range(len(bars)), names, fontsize=7)
        axes.set_title(name, fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    all_axes[0].set_ylabel("points over random choice")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure, and write results/suggest.json and its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="tar of CIFAR-10 as JPEG: train/<class>/…, test/<class>/…")
    parser.add_argument("--home", type=Path, default=Path(".tenfold/bench-suggest"))
    parser.add_argument(
        "--cifar10-home", type=Path, default=Path(".tenfold/bench-semi-vit"), help="its encoder is used"
    )
    options = parser.parse_args()
    commit, result = current_commit(), {}
    every = "data.labels.fraction=1.0"
    for name, preset, home in (
        ("digits", "digits", options.home),
        ("CIFAR-10", "cifar10-vit-cpu", options.cifar10_home),
    ):
        source = [] if name == "digits" else [f"data.source={home.absolute() / 'images'}"]
        config = load_config(preset, assignments=[*source, every]).resolved()
        plain = load_config(preset).resolved().model_dump()
        known = {"cell": "encoder", "augment": plain["augment"], "pretrain": plain["pretrain"]}
        grid = Grid(home.absolute(), lambda name, known=known: known)  # type: ignore[misc]
        if name != "digits":
            grid.unpack(options.archive)
        result[name] = compare(features(grid, config))
        for case, ways in result[name].items():
            told = ", ".join(f"{way} {100 * row['top1']['mean']:.1f}%" for way, row in ways.items())
            print(f"{name}, {case}: {told}", flush=True)
    path = write_result("suggest", {"what": __doc__, "seeds": SEEDS, "results": result}, commit)
    draw(result, RESULTS / "suggest.png")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
