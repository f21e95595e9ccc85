"""Sharding: from an image folder, an S3 prefix or digits to verified shards with a manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tenfold.config import DataConfig
from tenfold.data.build import build_dataset
from tenfold.data.sources import open_source
from tenfold.progress import count
from tenfold.work import Work

CONFIGS = {"shard": DataConfig}


@dataclass(frozen=True)
class Inputs:
    """Nothing: the source stands in the configuration."""


@dataclass(frozen=True)
class Outputs:
    """``summary``: the manifest's figures and the quarantine, as JSON, for the run's record."""

    summary: Path


def run(config: DataConfig, inputs: Inputs, outputs: Outputs, work: Work) -> str:
    """Shard the source and return the dataset URI, which ends in the manifest's sha256."""

    def advance(done: int, total: int) -> None:
        work.reporter.progress("checking", done, total, "images")

    dataset, fresh = build_dataset(open_source(config.source), config, work.store, advance)
    manifest = dataset.manifest
    if not fresh:
        work.reporter.note("the source is unchanged: its shards are reused")
    wanted = config.labels.per_class
    short = [n for n, k in manifest.splits["labelled"].class_counts.items() if wanted is not None and k < wanted]
    if short:
        work.reporter.warn(f"fewer than {wanted} labelled images of {', '.join(short[:10])}: the sources have no more")
    counts = {name: split.count for name, split in manifest.splits.items()}
    work.tracker.metrics({f"images_{name}": count for name, count in counts.items()})
    work.tracker.metrics({"quarantined": len(manifest.quarantined)})
    work.tracker.tags({"tenfold.dataset": dataset.uri})
    if manifest.quarantined:
        work.reporter.warn(f"{count(len(manifest.quarantined), 'image')} quarantined; the report lists them")
    summary = {"dataset": dataset.uri, "classes": manifest.classes, "counts": counts,
               "quarantined": [q.model_dump() for q in manifest.quarantined]}  # fmt: skip
    outputs.summary.write_text(json.dumps(summary, indent=1))
    work.tracker.artifact(outputs.summary)
    return dataset.uri
