"""Novelty: how many images the champion's data set did not have, how they differ, and whether a retraining goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tenfold.config import RetrainConfig
from tenfold.data.contents import count_new
from tenfold.data.manifest import open_dataset
from tenfold.errors import AGAIN, DataError, StorageError, TenfoldError, TrackingError
from tenfold.fingerprint import canonical_json
from tenfold.progress import count
from tenfold.report.stopped import render_stopped
from tenfold.tracking import parent_run
from tenfold.work import Work

CONFIGS = {"novelty": RetrainConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: URI of the images that there are now. ``known``: of those that the champion learned from.

    ``champion``: its model and version, ``name/3``; empty: there is none.
    """

    dataset: str
    known: str | None
    champion: str = ""


@dataclass(frozen=True)
class Outputs:
    """``told``: what was found, in Markdown."""

    told: Path


def run(config: RetrainConfig, inputs: Inputs, outputs: Outputs, work: Work) -> bool:
    """Count what is new and tell whether to go on; where not, leave the run's report and result.

    With no champion it goes on whatever there is. Where the champion's data set cannot be read any more, every image
    counts as new.

    Raises:
        StorageError: the store is away.
    """
    new = _count(inputs, work)
    go_on = inputs.known is None or new >= config.min_new_images
    if inputs.known is None:
        told = "there is no champion yet, so all images are new"
    else:
        told = f"{count(new, 'image')} that the champion's data set lacks, {_against(new, config.min_new_images)}"
    if go_on and inputs.known is not None and config.min_drift is not None:
        drifted, how = _drift(config.min_drift, inputs, inputs.known, work)
        go_on, told = go_on and drifted, f"{told}; {how}"
    outputs.told.write_text(f"## {'Going on' if go_on else 'Nothing to do'}\n\n{told}\n", encoding="utf-8")
    work.reporter.note(told)
    work.tracker.metrics({"new_images": new})
    tags = {"tenfold.new_images": str(new)}
    if not go_on:
        work.reporter.event("stopped")
        tags["tenfold.stopped"] = told
        _leave(config, inputs, new, told, work)
    try:
        parent_run(work.environment).tags(tags)
    except TrackingError as error:
        work.reporter.warn(str(error))
    return go_on


def _against(new: int, least: int) -> str:
    return f"fewer than the {least:,} that are asked for" if new < least else f"and at least {least:,} are asked for"


def _count(inputs: Inputs, work: Work) -> int:
    dataset = open_dataset(inputs.dataset)
    if inputs.known is None:
        return sum(split.count for name, split in dataset.manifest.splits.items() if name != "labelled")
    try:
        return count_new(dataset, open_dataset(inputs.known))
    except (DataError, StorageError) as error:
        if error.exit_code == AGAIN:
            raise
        work.reporter.warn(f"the champion's data set cannot be compared, so every image counts as new: {error}")
        return sum(split.count for name, split in dataset.manifest.splits.items() if name != "labelled")


def _drift(least: float, inputs: Inputs, known: str, work: Work) -> tuple[bool, str]:
    """Return whether the new images differ from those that the champion learned from, and a sentence about it."""
    from tenfold.components.novelty.look import look  # torch, which no other part of this stage needs

    try:
        found = look(inputs.champion, open_dataset(inputs.dataset), open_dataset(known), least, work)
    except TenfoldError as error:
        if error.exit_code == AGAIN:
            raise
        work.reporter.warn(f"whether the new images differ cannot be told, so it goes on: {error}")
        return True, "whether they differ cannot be told"
    if found is None:
        return True, "too few of them to tell whether they differ"
    work.tracker.metrics({"drift.separability": found.separability, "drift.class_distance": found.class_distance,
                          "drift.confidence_new": found.confidence_new})  # fmt: skip
    told = f"told from known ones in {found.separability:.0%} of pairs"
    return found.drifted, f"{told}, {'at least' if found.drifted else 'not clearly'} {least:.0%} as is asked for"


def _leave(config: RetrainConfig, inputs: Inputs, new: int, told: str, work: Work) -> None:
    """Write the page and the result of a run that ends here."""
    run_id = work.environment.run_id
    name = json.loads(work.store.read(f"runs/{run_id}/config.json"))["name"]
    page = render_stopped(run_id, name, told, inputs.dataset)
    work.store.write(f"runs/{run_id}/report.html", page.encode())
    stopped = {"reason": told, "new_images": new, "min_new_images": config.min_new_images, "dataset": inputs.dataset}
    work.store.write(f"runs/{run_id}/result.json", canonical_json({"stopped": stopped}).encode())
