"""A model card: what a student is, what it learned from, how good it is, and where that ends, in Markdown.

After Mitchell et al. 2019, "Model cards for model reporting"; what nobody can read off a run is asked for by name.
"""

from __future__ import annotations

import re
from typing import Any

#: Classes that are listed by name; the report has all.
_CLASSES = 10


def model_card(evaluation: dict[str, Any], model: str, version: str, intended_use: str) -> str:
    """Return the card of a registered version.

    Args:
        evaluation: what the evaluate stage wrote to evaluation.json.
        model: name in the registry.
        version: of it.
        intended_use: what the model is for, in its owner's words; empty: nobody said.
    """
    facts, counts = evaluation["served"], evaluation["counts"]
    scores = next(rung["scores"] for rung in evaluation["rungs"] if rung["id"] == facts["id"])
    level = f"{100 * evaluation['confidence']:g}%"
    lines = [
        f"# {_plain(model)}, version {version}", "",
        f"{_plain(facts['title']).capitalize()}: an image in, one of {len(evaluation['classes']):,} classes with its "
        "probability out. Made by tenfold from many images and few labels.", "",
        "## Intended use", _plain(intended_use) or "Not stated: set promote.intended_use. Use beyond what the data "
        "below shows is at the user's risk.", "",
        "## Data",
        f"- data set: `{evaluation['dataset']}`",
        f"- {counts['labelled']:,} labelled images; {counts['unlabelled']:,} for training, labelled or not; "
        f"{counts['test']:,} for testing",
        f"- left out as unreadable: {len(evaluation['quarantined']):,}",
        f"- classes, with their labels: {_labels(evaluation)}", "",
        "## Results on the test images",
        f"- top-1 {_interval(scores['top1'])} ({level} interval); balanced accuracy {scores['balanced']:.1%}",
        f"- expected calibration error {scores['calibration_error']:.3f}",
        *_apart(evaluation["test_images"], facts["choosing"]),
        *_weakest(scores["recalls"]), "",
        "## Network",
        f"- {facts['parameters']:,} parameters, {facts['bytes'] / 1e6:.1f} MB, images of side {facts['image_size']}",
        f"- {facts['latency_ms']:.1f} ms an image on the processor that evaluated", "",
        "## Limits", *_limits(evaluation, scores["recalls"]), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _apart(measuring: int, choosing: int) -> list[str]:
    if not choosing:
        return []
    return [f"- measured on {measuring:,} of the test images; {choosing:,} others chose or calibrated it"]


def _plain(text: str) -> str:
    """Return a user's text as one line that Markdown takes as text."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.1%}, {found['low']:.1%} to {found['high']:.1%}"


def _labels(evaluation: dict[str, Any]) -> str:
    names = evaluation["classes"]
    shown = [f"{_plain(name)} {evaluation['labelled'].get(name, 0):,}" for name in names[:_CLASSES]]
    return ", ".join(shown) + (f" and {len(names) - _CLASSES:,} more" if len(names) > _CLASSES else "")


def _weakest(recalls: dict[str, dict[str, float] | None]) -> list[str]:
    known = [(name, recall) for name, recall in recalls.items() if recall is not None]
    known.sort(key=lambda pair: pair[1]["value"])
    return [f"- weakest class: {_plain(name)}, found {_interval(recall)}" for name, recall in known[:3]]


def _limits(evaluation: dict[str, Any], recalls: dict[str, dict[str, float] | None]) -> list[str]:
    limits = [
        "- It names one of its classes for any image, also for one of none of them.",
        "- The test images come from the same source as the others: results elsewhere may differ.",
    ]
    unknown = [_plain(name) for name, recall in recalls.items() if recall is None]
    if unknown:
        limits.append(f"- No test image shows {', '.join(unknown[:_CLASSES])}: nothing is known of {_these(unknown)}.")
    if evaluation["leaks"]:
        limits.append(f"- {len(evaluation['leaks']):,} test images are also training images: the results are too good.")
    return limits


def _these(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"
