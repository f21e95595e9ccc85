"""Augmentation: resolves the views, measures them on the data, and shows what they look like."""

from __future__ import annotations

import base64
import html
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from tenfold.augment.spec import ViewSpec, resolve_specs
from tenfold.augment.stream import ViewStream
from tenfold.config import AugmentConfig, PixelsConfig, channels_of
from tenfold.data.channels import as_rgb
from tenfold.data.decode import read_pixels
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.evaluation.view_check import Recognised, recognised
from tenfold.models.saved import build_encoder
from tenfold.training.device import prepare
from tenfold.work import Work

_SHOWN, _TILE = 8, 64
_STATISTICS_IMAGES = 2000
#: Labelled images that mirroring is checked with, and views a step of measuring the network.
_CHECKED, _NEED_BATCH = 1000, 64


CONFIGS = {"augment": AugmentConfig}


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI."""

    dataset: str


@dataclass(frozen=True)
class Outputs:
    """``views``: folder with specification, channel statistics, throughput and preview.

    ``preview``: the same picture as an HTML page.
    """

    views: Path
    preview: Path


class Views(NamedTuple):
    """Each view's canonical specification, for the stages that use it."""

    pretrain: str
    weak: str
    strong: str
    evaluation: str
    baseline: str
    finetune: str
    distill: str


_SHOWN_VIEWS = ("pretrain", "weak", "strong", "evaluation")


def run(config: AugmentConfig, inputs: Inputs, outputs: Outputs, work: Work) -> Views:
    """Resolve every view, and write what is worth knowing about it on this data and this machine."""
    device = prepare(work.environment)
    reader = SplitReader(open_dataset(inputs.dataset), "unlabelled", work.cache)
    specs = resolve_specs(config)
    outputs.views.mkdir(parents=True, exist_ok=True)
    named = {name: getattr(specs, name) for name in Views._fields}
    hashes = {name: spec.hash for name, spec in named.items()}
    statistics = channel_statistics(reader, config.evaluation.pixels)
    rate = throughput(reader, specs.pretrain, device, work)
    shown = {name: named[name] for name in _SHOWN_VIEWS}
    sheet = contact_sheet(reader, shown, device, work)
    sheet.save(outputs.views / "preview.png")
    labelled = SplitReader(open_dataset(inputs.dataset), "labelled", work.cache)
    doubt = check_flip(config, labelled, specs.evaluation, work)
    if doubt is not None:
        work.reporter.warn(doubt[0])
        flipped_sheet(labelled, specs.evaluation, doubt[1], work).save(outputs.views / "flipped.png")
    need = training_need(config, device)
    if need > rate:
        work.reporter.warn(
            f"the views come at {rate:,.0f} a second and pretraining can take {need:,.0f}: it would wait "
            f"{1 - rate / need:.0%} of the time. Give the stage more cores (TENFOLD_THREADS is "
            f"{work.environment.threads}), or make smaller or simpler views"
        )
    facts = {
        "views": {name: spec.model_dump() for name, spec in named.items()}, "hashes": hashes,
        "channels": statistics, "throughput_views_per_second": rate, "training_takes_views_per_second": need,
        "device": device.type, "threads": work.environment.threads,
        "flip": doubt[0] if doubt else None,
    }  # fmt: skip
    (outputs.views / "views.json").write_text(json.dumps(facts, indent=1))
    outputs.preview.write_text(_page(outputs.views, facts, list(shown)))
    work.tracker.metrics({"views_per_second": rate, "training_views_per_second": need})
    work.tracker.tags({f"tenfold.view.{name}": value for name, value in hashes.items()})
    work.tracker.artifact(outputs.views, "views")
    return Views(**{name: spec.encoded() for name, spec in named.items()})


def channel_statistics(reader: SplitReader, kind: PixelsConfig | None) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel over the first images, of pixels in [0, 1]."""
    channels = channels_of(kind)
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for number in range(min(len(reader), _STATISTICS_IMAGES)):
        pixels = read_pixels(reader.image(number).tobytes(), kind).reshape(-1, channels) / (kind.top if kind else 255)
        count += len(pixels)
        total += pixels.sum(0)
        squares += (pixels**2).sum(0)
    mean = total / count
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()}


def throughput(reader: SplitReader, spec: ViewSpec, device: torch.device, work: Work) -> float:
    """Return pretraining's views a second, two an image, measured for about a second after a warm-up."""
    batch = min(256, len(reader))
    stream = ViewStream(reader, [spec, spec], batch, 0, device, work.environment.threads)
    next(stream)
    start, views = time.monotonic(), 0
    while views == 0 or time.monotonic() - start < 1.0:
        next(stream)
        views += 2 * batch
    return views / (time.monotonic() - start)


def training_need(config: AugmentConfig, device: torch.device) -> float:
    """Return how many views a second the pretraining network takes: forward and backward, measured for a second.

    With precision ``auto`` it is the faster of the two.
    """
    feeds = config.feeds
    if feeds is None:
        return 0.0
    channels = channels_of(config.evaluation.pixels)
    model = build_encoder(feeds.network, channels, config.image_size).to(device).train()
    shape = (min(feeds.batch_size, _NEED_BATCH), channels, config.image_size, config.image_size)
    views = torch.rand(shape, device=device)

    def step(precision: str) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(views).float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    rates = []
    for precision in ("float32", "bfloat16") if feeds.precision == "auto" else (feeds.precision,):
        step(precision)
        start, done = time.monotonic(), 0
        while done == 0 or time.monotonic() - start < 1.0:
            step(precision)
            done += len(views)
        rates.append(done / (time.monotonic() - start))
    return max(rates)


def check_flip(config: AugmentConfig, reader: SplitReader, spec: ViewSpec, work: Work) -> tuple[str, Recognised] | None:
    """Return what speaks against mirroring, where the labelled images do; ``spec`` is the evaluation's view."""
    views = {config.pretrain: getattr(config, config.pretrain), "weak": config.weak, "strong": config.strong}
    users = [f"augment.{name}.flip" for name, view in views.items() if view.flip > 0]
    images, labels = _labelled(reader, spec, work)
    found = recognised(images, images.flip(3), labels)
    if not users or not found.suspect:
        return None
    return (
        f"{', '.join(users)}: of {found.images} labelled images {found.before} lie next to one of their own class, "
        f"mirrored only {found.after}. Mirroring seems to change the class, as it does with digits and text; the "
        "report's page of views shows some. Set it to 0 unless you know better"
    ), found


def _labelled(reader: SplitReader, spec: ViewSpec, work: Work) -> tuple[Tensor, NDArray[np.int64]]:
    count = min(len(reader), _CHECKED)
    cpu, threads = torch.device("cpu"), work.environment.threads
    stream = ViewStream(reader, [spec], count, 0, cpu, threads, shuffle=False, part=(0, 1), batches=1)
    return next(stream).views[0], reader.labels()[:count]


def flipped_sheet(reader: SplitReader, spec: ViewSpec, found: Recognised, work: Work) -> Image.Image:
    """Return a picture: a row an image; itself, mirrored, and the image that this is nearest to."""
    images, labels = _labelled(reader, spec, work)
    rows, gap, text = found.lost[:_SHOWN], 6, 18
    sheet = Image.new("RGB", (3 * (_TILE + gap) + gap, len(rows) * (_TILE + gap + text) + gap), (128, 128, 128))
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(rows):
        near = int(found.nearest[number])
        own, other = reader.classes[labels[number]], reader.classes[labels[near]]
        tiles = [(images[number], own), (images[number].flip(2), "mirrored"), (images[near], other)]
        for column, (view, caption) in enumerate(tiles):
            left, top = gap + column * (_TILE + gap), gap + place * (_TILE + gap + text)
            picture = Image.fromarray(_pixels(view.numpy()))
            sheet.paste(picture.resize((_TILE, _TILE), Image.Resampling.NEAREST), (left, top))
            draw.text((left, top + _TILE), caption[:12], fill=(255, 255, 255))
    return sheet


def contact_sheet(reader: SplitReader, specs: dict[str, ViewSpec], device: torch.device, work: Work) -> Image.Image:
    """Return a picture: a row an image; the original, the evaluation view, and two draws of each random view."""
    columns = [("evaluation", specs["evaluation"])]
    columns += [(name, spec) for name, spec in specs.items() if name != "evaluation" for _ in range(2)]
    batch = min(_SHOWN, len(reader))
    stream = ViewStream(
        reader, [spec for _, spec in columns], batch, 0, device, work.environment.threads, shuffle=False
    )
    views = [view.cpu().numpy() for view in next(stream).views]
    gap, head = 6, 18
    width, height = (len(columns) + 1) * (_TILE + gap) + gap, head + batch * (_TILE + gap) + gap
    sheet = Image.new("RGB", (width, height), (128, 128, 128))
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(["original", *[name for name, _ in columns]]):
        draw.text((gap + column * (_TILE + gap), 4), name, fill=(255, 255, 255))
    for row in range(batch):
        tiles = [reader.picture(row), *(_pixels(view[row]) for view in views)]
        for column, tile in enumerate(tiles):
            picture = Image.fromarray(tile)
            picture = picture.resize((_TILE, _TILE), Image.Resampling.NEAREST)
            sheet.paste(picture, (gap + column * (_TILE + gap), head + gap + row * (_TILE + gap)))
    return sheet


def _pixels(view: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a view (channels, S, S) as a picture."""
    if len(view) != 3:
        return as_rgb(view.transpose(1, 2, 0))
    return (view.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)


def _page(views: Path, facts: dict[str, object], names: list[str]) -> str:
    def image(name: str, alt: str) -> str:
        data = base64.b64encode((views / name).read_bytes()).decode()
        return f"<img alt='{alt}' src='data:image/png;base64,{data}'>"

    text = json.dumps({"channels": facts["channels"], "hashes": facts["hashes"]}, indent=1)
    doubt = "" if facts["flip"] is None else (
        f"<h2>Does mirroring change the class?</h2><p>{html.escape(str(facts['flip']))}</p><p>Columns: a labelled "
        f"image, the same mirrored, and the image that this is nearest to.</p>{image('flipped.png', 'mirrored images')}"
    )  # fmt: skip
    return (
        "<!doctype html><meta charset='utf-8'><title>Views</title><style>body{font:15px system-ui;margin:2em}"
        "img{max-width:100%;image-rendering:pixelated}</style><h1>What the views look like</h1>"
        f"<p>Columns: the original, then {', '.join(names)}; two draws of each random view.</p>"
        f"{image('preview.png', 'sample views')}{doubt}<pre>{html.escape(text)}</pre>"
    )
