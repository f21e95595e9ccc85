"""Sharding: from an image folder, an S3 prefix or digits to verified shards with a manifest.

Three tasks: ``plan`` lists the source and divides what is new into partitions, ``pack`` packs one of them, and
``run`` merges them into a data set.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tenfold.config import DataConfig
from tenfold.data.adopt import check_of
from tenfold.data.build import finish, recorded
from tenfold.data.inspect import inspect
from tenfold.data.listing import list_images, told_kinds
from tenfold.data.manifest import publish
from tenfold.data.pack import open_packed
from tenfold.data.pack import pack as pack_images
from tenfold.data.plan import make_plan, open_plan, publish_plan
from tenfold.data.sources import open_source
from tenfold.environment import Environment
from tenfold.errors import ConfigError, first_fault
from tenfold.progress import Reporter, count
from tenfold.storage import open_store
from tenfold.work import Work

CONFIGS = {"shard": DataConfig}


@dataclass(frozen=True)
class Inputs:
    """JSON lists: ``partitions`` that :func:`plan` gave, and what :func:`pack` gave for each."""

    partitions: str
    packed: str


@dataclass(frozen=True)
class Outputs:
    """``summary``: the manifest's figures and the quarantine, as JSON, for the run's record."""

    summary: Path


def parse(config: str) -> DataConfig:
    """Read the canonical configuration string.

    Raises:
        ConfigError: it was made by another version.
    """
    try:
        return DataConfig.model_validate_json(config)
    except ValueError as error:
        told = first_fault(error.errors()) if hasattr(error, "errors") else str(error)
        raise ConfigError(f"the configuration string of shard does not fit this version: {told}") from None


def plan(config: DataConfig, environment: Environment, reporter: Reporter) -> list[str]:
    """List the source and return its partitions, at least one, as ``<name of the plan in the store>/<number>``."""
    source, store = open_source(config.source), open_store(environment.store)
    with tempfile.TemporaryDirectory() as folder:
        listing = list_images(source, config, Path(folder) / "listing")
        made = make_plan(listing, config, store, source.uri)
    if listing.passed:
        reporter.note(
            f"{count(sum(listing.passed.values()), 'file')} passed over, no images: {told_kinds(listing.passed)}"
        )
    new = sum(partition.images for partition in made.partitions)
    if made.changes is not None and (new or made.changes.removed):
        removed = count(made.changes.removed, "removed image")
        reporter.note(f"{count(new, 'new or changed image')} and {removed} since the last sharding")
    name = publish_plan(store, made)
    return [f"{name}/{number}" for number in range(len(made.partitions))]


def pack(config: DataConfig, partition: str, environment: Environment, reporter: Reporter) -> str:
    """Pack one partition; returns the key of its table in the store."""
    source, store = open_source(config.source), open_store(environment.store)
    name, _, number = partition.partition("/")
    made = open_plan(store, name)
    phase = "packing" if len(made.partitions) == 1 else f"packing partition {int(number) + 1} of {len(made.partitions)}"

    def advance(done: int, total: int) -> None:
        reporter.progress(phase, done, total, "images")

    return pack_images(made, int(number), check_of(made, source, store), store, environment.threads, advance).table


class Addresses(NamedTuple):
    """Dataset URIs, which end in the manifest's sha256: of all, and of the unlabelled images alone."""

    dataset: str
    unlabelled: str


def run(config: DataConfig, inputs: Inputs, outputs: Outputs, work: Work) -> Addresses:
    """Merge what was packed and publish the data set."""
    made = open_plan(work.store, json.loads(inputs.partitions)[0].partition("/")[0])
    known = recorded(work.store, made.listing)
    packed = [open_packed(work.store, table) for table in json.loads(inputs.packed)]
    dataset = known or finish(made, packed, config, work.store, open_source(config.source).uri)
    manifest = dataset.manifest
    if known:
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
    facts = inspect(dataset)
    equal = {key: facts[key] for key in ("equal_training_images", "equal_test_images")}
    alike = facts["alike_in_train_and_test"]
    work.tracker.metrics({**equal, "alike_in_train_and_test": len(alike)})
    if equal["equal_test_images"]:
        work.reporter.warn(
            f"{count(equal['equal_test_images'], 'test image')} equal to another one: such images count more than once "
            "in every accuracy"
        )
    if alike:
        first = f"{alike[0]['train']} and {alike[0]['test']}"
        work.reporter.warn(
            f"{count(len({each['test'] for each in alike}), 'test image')} may be seen in training, in another size or "
            f"compression ({first} look "
            f"alike); tenfold data inspect {dataset.uri} lists them"
        )
    summary = {"dataset": dataset.uri, "classes": manifest.classes, "counts": counts, **equal,
               "alike_in_train_and_test": alike[:1000],
               "quarantined": [q.model_dump() for q in manifest.quarantined]}  # fmt: skip
    outputs.summary.write_text(json.dumps(summary, indent=1))
    work.tracker.artifact(outputs.summary)
    return Addresses(dataset.uri, publish(work.store, manifest.unlabelled()).uri)
