"""What a training takes on a cluster: memory a GPU, time a step, from counts and assumptions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import cluster
import numpy as np
from cluster import IMAGES, Scenario
from counts import Counts, count, launches_of_a_norm, launches_of_a_tile, tiles_of
from record import RESULTS
from timm import create_model

from tenfold.config import DataConfig, Description, HeadConfig, ResNetConfig, load_config
from tenfold.models.saved import build

GPUS = (8, 64, 512)
FP64, FP32, BF16 = 8, 4, 2
CLASSES = [str(number) for number in range(1000)]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: in the tables.
        network: that is trained; a key of :func:`networks`.
        images: global batch; trained views and views of each other network's forward pass follow from it.
        steps: in all.
        views: trained views of an image.
        sources: views of an image that are made from its bytes.
        others: (network, views of an image, in training mode) of forward passes without a backward one.
        contrast: keys beside the batch's in the contrastive loss; None: no such loss.
        state: bytes a parameter of weights, gradients and the optimizer's state.
        averages: copies of the weights that follow them.
        most: GPUs that the batch is enough for.
    """

    name: str
    network: str
    images: int
    steps: int
    views: float = 1
    sources: float = 1
    others: tuple[tuple[str, float, bool], ...] = ()
    contrast: int | None = None
    state: int = 3 * FP32
    averages: int = 0
    most: int = 10**9


def preset(name: str) -> Any:
    """Return a preset's configuration."""
    return load_config(name, assignments=["data.source=digits"])


@cache
def networks() -> dict[str, tuple[str, Counts]]:
    """Return the networks that the runs need: name → kind and counts."""
    first, big = preset("simclr-r50-1x-100pct"), preset("simclrv2-distilled-r50-1x-10pct")

    def simclr(network: ResNetConfig, head: HeadConfig) -> Counts:
        return count(lambda: build(Description(kind="simclr", network=network, head=head, image_size=224)))

    def classifier(network: ResNetConfig, head: HeadConfig | None, layer: int) -> Counts:
        told = Description(kind="classifier", network=network, head=head, layer=layer, classes=CLASSES, image_size=224)
        return count(lambda: build(told))

    def vit(name: str) -> Counts:
        return count(lambda: create_model(name, num_classes=1000, global_pool="avg"))

    teacher = big.pretrain.network
    return {
        "R50, head": ("narrow", simclr(first.pretrain.network, first.pretrain.head)),
        "R152 3x+SK, head": ("wide", simclr(teacher, big.pretrain.head)),
        "R152 3x+SK, classes": ("wide", classifier(teacher, big.pretrain.head, big.finetune.from_head_layer)),
        "R50, classes": ("narrow", classifier(big.distill.network, None, 0)),
        "ViT-B/16": ("vit", vit("vit_base_patch16_224")),
        "ViT-L/16": ("vit", vit("vit_large_patch16_224")),
        "ViT-H/14": ("vit", vit("vit_huge_patch14_224")),
    }


@cache
def runs() -> list[Run]:
    """Return the papers' trainings as the presets have them; Semi-ViT's from its official settings."""
    first, big = preset("simclr-r50-1x-100pct").pretrain, preset("simclrv2-distilled-r50-1x-10pct")
    itself, one = preset("simclrv2-distilled-self-10pct"), preset("simclrv2-distilled-r50-1x-1pct")
    memory, finetune, few, distill = big.pretrain.memory, big.finetune, one.finetune, big.distill
    head, classes = "R152 3x+SK, head", "R152 3x+SK, classes"
    found = [
        Run("SimCLR R50", "R50, head", first.batch_size, first.length(IMAGES).steps, 2, 2, contrast=0),
        Run("SimCLRv2 R152 3x+SK", head, big.pretrain.batch_size, big.pretrain.length(IMAGES).steps, 2, 2,
            ((head, 2, True),), memory.size, averages=1),
        Run("its fine-tuning, 1%", classes, few.batch_size, few.length(12_811).steps),
        Run("its fine-tuning, 10%", classes, finetune.batch_size, finetune.length(128_116).steps),
        Run("distilled into itself", classes, itself.distill.batch_size, itself.distill.length(IMAGES).steps,
            others=((classes, 1, False),)),
        Run("distilled into R50", "R50, classes", distill.batch_size, distill.length(IMAGES).steps,
            others=((classes, 1, False),)),
    ]  # fmt: skip
    # Semi-ViT: 128 labelled images and 5 times as many unlabelled ones a step; an epoch is one of the unlabelled
    for size, epochs in (("B/16", 100), ("L/16", 100), ("H/14", 50)):
        network = f"ViT-{size}"
        found.append(
            Run(f"Semi-ViT {size[0]}", network, 128 * 6, epochs * (IMAGES // (128 * 5)), 1, 11 / 6,
                ((network, 5 / 6, False),), state=4 * FP32, averages=1, most=128)
        )  # fmt: skip
    return found


# --- memory ----------------------------------------------------------------------------------------------


def state_bytes(run: Run, ranks: int = 1) -> float:
    """Return bytes of weights, gradients and optimizer, sharded over ``ranks``, and of what is not sharded."""
    counts = networks()[run.network][1]
    spread = counts.parameters * (run.state + run.averages * FP32)
    whole = counts.parameters * BF16  # autocast's copies of the weights
    teachers = {name for name, _, training in run.others if not training and not run.averages}
    return spread / ranks + whole + sum(FP32 * networks()[name][1].parameters for name in teachers)


def activation_bytes(run: Run, *, checkpointed: bool) -> float:
    """Return bytes that a trained view needs: what is kept, and some of the largest tensor on the way back."""
    counts = networks()[run.network][1]
    return (counts.checkpointed if checkpointed else counts.saved) + cluster.PASSING * counts.largest


def loss_bytes(run: Run, images: int, parts: int) -> float:
    """Return bytes of the contrastive loss on a rank: two directions' similarities, kept and in the making."""
    if not run.contrast:
        return 0.0  # in tiles
    return 4 * FP32 * images / parts * (run.images / parts + run.contrast)


def fits(run: Run, gpus: int, parts: int, *, checkpointed: bool, sharded: bool) -> bool:
    """Tell whether a step in ``parts`` fits into a GPU's memory."""
    images = run.images / gpus
    used = state_bytes(run, gpus if sharded else 1) + loss_bytes(run, images, parts)
    used += images * run.views / parts * activation_bytes(run, checkpointed=checkpointed)
    return used <= cluster.MEMORY - cluster.RESERVED


def parts_needed(run: Run, gpus: int, *, checkpointed: bool, sharded: bool) -> int | None:
    """Return in how many parts a step has to go (1: whole); None where the batch has no image for each GPU."""
    if gpus > run.most:
        return None
    images = run.images // gpus
    for parts in (2**power for power in range(12)):
        if parts <= images and fits(run, gpus, parts, checkpointed=checkpointed, sharded=sharded):
            return parts
    return None


def plan(run: Run, gpus: int) -> tuple[int, bool] | None:
    """Return the parts and whether blocks are checkpointed: whole without, whole with, else the fewest parts."""
    plain, checkpointed = (parts_needed(run, gpus, checkpointed=c, sharded=False) for c in (False, True))
    if plain is None or checkpointed is None:
        return None
    return (plain, False) if plain <= checkpointed else (checkpointed, True)


# --- time ------------------------------------------------------------------------------------------------


def step_flops(run: Run, *, checkpointed: bool) -> dict[str, float]:
    """Return FLOPs a step of all GPUs, by kind of network: backward passes count as two forward ones."""
    kind, counts = networks()[run.network]
    found = {kind: run.images * run.views * 2 * counts.macs * (4 if checkpointed else 3)}
    for name, views, _ in run.others:
        kind, other = networks()[name]
        found[kind] = found.get(kind, 0.0) + run.images * views * 2 * other.macs
    return found


def norm_seconds(counts: Counts, gpus: int, scenario: Scenario, forwards: int = 1) -> tuple[float, float]:
    """Return the seconds that all batch norms' all-reduces take in ``forwards`` forward passes and in a backward one.

    Forward they sum three float64 a channel, backward two float32.
    """
    channels = counts.norm_channels / max(1, counts.norms)
    there, back = (scenario.reduce(each * channels, gpus) for each in (3 * FP64, 2 * FP32))
    return counts.norms * forwards * there, counts.norms * back


def step_seconds(run: Run, gpus: int, scenario: Scenario) -> dict[str, float] | None:
    """Return the parts of a step's time; None where it cannot run."""
    how = plan(run, gpus)
    if how is None:
        return None
    parts, checkpointed = how
    counts = networks()[run.network][1]
    forwards = 1 + checkpointed
    products = {
        kind: flops / gpus / scenario.share[kind] / cluster.PEAK
        for kind, flops in step_flops(run, checkpointed=checkpointed).items()
    }
    other = sum(networks()[name][1].launches for name, _, _ in run.others)
    normed = forwards + sum(trains for _, _, trains in run.others)  # the momentum encoder is the same network
    alone, forward, backward = launches_of_a_norm()
    spanning = counts.norms * (normed * (forward - alone) + backward - 2 * alone)
    launches = parts * scenario.launch * (counts.launches * (forwards + 2) + other + spanning)
    norms = parts * sum(norm_seconds(counts, gpus, scenario, normed))
    tiles = 0.0
    if run.contrast == 0:
        tiles = parts * scenario.launch * launches_of_a_tile() * tiles_of(run.images // gpus // parts, gpus)
        tiles += parts * 3 * scenario.gather(gpus)  # views; in the backward pass their sums and weights
    gradients = cluster.ring_all_reduce(FP32 * counts.parameters, gpus) / scenario.bandwidth(gpus)
    computing = max(sum(products.values()), launches)
    exposed = max(0.0, gradients - computing * 2 / 3 / parts)
    found = {"computing": computing, "norms": norms, "loss": tiles, "gradients": exposed}
    return {**found, "step": sum(found.values())}


def hours(run: Run, gpus: int, scenario: str) -> float | None:
    """Return the training's hours."""
    seconds = step_seconds(run, gpus, cluster.SCENARIOS[scenario])
    return seconds["step"] * run.steps / 3600 if seconds else None


# --- data ------------------------------------------------------------------------------------------------


def core_seconds() -> tuple[float, float]:
    """Return a core's seconds to decode an image and to make a view of it (results/data.json, 224 pixels).

    Two views and decoding alone were measured; a view is taken to be half of what lies between.
    """
    measured = json.loads((RESULTS / "data.json").read_text())
    cores = measured["threads"]
    both, decoding = (cores / float(np.median(measured[name][side])) for name, side in
                      (("views_224", "ours"), ("limit_224", "theirs")))  # fmt: skip
    return decoding, (both - decoding) / 2


def shards() -> tuple[int, float]:
    """Return how many shards ImageNet has at the default size, and their bytes in all."""
    config = DataConfig()
    each = cluster.IMAGE_BYTES + cluster.TAR_BYTES
    images = min(config.shard_images, -(-config.shard_bytes // each))
    return -(-IMAGES // images), IMAGES * each


def checkpoint_bytes(run: Run) -> float:
    """Return the bytes of a checkpoint: weights, momenta, averages, and the queue of keys."""
    parameters = networks()[run.network][1].parameters
    return parameters * (run.state - FP32 + run.averages * FP32) + (run.contrast or 0) * 128 * FP32
