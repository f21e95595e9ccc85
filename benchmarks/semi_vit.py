"""Semi-ViT on CIFAR-10 on CPU cores, 50 labels a class: the EMA teacher and pseudo mixup beside what they replace.

One transformer is pretrained on the 50,000 training images (preset ``cifar10-vit-cpu``). With each of three label
subsets, and a training seed of its own, it is fine-tuned, and from that teacher self-trained in the same number of
steps and batches by each method: the EMA teacher, FixMatch (the student labels for itself) and plain pseudo labels (the
fine-tuned teacher labels), the first two with and without probabilistic pseudo mixup; a control learns from the
labelled images alone. Of all the moving average of the weights is measured. The monitor is off there, so that
harm would show.

Two more pools, with the monitor and its fall-back on: one in which 30% of the unlabelled images are of three classes
that have no label (seven are known), and one in which five classes have ten times as many images as the other five.
Self-training may not end worse there than the fine-tuned teacher. The encoder is the same one, so it saw all images.

Intervals are Student's t over the three subsets; paired ones are of the differences from the fine-tuned teacher. Each
cell leaves a file, so an interrupted benchmark goes on where it stopped. Nothing was chosen by the test images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from grid import Grid, interval, top1
from record import RESULTS, current_commit, write_result

from tenfold.augment.spec import resolve_specs
from tenfold.config import RunConfig, load_config

PRESET, SUBSETS = "cifar10-vit-cpu", 3
#: Name → what it says, and its settings. Of all the averaged weights are measured, so that who labels is what differs.
METHODS = {
    "labelled": ("labelled images alone", ["self_train.unlabelled_weight=0", "self_train.pseudo_mixup=false"]),
    "ema_mixup": ("EMA teacher, pseudo mixup (Semi-ViT)", []),
    "ema": ("EMA teacher", ["self_train.pseudo_mixup=false"]),
    "fixmatch_mixup": ("FixMatch, pseudo mixup", ["self_train.method=fixmatch"]),
    "fixmatch": ("FixMatch", ["self_train.method=fixmatch", "self_train.pseudo_mixup=false"]),
    "pseudo_label": ("plain pseudo labels", ["self_train.method=pseudo_label", "self_train.pseudo_mixup=false"]),
}
#: Name → what it says, and the settings of self-training on that pool.
POOLS = {
    "foreign": ("30% of the images of no known class", ["self_train.foreign=0.1"]),
    "imbalanced": ("classes 10:1 out of balance", ["self_train.align=estimated"]),
}
FOREIGN, RARE, SHARE = ("automobile", "cat", "ship"), ("airplane", "bird", "deer", "frog", "ship"), 10


class Bench(Grid):
    """The benchmark's home; each pool is a folder of links to the same images."""

    def pool(self, name: str) -> Path:
        """Return the folder of a pool, making it where it is not there."""
        if name == "all":
            return self.images
        folder = self.home / f"images-{name}"
        if folder.is_dir():
            return folder
        aside = self.home / f"images-{name}.part"
        shutil.rmtree(aside, ignore_errors=True)
        for path in sorted(self.images.rglob("*.*")):
            split, of, file = path.relative_to(self.images).parts
            target = aside / split / of / file
            if name == "foreign" and of in FOREIGN:
                if split == "test":
                    continue
                target = aside / "unlabelled" / f"{of}-{file}"
            elif name == "imbalanced" and split == "train" and of in RARE and int(path.stem) % SHARE:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
        aside.rename(folder)
        return folder

    def config(self, pool: str, subset: int, *more: str) -> RunConfig:
        """Return the resolved configuration of a pool and subset."""
        sets = [f"data.source={self.pool(pool)}", f"seed={subset}", f"data.labels.seed={subset}", *more]
        return load_config(PRESET, assignments=sets).resolved()


def finetune_teacher(bench: Bench, name: str, pool: str, subset: int) -> None:
    """Fine-tune the encoder on a label subset."""
    from tenfold.components.finetune import stage as finetune

    start, config = time.monotonic(), bench.config(pool, subset)
    dataset, work = bench.work("finetune", name, config, 1)
    specs = resolve_specs(config.augment)
    views = specs.finetune.encoded(), specs.evaluation.encoded()
    inputs = finetune.Inputs(dataset.uri, *views, bench.made("encoder"))
    finetune.run(config.finetune, inputs, finetune.Outputs(bench.made(name)), work)
    accuracy = top1(bench.made(name), dataset, config, work)
    bench.keep(name, {"top1": accuracy, "seconds": time.monotonic() - start})


def self_train_teacher(bench: Bench, name: str, teacher: str, pool: str, subset: int, sets: list[str]) -> None:
    """Self-train a fine-tuned teacher."""
    from tenfold.components.self_train import stage as self_train

    start, config = time.monotonic(), bench.config(pool, subset, *sets)
    dataset, work = bench.work("self_train", name, config, 1)
    specs = resolve_specs(config.augment)
    inputs = self_train.Inputs(
        dataset.uri, specs.weak.encoded(), specs.strong.encoded(), specs.evaluation.encoded(), bench.made(teacher),
        bench.made("encoder"),
    )  # fmt: skip
    self_train.run(config.self_train, inputs, self_train.Outputs(bench.made(name)), work)
    events = (work.environment.home / "events.jsonl").read_text().splitlines()
    told = [e["text"] for e in map(json.loads, events) if e["kind"] in {"note", "warning"}]
    points = json.loads((bench.made(name) / "history.json").read_text())
    figures = {key: points[-1][key] for key in ("confident_share", "agreement") if key in points[-1]}
    accuracy = top1(bench.made(name), dataset, config, work)
    seconds = time.monotonic() - start
    bench.keep(name, {"top1": accuracy, "steps": points[-1]["step"], **figures, "told": told, "seconds": seconds})


def cells() -> list[str]:
    """Return the cells behind the encoder, each fine-tuning before what starts from it."""
    pools = ["all", *POOLS]
    names = [f"finetuned.{pool}.{subset}" for pool in pools for subset in range(SUBSETS)]
    names += [f"{method}.all.{subset}" for subset in range(SUBSETS) for method in METHODS]
    return names + [f"ema_mixup.{pool}.{subset}" for pool in POOLS for subset in range(SUBSETS)]


def sets_of(name: str) -> list[str]:
    """Return the settings of a cell beside the preset's."""
    method, pool, _ = name.split(".")
    if method == "finetuned":
        return []
    sets = [*METHODS[method][1], *(POOLS[pool][1] if pool in POOLS else ["self_train.monitor=0"])]
    if any(item.startswith("self_train.method=") for item in sets):
        teacher = load_config(PRESET).self_train
        sets.append(f"self_train.average={teacher.decay(teacher.steps or 1)}")
    return sets


def settings(name: str) -> dict[str, Any]:
    """Return what a cell depends on."""
    sections = ("augment", "pretrain", "finetune", "self_train")
    used = sections[: {"encoder": 2, "finetuned": 3}.get(name.partition(".")[0], 4)]
    config = load_config(PRESET, assignments=sets_of(name) if len(used) == len(sections) else []).resolved()
    return {"cell": name, **{section: config.model_dump()[section] for section in used}}


def run_cell(bench: Bench, name: str) -> None:
    """Run one cell by its name."""
    if name == "encoder":
        bench.pretrain(bench.config("all", 0), processes=2)  # a small transformer gains little from two threads
        return
    method, pool, subset = name.split(".")
    if method == "finetuned":
        finetune_teacher(bench, name, pool, int(subset))
        return
    self_train_teacher(bench, name, f"finetuned.{pool}.{subset}", pool, int(subset), sets_of(name))


def summarize(bench: Bench) -> dict[str, Any]:
    """Return the result file's content from the cells."""
    held = bench.results()

    def values(method: str, pool: str) -> list[float]:
        return [held[f"{method}.{pool}.{subset}"]["top1"] for subset in range(SUBSETS)]

    def row(method: str, pool: str, title: str) -> dict[str, Any]:
        found, tuned = values(method, pool), values("finetuned", pool)
        gains = (np.array(found) - np.array(tuned)).tolist()
        own = [held[f"{method}.{pool}.{subset}"] for subset in range(SUBSETS)]
        return {
            "id": method, "title": title, "values": found, "top1": interval(found),
            "gain": interval(gains) if method != "finetuned" else None, "gains": gains,
            "steps": [cell.get("steps") for cell in own], "told": [cell.get("told") for cell in own],
            "seconds": [cell["seconds"] for cell in own],
        }  # fmt: skip

    return {
        "methods": [row("finetuned", "all", "fine-tuned teacher")]
        + [row(method, "all", title) for method, (title, _) in METHODS.items()],
        "pools": {
            pool: {"title": title, "rows": [row("finetuned", pool, "fine-tuned teacher"),
                                            row("ema_mixup", pool, METHODS["ema_mixup"][0])]}
            for pool, (title, _) in POOLS.items()
        },
        "encoder": held["encoder"], "labels_a_class": 50, "elapsed_seconds": bench.spend(),
        "commits": bench.commits(),
    }  # fmt: skip


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw each method's accuracy, mean and subsets, and the two pools beside."""
    groups = [("50,000 images of ten classes", result["methods"])]
    groups += [(pool["title"], pool["rows"]) for pool in result["pools"].values()]
    figure, all_axes = plt.subplots(
        1, len(groups), figsize=(11, 3.6), layout="constrained", width_ratios=[len(rows) + 1 for _, rows in groups]
    )
    for axes, (title, rows) in zip(all_axes, groups, strict=True):
        for place, row in enumerate(rows):
            colour = "#777777" if row["id"] == "finetuned" else "#1f77b4"
            axes.plot([place] * SUBSETS, [100 * v for v in row["values"]], "o", color=colour, alpha=0.5, markersize=4)
            axes.plot(place, 100 * row["top1"]["mean"], "_", color=colour, markersize=22, markeredgewidth=2)
        axes.set_xticks(range(len(rows)), ["\n".join(wrap(row["title"], 11)) for row in rows], fontsize=7)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_title(title, fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    all_axes[0].set_ylabel("top-1 on the test images, %")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run what is missing of the grid and write results/semi_vit.json and its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="tar of CIFAR-10 as JPEG: train/<class>/…, test/<class>/…")
    parser.add_argument("--home", type=Path, default=Path(".tenfold/bench-semi-vit"))
    parser.add_argument("--cell", help="run this cell alone (encoder, finetuned.POOL.SUBSET, METHOD.POOL.SUBSET)")
    options = parser.parse_args()
    commit, bench = current_commit(), Bench(options.home.absolute(), settings)
    bench.unpack(options.archive)
    if options.cell:
        run_cell(bench, options.cell)
        return
    for pool in POOLS:
        bench.pool(pool)
    tuned = [name for name in cells() if name.startswith("finetuned.")]
    bench.run(options.archive, tuned, [name for name in cells() if name not in tuned])
    result = summarize(bench)
    path = write_result("semi_vit", {"what": __doc__, **result}, commit)
    draw(result, RESULTS / "semi_vit.png")
    for title, rows in [("all", result["methods"]), *((p["title"], p["rows"]) for p in result["pools"].values())]:
        print(title)
        for row in rows:
            print(
                f"  {row['title']:<40}{100 * row['top1']['mean']:>6.1f}%  {[round(100 * v, 1) for v in row['values']]}"
            )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
