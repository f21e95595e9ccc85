"""The ablations of SimCLRv2 at the scale of handwritten digits: head depth and fine-tuning layer, model size, label
fraction, and distillation loss.

Counterparts of the paper's figures and of its table of distillation losses, with the stages that the pipeline uses and
the preset ``digits``, over three repeats with their own test split, label subset and seed (2,000 to 2,002, which
nothing was tuned on). What a cell reaches on 1,797 images of 8 pixels need not hold for photographs; the point is that
each of the paper's questions is one command. Each cell leaves a file, so an interrupted grid goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from record import RESULTS, current_commit, write_result

from tenfold.environment import Environment
from tenfold.fingerprint import source_digest

SEEDS = (2000, 2001, 2002)
HEADS, WIDTHS, LABELS = (1, 2, 3, 4), (0.125, 0.25, 0.5), (1, 2, 5, 10)
#: The paper's rows: images that the student learns from, and the weight of the soft labels.
LOSSES = {
    "labels alone": ("labelled", 0.0), "labels and soft labels of labelled images": ("labelled", 0.5),
    "labels and soft labels of all images": ("all", 0.5), "soft labels of all images": ("all", 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One repeat: a data set with its labels, and a folder of finished cells."""

    home: Path
    seed: int

    def config(self, *assignments: str) -> Any:
        """Return the preset with this repeat's seeds and further settings, resolved."""
        from tenfold.config import load_config

        own = [f"seed={self.seed}", f"data.split.seed={self.seed}", f"data.labels.seed={self.seed}"]
        return load_config("digits", assignments=[*own, *assignments]).resolved()

    def cell(self, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Return a cell's result, making it where it is not there."""
        folder = self.home / str(self.seed) / name
        file = folder / "result.json"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            start = time.monotonic()
            result = {"folder": str(folder / "made"), **make(folder / "made")}
            file.write_text(json.dumps({**result, "seconds": time.monotonic() - start}))
            print(f"{self.seed} {name}: {result.get('top1', '')}", flush=True)
        return dict(json.loads(file.read_text()))

    def parts(self, config: Any, name: str) -> tuple[Any, Any, Any]:
        """Return data set, views and a place to work."""
        import torch

        from tenfold.augment.spec import resolve_specs
        from tenfold.data.build import build_dataset
        from tenfold.data.sources import open_source
        from tenfold.progress import Reporter
        from tenfold.storage import open_store
        from tenfold.work import Work

        torch.set_num_threads(1)
        place = self.home / str(self.seed)
        place.mkdir(parents=True, exist_ok=True)
        environment = replace(Environment.read(), home=place, store=(place / "store").as_uri(), threads=1)
        store = open_store(environment.store)
        dataset, _ = build_dataset(open_source("digits"), config.data, store)
        reporter = Reporter(name, place / "events.jsonl")
        return dataset, resolve_specs(config.augment), Work(name, name, store, environment, reporter)

    def encoder(self, heads: int = 3, width: float = 0.25) -> Path:
        """Return an encoder pretrained with a head of that depth and a network of that width."""
        from tenfold.components.pretrain import stage

        def make(folder: Path) -> dict[str, Any]:
            config = self.config(
                f"pretrain.head.layers={heads}", f"finetune.from_head_layer={min(1, heads)}",
                f"pretrain.network.width={width}", f"distill.network.width={width}",
            )  # fmt: skip
            dataset, specs, work = self.parts(config, f"pretrain-{heads}-{width}")
            views = (specs.pretrain.encoded(), specs.evaluation.encoded())
            stage.run(config.pretrain, stage.Inputs(dataset.uri, *views), stage.Outputs(folder), work)
            return {}

        return Path(self.cell(f"pretrain-{heads}-{width}", make)["folder"])

    def classifier(self, name: str, encoder: Path | None, *assignments: str) -> dict[str, Any]:
        """Fine-tune an encoder, or train the same network on the labels alone, and measure."""
        from tenfold.components.finetune import stage

        def make(folder: Path) -> dict[str, Any]:
            config = self.config(*assignments)
            dataset, specs, work = self.parts(config, name)
            settings = config.finetune if encoder else config.baseline
            views = (specs.finetune if encoder else specs.baseline).encoded()
            inputs = stage.Inputs(dataset.uri, views, specs.evaluation.encoded(), encoder)
            stage.run(settings, inputs, stage.Outputs(folder), work)
            return {"top1": measure(folder, dataset, specs, work)}

        return self.cell(name, make)

    def finetuned(self, layer: int = 1, heads: int = 3, width: float = 0.25, labels: int = 2) -> dict[str, Any]:
        """Fine-tune from a layer of the head on a number of labels a class."""
        return self.classifier(
            f"finetune-{layer}-{heads}-{width}-{labels}", self.encoder(heads, width),
            f"pretrain.head.layers={heads}", f"finetune.from_head_layer={layer}", f"data.labels.per_class={labels}",
        )  # fmt: skip

    def supervised(self, labels: int) -> dict[str, Any]:
        """Train the same network on the labels alone."""
        return self.classifier(f"supervised-{labels}", None, f"data.labels.per_class={labels}")

    def distilled(self, loss: str) -> dict[str, Any]:
        """Train a fresh student by one of the losses on the fine-tuned teacher's soft labels, and measure."""
        from tenfold.components.distill import stage
        from tenfold.components.pseudo_label import stage as labelling

        images, alpha = LOSSES[loss]
        encoder, teacher = self.encoder(), Path(self.finetuned()["folder"])

        def make(folder: Path) -> dict[str, Any]:
            config = self.config(
                "pseudo_label={views: 0, teachers: last, temperature: 1.0, balance: false, propagate: null}",
                "distill.init=scratch", f"distill.images={images}", f"distill.alpha={alpha}",
            )  # fmt: skip
            dataset, specs, work = self.parts(config, f"distill-{images}-{alpha}")
            soft, evaluation = folder.with_name("soft"), specs.evaluation.encoded()
            inputs = labelling.Inputs(dataset.uri, specs.weak.encoded(), evaluation, teacher, teacher, encoder)
            labelling.run(config.pseudo_label, inputs, labelling.Outputs(soft), work)
            given = stage.Inputs(dataset.uri, specs.distill.encoded(), evaluation, soft, teacher, teacher)
            stage.run(config.distill, given, stage.Outputs(folder), work)
            return {"top1": measure(folder, dataset, specs, work)}

        return self.cell(f"distill-{images}-{alpha}", make)

    def run(self) -> dict[str, Any]:
        """Return every cell's accuracy."""
        return {
            "head": {f"{h} layers, from {k}": self.finetuned(k, h)["top1"] for h in HEADS for k in range(h + 1)},
            "width": {str(w): self.finetuned(width=w)["top1"] for w in WIDTHS},
            "labels": {str(n): self.finetuned(labels=n)["top1"] for n in LABELS},
            "supervised": {str(n): self.supervised(n)["top1"] for n in LABELS},
            "loss": {name: self.distilled(name)["top1"] for name in LOSSES},
        }


def measure(folder: Path, dataset: Any, specs: Any, work: Any) -> float:
    """Return a saved classifier's top-1 on the test split."""
    import torch

    from tenfold.data.reader import SplitReader
    from tenfold.evaluation.inference import infer, probabilities
    from tenfold.models.saved import load_classifier

    reader, (model, _) = SplitReader(dataset, "test", work.cache), load_classifier(folder)
    functions = {"p": probabilities(model)}
    found = infer(functions, reader, specs.evaluation, list(range(len(reader))), torch.device("cpu"))
    return float((found["p"].argmax(1) == reader.labels()).mean())


def run_repeat(seed: int, home: Path) -> dict[str, Any]:
    """Run one repeat's grid (in a process of its own)."""
    return Bench(home, seed).run()


def draw(rows: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw the four panels."""
    figure, ((head, width), (labels, loss)) = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for layers in HEADS:
        points = [np.mean(rows["head"][f"{layers} layers, from {k}"]) * 100 for k in range(layers + 1)]
        head.plot(range(layers + 1), points, marker="o", label=f"{layers} layer{'s' if layers > 1 else ''}")
    head.set(
        title="Fine-tuning from a layer of the head", xlabel="layer (0: the encoder)", xticks=range(max(HEADS) + 1)
    )
    head.legend(frameon=False, title="head")
    width.plot([str(w) for w in WIDTHS], [np.mean(rows["width"][str(w)]) * 100 for w in WIDTHS], marker="o")
    width.set(title="Model size", xlabel="width of ResNet-10")
    for kind, name in (("labels", "pretrained, fine-tuned"), ("supervised", "labels alone")):
        labels.plot(
            [str(n) for n in LABELS], [np.mean(rows[kind][str(n)]) * 100 for n in LABELS], marker="o", label=name
        )
    labels.set(title="Labels", xlabel="labels a class")
    labels.legend(frameon=False)
    names = list(LOSSES)
    loss.barh(names, [np.mean(rows["loss"][name]) * 100 for name in names], color="#1f77b4")
    loss.invert_yaxis()
    loss.set(title="What the student learns from", xlabel="top-1, %")
    for axes in (head, width, labels):
        axes.set_ylabel("top-1, %")
    for axes in (head, width, labels, loss):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run what is missing and write results/ablations.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".tenfold/bench-ablations"))
    options = parser.parse_args()
    commit, home = current_commit(), options.home.absolute() / source_digest()[:12]
    with ProcessPoolExecutor(Environment.read().threads) as pool:
        found = list(pool.map(run_repeat, SEEDS, [home] * len(SEEDS)))
    rows = {
        panel: {name: [repeat[panel][name] for repeat in found] for name in cells} for panel, cells in found[0].items()
    }
    path = write_result("ablations", {"what": __doc__, "seeds": SEEDS, "top1": rows}, commit)
    draw(rows, RESULTS / "ablations.png")
    for panel, cells in rows.items():
        for name, values in cells.items():
            print(f"{panel:11} {name:44} {100 * np.mean(values):5.1f}%  {[round(100 * v, 1) for v in values]}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
