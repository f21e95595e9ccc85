"""Self-training: a teacher labels the unlabelled images for its own student (Semi-ViT)."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.augment.spec import ViewSpec, parse_spec
from tenfold.augment.stream import ViewStream
from tenfold.config import SelfTrainConfig
from tenfold.data.manifest import open_dataset
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError
from tenfold.evaluation.foreign import Nearness
from tenfold.evaluation.inference import infer, probabilities
from tenfold.losses.self_training import estimated_prior
from tenfold.models.heads import Classifier
from tenfold.models.saved import load_classifier, load_pretrained
from tenfold.progress import count
from tenfold.ranks import all_gather, rank, share, world_size
from tenfold.training.device import prepare
from tenfold.training.health import Health, nearest
from tenfold.training.loop import fit
from tenfold.training.result import save_result
from tenfold.training.self_training import SelfTraining
from tenfold.training.way import determinism
from tenfold.work import Work

CONFIGS = {"self_train": SelfTrainConfig}

#: Images that health and class shares are measured on: labelled ones, others, and neighbours of each labelled one.
_LABELLED, _UNLABELLED, _NEIGHBOURS = 500, 4000, 4
#: Images a step of looking at all, and labelled ones that each is compared with.
_BATCH, _COMPARED = 2048, 20_000


@dataclass(frozen=True)
class Inputs:
    """``dataset``: its URI. ``weak`` and ``strong``: the views. ``evaluation``: the view of serving.

    ``teacher``: the fine-tuned classifier. ``encoder``: the pretrained one, in whose features images are compared.
    """

    dataset: str
    weak: str
    strong: str
    evaluation: str
    teacher: Path
    encoder: Path


@dataclass(frozen=True)
class Outputs:
    """``teacher``: folder of the self-trained classifier."""

    teacher: Path


def run(config: SelfTrainConfig, inputs: Inputs, outputs: Outputs, work: Work) -> None:
    """Let the teacher label the unlabelled images for its student, and keep what the method yields.

    Where ``config.enabled`` is false the teacher is passed on as it is (kfp.local cannot choose between the
    artifacts of two branches).

    Raises:
        DataError: teacher and data set differ in their classes.
    """
    if not config.enabled:
        work.reporter.note("switched off; the fine-tuned teacher is passed on")
        if rank() == 0:
            shutil.copytree(inputs.teacher, outputs.teacher, dirs_exist_ok=True)
        return
    device = prepare(work.environment)
    seed, threads = config.seed or 0, work.environment.threads
    weak, strong = parse_spec(inputs.weak), parse_spec(inputs.strong)
    dataset = open_dataset(inputs.dataset)
    labelled = SplitReader(dataset, "labelled", work.cache)
    unlabelled = SplitReader(dataset, "unlabelled", work.cache)
    model, description = load_classifier(inputs.teacher)
    if description.classes != labelled.classes:
        raise DataError(f"the teacher knows the classes {description.classes}, the data set {labelled.classes}")
    torch.manual_seed(seed)
    parts = world_size() * config.accumulate
    more = max(min(config.batch_size * config.ratio, len(unlabelled)) // parts, 1) * parts
    few, many = share(config.batch_size, "self_train.batch_size", config.accumulate), share(more)
    streams = {
        "labelled": partial(ViewStream, labelled, [strong], few, seed, device, threads),
        "unlabelled": partial(ViewStream, unlabelled, [weak, strong], many, seed + 1, device, threads),
    }
    length = config.length(len(unlabelled), more)
    decay = config.decay(length.steps)
    _warn(config, decay, length.steps, work)
    with determinism(config.deterministic):
        known, prior, health = _surveyed(config, inputs, model, labelled, unlabelled, device, work)
    if config.drop_path:
        from tenfold.models.vit import set_drop_path  # timm takes a second to load

        set_drop_path(model, config.drop_path)
    objective = SelfTraining(
        model, torch.from_numpy(labelled.labels()), config, decay, prior=prior, known=known, health=health
    )
    history = fit(objective, streams, config, length, device, work, labelled.classes)
    if health is not None and health.verdict():
        work.reporter.warn(health.verdict())
    save_result(outputs.teacher, objective.result(), description, history, work)


def _warn(config: SelfTrainConfig, decay: float, steps: int, work: Work) -> None:
    """Warn of an average that a run of this length never gets away from its start."""
    if not decay:
        return
    half_life = math.log(0.5) / math.log(decay)
    if half_life > steps:
        usual = SelfTrainConfig().decay(steps)
        work.reporter.warn(
            f"self_train.average is {decay}: after all {steps} steps the average still is {decay**steps:.0%} its "
            f"start. Leave it out for a half-life of 7% of the run, {usual:.4f}"
        )


def _surveyed(
    config: SelfTrainConfig, inputs: Inputs, teacher: Classifier, labelled: SplitReader, unlabelled: SplitReader,
    device: torch.device, work: Work,
) -> tuple[Tensor | None, Tensor | None, Health | None]:  # fmt: skip
    """Look at the images as the pretrained encoder and the teacher see them, as far as the configuration needs it.

    Returns:
        Which of the unlabelled images are of a known class, the class shares to expect, and the monitor.
    """
    spec = parse_spec(inputs.evaluation)
    counts = np.bincount(labelled.labels(), minlength=len(labelled.classes))
    prior = torch.from_numpy(counts / counts.sum()).float()
    has_label = set(labelled.keys)
    others = np.array([number for number, key in enumerate(unlabelled.keys) if key not in has_label])
    if not len(others) or not (config.foreign or config.monitor or config.align == "estimated"):
        return None, None, None
    pretrained, origin = load_pretrained(inputs.encoder)
    if config.monitor and not origin.trained:
        work.reporter.note("no monitor: nothing was pretrained, and the teacher's features know the labels by heart")
    encoder = (pretrained if origin.trained else teacher).encoder.to(device).eval()
    teacher.to(device).eval()
    known: Tensor | None = None
    if config.foreign:
        known = _known(config.foreign, encoder, labelled, unlabelled, others, spec, device, work)
        others = others[known[torch.from_numpy(others)].numpy() > 0]
        if not len(others):
            raise DataError(
                f"all unlabelled images lie farther from the labelled ones than a share of {1 - config.foreign:g} of "
                "these from each other: self_train.foreign would leave none. Lower it, or set it to 0"
            )
    some = _spread(others, _UNLABELLED)
    few = _spread(np.arange(len(labelled)), _LABELLED)
    work.reporter.note(f"looks at {count(len(few), 'labelled image')} and {len(some):,} others")
    features = infer({"encoder": encoder}, labelled, spec, few.tolist(), device)["encoder"]
    seen = infer({"encoder": encoder, "teacher": probabilities(teacher)}, unlabelled, spec, some.tolist(), device)
    if config.align == "estimated":
        prior = estimated_prior(torch.from_numpy(seen["teacher"]), prior)
        shares = ", ".join(
            f"{name} {part:.1%}" for name, part in zip(labelled.classes[:10], prior.tolist(), strict=False)
        )
        work.reporter.note(f"class shares that the guesses tell: {shares}{', …' if len(prior) > 10 else ''}")
    health = None
    if config.monitor and origin.trained:
        near = nearest(features, seen["encoder"], _NEIGHBOURS)
        used, rows = np.unique(near, return_inverse=True)
        numbers = some[used].tolist()

        def look(network: nn.Module) -> NDArray[np.float64]:
            return infer({"all": probabilities(network)}, unlabelled, spec, numbers, device)["all"]

        labels = labelled.labels()[few]
        health = Health(teacher, look, rows.reshape(near.shape), labels, prior, config.monitor)
    return known, prior if config.align == "estimated" else None, health


def _known(
    lost: float, encoder: nn.Module, labelled: SplitReader, unlabelled: SplitReader, others: NDArray[np.int64],
    spec: ViewSpec, device: torch.device, work: Work,
) -> Tensor:  # fmt: skip
    """Return 1 for each image of the unlabelled split that may be of a known class, and 0 for the others."""
    if (len(labelled) + 1) * lost < 1:
        work.reporter.warn(
            f"self_train.foreign is {lost}, which needs {math.ceil(1 / lost) - 1} labelled images; with "
            f"{len(labelled)} no image is left out"
        )
    functions = {"encoder": encoder}
    few = _spread(np.arange(len(labelled)), _COMPARED).tolist()
    nearness = Nearness(infer(functions, labelled, spec, few, device)["encoder"])
    each = math.ceil(len(others) / world_size())  # of which the last ranks may have fewer
    own = others[rank() * each : (rank() + 1) * each]
    found = torch.zeros(each, dtype=torch.float64)
    for start in range(0, len(own), _BATCH):
        numbers = own[start : start + _BATCH].tolist()
        features = infer(functions, unlabelled, spec, numbers, device)["encoder"]
        found[start : start + len(numbers)] = torch.from_numpy(nearness.p_values(features))
        work.reporter.progress("looking for foreign images", start + len(numbers), len(own), "images")
    kept = torch.ones(len(unlabelled))
    kept[torch.from_numpy(others)] = (all_gather(found.to(device)).cpu()[: len(others)] > lost).float()
    dropped = int((kept == 0).sum())
    work.reporter.note(f"leaves out {count(dropped, 'image')} of {len(others):,} as of no known class")
    work.tracker.metrics({"foreign_images": float(dropped)})
    return kept


def _spread(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of ``numbers``, evenly spread."""
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).round().astype(np.int64)]
